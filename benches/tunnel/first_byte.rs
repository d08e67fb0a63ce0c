//! Time to first byte: cold, by a proxy process that has never met the exit; warm, in each language; and beside a
//! saturating download in the same session. Each beside two hops of the relay, which is the least there can be.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::Outcome;
use crate::client::Way;
use crate::ground::{Ground, Tunnel};
use crate::limit;
use crate::options::Options;
use crate::report::{Cell, Table, median, percentile};

/// Small events that the hop is measured by, before and after.
const HOPS: usize = 50;
/// Longest time that one kind of warm request is repeated for, on relays that are far.
const WARM_MAX: Duration = Duration::from_secs(6);
/// Longest time that one kind of request is repeated for beside a download, once there are a few.
const LOADED_MAX: Duration = Duration::from_secs(10);
/// As many in any case.
const LOADED_MIN: usize = 3;
/// Pause before each request beside the download, so that they do not follow its rhythm.
const PAUSE: Duration = Duration::from_millis(25);

/// Cold and warm.
pub(crate) async fn measure(ground: &Ground, tunnel: &Tunnel, options: &Options) -> Outcome<Table> {
    let columns = ["first byte", "median ms", "p90 ms", "two hops ms", "above them ms", "samples"];
    let mut table = Table::new("Time to first byte", columns);
    let mut rows = Vec::new();
    let mut hops = nearest_hop(ground, options).await?;
    for way in [Way::Socks, Way::Plain] {
        let mut times = Vec::new();
        for _ in 0..options.few(3, 9) {
            let (_process, proxy) = ground.fresh_proxy(tunnel).await?;
            times.push(proxy.first_byte(way).await?);
        }
        rows.push((format!("cold, {}", way.label()), times));
    }
    for way in Way::ALL {
        // The first one warms what there is to warm.
        tunnel.proxy.first_byte(way).await?;
        let start = std::time::Instant::now();
        let mut times = Vec::new();
        while times.len() < options.few(20, 150) && start.elapsed() < WARM_MAX {
            times.push(tunnel.proxy.first_byte(way).await?);
        }
        rows.push((format!("warm, {}", way.label()), times));
    }
    let mut kept = tunnel.proxy.kept().await?;
    let mut times = Vec::new();
    for _ in 0..options.few(20, 50) {
        let start = std::time::Instant::now();
        kept.request(false).await?;
        times.push(start.elapsed());
    }
    rows.push(("warm, plain HTTP on a kept connection".to_owned(), times));
    hops = (hops + nearest_hop(ground, options).await?) / 2;
    for (label, mut times) in rows {
        let (middle, high) = (median(&mut times), percentile(&mut times, 90));
        let above = (middle.as_secs_f64() - 2.0 * hops.as_secs_f64()) * 1e3;
        let samples = Cell::Number(times.len() as f64, 0);
        table.row([
            label.into(),
            Cell::ms(middle),
            Cell::ms(high),
            Cell::ms(hops * 2),
            Cell::Number(above, 2),
            samples,
        ]);
    }
    table.note(
        "From the client's connecting to the first byte of the answer (200 bytes). Cold is the first request that a \
         proxy process ever makes. A hop is the median of a small event (about 1 KB) from its publisher through the \
         relay to its subscriber, one at a time.",
    );
    Ok(table)
}

/// Beside a download that takes all there is.
pub(crate) async fn under_load(tunnel: &Tunnel, options: &Options) -> Outcome<Table> {
    let ways = [Way::Socks, Way::SocksAtOnce, Way::Plain];
    let samples = options.few(8, 40);
    let mut idle = Vec::new();
    for way in ways {
        tunnel.proxy.first_byte(way).await?;
        let mut times = Vec::new();
        for _ in 0..samples {
            times.push(tunnel.proxy.first_byte(way).await?);
        }
        idle.push(times);
    }
    let proxy = tunnel.proxy.clone();
    // Far more than will be taken; it ends with the handle.
    let download = AbortOnDropHandle::new(tokio::spawn(async move { proxy.download(1 << 40).await }));
    // Until windows have grown to what they will be.
    sleep(options.brief(1.0, 3.0) + options.half_delay() * 20).await;
    let mut table = Table::new(
        "A small request beside a saturating download in the same session",
        ["first byte", "idle median ms", "loaded median ms", "loaded p90 ms", "more ms"],
    );
    for (way, mut idle) in ways.into_iter().zip(idle) {
        let (mut loaded, start) = (Vec::new(), std::time::Instant::now());
        while loaded.len() < samples && (loaded.len() < LOADED_MIN || start.elapsed() < LOADED_MAX) {
            sleep(PAUSE).await;
            loaded.push(tunnel.proxy.first_byte(way).await?);
        }
        let (before, middle, high) = (median(&mut idle), median(&mut loaded), percentile(&mut loaded, 90));
        let more = Cell::Number((middle.as_secs_f64() - before.as_secs_f64()) * 1e3, 2);
        table.row([way.label().into(), Cell::ms(before), Cell::ms(middle), Cell::ms(high), more]);
    }
    if download.is_finished() {
        return Err(match download.detach().await? {
            Ok(_) => "the download ended".into(),
            Err(error) => error,
        });
    }
    drop(download);
    Ok(table)
}

/// The hop of the nearest relay: what a program that chooses well would see.
async fn nearest_hop(ground: &Ground, options: &Options) -> Outcome<Duration> {
    let mut nearest = Duration::MAX;
    for relay in &ground.relays {
        nearest = nearest.min(limit::hop(&relay.url, options.few(10, HOPS)).await?);
    }
    Ok(nearest)
}
