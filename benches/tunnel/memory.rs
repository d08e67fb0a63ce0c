//! Memory of each process: at rest, after a large transfer, and with many idle streams, on a ground of its own.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::Outcome;
use crate::ground::{Ground, Tunnel};
use crate::machine;
use crate::options::Options;
use crate::report::{Cell, Table};

/// Streams that are opened at the same time.
const BATCH: usize = 100;
/// From one such batch to the next: an exit lets 1,000 streams of one peer in each second (`limits.peer_streams_per_second`).
const BETWEEN_BATCHES: Duration = Duration::from_millis(150);
/// How long processes may put in order what the opening left behind.
const SETTLING: Duration = Duration::from_secs(2);
/// The large transfer, each way.
const LARGE: u64 = 1 << 30;
/// Open files besides those of streams.
const OTHER_FILES: u64 = 500;

pub(crate) async fn measure(options: &Options) -> Outcome<Table> {
    let counts: &[usize] = if options.full { &[1_000, 10_000] } else { &[options.few(200, 1_000)] };
    // Clients, proxy, exit and backend each have one socket for a stream. The children inherit it.
    let files = |count: usize| count as u64 + OTHER_FILES;
    let granted = machine::open_files(counts.iter().copied().map(files).max().unwrap_or(0));
    // Relays of its own too: they keep what was pumped through them.
    let ground = &Ground::prepare_apart(options).await?;
    let columns = ["MiB", "relay, now", "relay, most", "exit, now", "exit, most", "proxy, now", "proxy, most"];
    let mut table = Table::new("Memory", columns);
    let tunnel = ground.tunnel().await?;
    table.cells(row("at rest", ground, &tunnel)?);
    if options.full {
        tunnel.proxy.download(LARGE).await?;
        table.cells(row("1 GiB down", ground, &tunnel)?);
        tunnel.proxy.upload(LARGE).await?;
        table.cells(row("and 1 GiB up", ground, &tunnel)?);
    }
    drop(tunnel);
    // Another one: what a large transfer left behind is not an idle stream's.
    let tunnel = ground.tunnel().await?;
    tunnel.proxy.idle().await?;
    let base = used(ground, &tunnel)?;
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut batches = tokio::time::interval(BETWEEN_BATCHES);
    batches.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for &count in counts {
        if granted < files(count) {
            table.note(format!(
                "{count} idle streams need {0} open files, and the system grants {granted}: run as root, or raise the \
                 hard limit (`ulimit -Hn {0}`).",
                files(count)
            ));
            break;
        }
        while streams.len() < count {
            batches.tick().await;
            let mut opening = tokio::task::JoinSet::new();
            for _ in streams.len()..count.min(streams.len() + BATCH) {
                let proxy = tunnel.proxy.clone();
                opening.spawn(async move { proxy.idle().await });
            }
            while let Some(stream) = opening.join_next().await {
                streams.push(stream??);
            }
        }
        sleep(SETTLING).await;
        table.cells(row(&format!("{count} idle streams"), ground, &tunnel)?);
        let now = used(ground, &tunnel)?;
        let each = |label: &str| {
            let memory =
                |used: &[(&str, f64)]| used.iter().filter(|used| used.0 == label).map(|used| used.1).sum::<f64>();
            (memory(&now) - memory(&base)) * 1024.0 / count as f64
        };
        table.note(format!(
            "An idle stream of {count} takes {:.1} KiB of the exit and {:.1} KiB of the proxy.",
            each("exit"),
            each("proxy")
        ));
    }
    Ok(table)
}

/// Resident memory by process, now.
fn used(ground: &Ground, tunnel: &Tunnel) -> Outcome<Vec<(&'static str, f64)>> {
    ground.processes(tunnel).iter().map(|process| Ok((process.label, process.memory()?.0))).collect()
}

/// Now and at most, for each kind of process; the largest of several relays.
fn row(label: &str, ground: &Ground, tunnel: &Tunnel) -> Outcome<Vec<Cell>> {
    let mut cells = vec![label.into()];
    for kind in ["relay", "exit", "proxy"] {
        let mut most: Option<(f64, f64)> = None;
        for process in ground.processes(tunnel).into_iter().filter(|process| process.label == kind) {
            let (now, peak) = process.memory()?;
            most = Some(most.map_or((now, peak), |most| (most.0.max(now), most.1.max(peak))));
        }
        let cell = |value: Option<f64>| value.map_or(Cell::None, |value| Cell::Number(value, 1));
        cells.extend([cell(most.map(|most| most.0)), cell(most.map(|most| most.1))]);
    }
    Ok(cells)
}
