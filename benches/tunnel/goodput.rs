//! One stream, down and up, beside the raw limit; and what each process spends on a MiB of it.

use crate::Outcome;
use crate::ground::{Ground, Tunnel};
use crate::machine;
use crate::options::Options;
use crate::report::{Cell, Table};

/// Bytes of a MiB.
const MIB: f64 = 1024.0 * 1024.0;
/// Share of the processors that others may take before a run is called disturbed.
const DISTURBED: f64 = 0.1;

/// What one transfer gave.
pub(crate) struct Transfer {
    label: &'static str,
    /// Bytes of stream a second.
    rate: f64,
    /// CPU milliseconds for each MiB: relay, exit, proxy, benchmark.
    cpu: [Option<f64>; 4],
    /// Processors that these were busy on.
    ours: f64,
    /// Processors that everybody else was busy on.
    others: f64,
}

/// Transfers once each way, after a little to warm up.
pub(crate) async fn measure(ground: &Ground, tunnel: &Tunnel, options: &Options) -> Outcome<Vec<Transfer>> {
    let size = options.transfer();
    tunnel.proxy.download(size.min(1 << 20)).await?;
    let mut transfers = Vec::new();
    for label in ["down", "up"] {
        let (before, busy_before) = (ground.cpu(tunnel)?, machine::busy()?);
        let took = match label {
            "down" => tunnel.proxy.download(size).await?,
            _ => tunnel.proxy.upload(size).await?,
        };
        let (used, busy) = (ground.cpu(tunnel)?.since(before), machine::busy()? - busy_before);
        let cpu = used.each(size as f64 / MIB).map(|each| each.map(|seconds| seconds * 1e3));
        let seconds = took.as_secs_f64();
        let ours = used.each(seconds).into_iter().flatten().sum::<f64>();
        transfers.push(Transfer { label, rate: size as f64 / seconds, cpu, ours, others: busy / seconds - ours });
    }
    Ok(transfers)
}

/// The table, with the raw limit in bytes a second, the mean of before and after.
pub(crate) fn table(transfers: &[Transfer], limit: f64, options: &Options) -> Table {
    let columns =
        ["one stream", "MB/s", "of the raw limit", "relay CPU ms/MiB", "exit", "proxy", "benchmark", "processors busy"];
    let mut table = Table::new("Goodput", columns);
    for Transfer { label, rate, cpu, ours, .. } in transfers {
        let mut cells = vec![Cell::from(*label), Cell::Number(rate / 1e6, 2), Cell::Share(rate / limit)];
        cells.extend(cpu.map(|each| each.map_or(Cell::None, |each| Cell::Number(each, 1))));
        cells.push(Cell::Number(*ours, 2));
        table.cells(cells);
    }
    table.note(format!(
        "{:.0} MiB each way, one stream over SOCKS5, every byte compared; the raw limit is the mean of before and \
         after, {:.2} MB/s. CPU in user mode and kernel, from /proc; the benchmark is client, backend and, if any, \
         shapers.",
        options.transfer() as f64 / MIB,
        limit / 1e6
    ));
    let others = transfers.iter().map(|transfer| transfer.others).fold(0.0, f64::max);
    if others > DISTURBED * machine::processors() as f64 {
        table.note(format!("**Disturbed**: other programs kept {others:.1} processors busy meanwhile."));
    }
    table
}
