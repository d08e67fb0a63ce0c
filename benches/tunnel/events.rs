//! Events for each MiB and each request, counted by one who has subscribed to everything; measured apart, since
//! listening costs the relay.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use crate::Outcome;
use crate::client::Way;
use crate::ground::{Ground, Tunnel};
use crate::options::Options;
use crate::report::{Cell, Table};
use crate::wire;

/// How long after the end of something its last acknowledgements may come.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Counts events by their author, on all relays; an event on two relays counts twice, since it costs twice.
struct Listener {
    counts: Arc<Mutex<Counts>>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// Events and bytes of each author.
type Counts = HashMap<String, (usize, usize)>;

impl Listener {
    async fn start(ground: &Ground) -> Outcome<Self> {
        let counts: Arc<Mutex<Counts>> = Arc::default();
        let mut tasks = Vec::new();
        for relay in &ground.relays {
            // Past the shaper, whose rate is not for us.
            let mut connection = wire::connect(&relay.direct).await?;
            wire::subscribe(&mut connection, serde_json::json!({"kinds": [28333], "limit": 1})).await?;
            let counts = Arc::clone(&counts);
            let (publisher, mut receiver) = connection;
            tasks.push(AbortOnDropHandle::new(tokio::spawn(async move {
                let _publisher = publisher;
                while let Ok(frame) = receiver.event().await {
                    let author = frame.split("\"pubkey\":\"").nth(1).and_then(|rest| rest.get(..64));
                    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                    let count = counts.entry(author.unwrap_or_default().to_owned()).or_default();
                    (count.0, count.1) = (count.0 + 1, count.1 + frame.len());
                }
            })));
        }
        Ok(Self { counts, _tasks: tasks })
    }

    /// What came since the last time: of the exit and of the proxy, events and bytes.
    async fn take(&self, exit: &str, options: &Options) -> [(usize, usize); 2] {
        tokio::time::sleep(LAST_WORDS + options.half_delay() * 4).await;
        let counts = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        let mut sums = [(0, 0); 2];
        for (author, count) in counts {
            let sum = &mut sums[usize::from(author != exit)];
            *sum = (sum.0 + count.0, sum.1 + count.1);
        }
        sums
    }
}

pub(crate) async fn measure(ground: &Ground, tunnel: &Tunnel, options: &Options) -> Outcome<Table> {
    let columns = ["for each", "events of the exit", "of the proxy", "KB of events of the exit", "of the proxy"];
    let mut table = Table::new("Events", columns);
    let exit = tunnel.exit_key.clone();
    let listener = Listener::start(ground).await?;
    // The session stands before anything is counted.
    tunnel.proxy.first_byte(Way::Socks).await?;
    listener.take(&exit, options).await;
    let size = options.transfer().min(16 << 20);
    let mib = size as f64 / 1024.0 / 1024.0;
    let requests = options.few(20, 100);
    let mut row = |label: &str, sums: [(usize, usize); 2], count: f64| {
        let [of_exit, of_proxy] = sums;
        let events = |sum: (usize, usize)| Cell::Number(sum.0 as f64 / count, 2);
        let bytes = |sum: (usize, usize)| Cell::Number(sum.1 as f64 / count / 1e3, 2);
        table.row([label.into(), events(of_exit), events(of_proxy), bytes(of_exit), bytes(of_proxy)]);
    };
    tunnel.proxy.download(size).await?;
    row("MiB down", listener.take(&exit, options).await, mib);
    tunnel.proxy.upload(size).await?;
    row("MiB up", listener.take(&exit, options).await, mib);
    for way in [Way::Socks, Way::SocksAtOnce, Way::Plain] {
        for _ in 0..requests {
            tunnel.proxy.first_byte(way).await?;
        }
        row(&format!("request, {}", way.label()), listener.take(&exit, options).await, requests as f64);
    }
    let mut kept = tunnel.proxy.kept().await?;
    kept.request(false).await?;
    listener.take(&exit, options).await;
    for _ in 0..requests {
        kept.request(false).await?;
    }
    row("request, plain HTTP on a kept connection", listener.take(&exit, options).await, requests as f64);
    let streams = options.few(50, 500);
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..streams {
        let proxy = tunnel.proxy.clone();
        opening.spawn(async move { proxy.first_byte(Way::Plain).await });
    }
    while let Some(outcome) = opening.join_next().await {
        outcome??;
    }
    row("request of many at the same time, plain HTTP", listener.take(&exit, options).await, streams as f64);
    table.note(format!(
        "Counted by a subscriber of all events on each relay, over {} MiB, {requests} requests one after another, and \
         {streams} at the same time.",
        size >> 20
    ));
    Ok(table)
}
