//! Short requests a second over plain HTTP, by few and many clients, beside the exchanges of raw events that the relay
//! allows to as many at once.

use std::time::{Duration, Instant};

use futures_util::SinkExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::Outcome;
use crate::client::Proxy;
use crate::ground::{Ground, Tunnel};
use crate::limit::Pair;
use crate::options::Options;
use crate::report::{Cell, Table};
use crate::wire::{PATIENCE, Publisher, Receiver};

/// Clients at once.
const CLIENTS: [usize; 3] = [1, 16, 128];
/// Bytes of stream in an event of an exchange: with what is around them about 600 bytes of plaintext.
const PLAINTEXT: usize = 330;
/// Most exchanges of one measurement.
const EXCHANGES_MAX: usize = 8000;

pub(crate) async fn measure(ground: &Ground, tunnel: &Tunnel, options: &Options) -> Outcome<Table> {
    let time = options.brief(0.7, 3.0);
    let columns = [
        "clients",
        "raw exchanges/s",
        "requests/s, new connections",
        "of raw",
        "requests/s, kept connections",
        "of raw",
        "relay CPU ms/request",
        "exit",
        "proxy",
    ];
    let mut table = Table::new("Short requests", columns);
    for clients in CLIENTS {
        let raw = exchanges(ground, clients, time, options).await?;
        let fresh = requests(&tunnel.proxy, clients, false, time).await?;
        let before = ground.cpu(tunnel)?;
        let start = Instant::now();
        let kept = requests(&tunnel.proxy, clients, true, time).await?;
        let [relay, exit, proxy, _] = ground.cpu(tunnel)?.since(before).each(kept * start.elapsed().as_secs_f64());
        let each = |used: Option<f64>| used.map_or(Cell::None, |seconds| Cell::Number(seconds * 1e3, 2));
        let per_second = |rate| Cell::Number(rate, 0);
        table.row([
            per_second(clients as f64),
            per_second(raw),
            per_second(fresh),
            Cell::Share(fresh / raw),
            per_second(kept),
            Cell::Share(kept / raw),
            each(relay),
            each(exit),
            each(proxy),
        ]);
    }
    table.note(
        "Plain HTTP through the proxy, 200 bytes of body. A raw exchange is a signed event there and, on its arrival, \
         a signed event back, each of about 600 bytes of plaintext, as many at once as there are clients; with several \
         relays on the first. CPU is of the requests on kept connections.",
    );
    Ok(table)
}

/// Requests a second by so many clients, each with the next when the one before is answered.
async fn requests(proxy: &Proxy, clients: usize, keep: bool, time: Duration) -> Outcome<f64> {
    let start = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let proxy = proxy.clone();
        running.spawn(async move {
            let mut count = 0_usize;
            let mut kept = if keep { Some(proxy.kept().await?) } else { None };
            while start.elapsed() < time {
                let request = async {
                    match &mut kept {
                        Some(kept) => kept.request(false).await,
                        None => proxy.kept().await?.request(true).await,
                    }
                };
                timeout(PATIENCE, request).await.map_err(|_| "no answer to a short request")??;
                count += 1;
            }
            Outcome::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(outcome) = running.join_next().await {
        count += outcome??;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Exchanges of raw events a second, so many at once.
async fn exchanges(ground: &Ground, at_once: usize, time: Duration, options: &Options) -> Outcome<f64> {
    let relay = ground.relays.first().ok_or("no relay")?;
    let pair = Pair::new();
    let [(mut asks, mut answered), (answers, asked)] = pair.connect(&relay.url).await?;
    let count = options.few(1500, EXCHANGES_MAX).min(at_once * 4000);
    let (there, back) = (pair.sign(count, PLAINTEXT, false)?, pair.sign(count, PLAINTEXT, true)?);
    let answering = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(answer(answers, asked, back)));
    let start = Instant::now();
    let (mut done, mut under_way) = (0_usize, 0_usize);
    for event in there {
        if under_way == at_once {
            answered.event().await?;
            (done, under_way) = (done + 1, under_way - 1);
        }
        if start.elapsed() > time {
            break;
        }
        asks.send(Message::Text(event)).await?;
        under_way += 1;
    }
    let took = start.elapsed();
    drop(answering);
    Ok(done as f64 / took.as_secs_f64())
}

/// Publishes an answer for each event that comes.
async fn answer(mut answers: Publisher, mut asked: Receiver, back: Vec<Utf8Bytes>) {
    let (came, mut due) = mpsc::unbounded_channel();
    let hear = async move { while asked.event().await.is_ok() && came.send(()).is_ok() {} };
    let speak = async {
        let mut back = back.into_iter();
        // As many as are due in one go, as the program does.
        while due.recv().await.is_some() {
            let Some(event) = back.next() else { return };
            if answers.feed(Message::Text(event)).await.is_err() {
                return;
            }
            if due.is_empty() && answers.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::join!(hear, speak);
}
