//! One key that opens thousands of streams a second, and what another key's requests through the same exit notice of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::SinkExt;
use nostr::{Keys, PublicKey};
use nws::envelope::Conversation;
use nws::message::{Message as Said, Type};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use uuid::Uuid;

use crate::Outcome;
use crate::backend::WEB;
use crate::client::Way;
use crate::ground::{Ground, Tunnel};
use crate::options::Options;
use crate::report::{Cell, Table, median, percentile};
use crate::wire;

/// Openings a second.
const RATE: usize = 5_000;
/// How often some of them go out.
const TICK: Duration = Duration::from_millis(5);

pub(crate) async fn measure(options: &Options) -> Outcome<Table> {
    let ground = &Ground::prepare_apart(options).await?;
    let tunnel = ground.tunnel().await?;
    let time = options.brief(1.0, 8.0);
    let columns = ["", "openings/s", "first byte, median ms", "p90 ms", "requests", "exit MiB", "exit CPU s/s"];
    let mut table = Table::new("A flood of openings by one key, and the requests of another", columns);
    requests(&tunnel, options.brief(0.5, 2.0)).await?;
    table.cells(row("before", ground, &tunnel, time).await?);
    for round in 1..=options.few(1, 3) {
        let openings = openings(&tunnel, RATE * usize::try_from(time.as_secs() + 1)?)?;
        let url = &ground.relays.first().ok_or("no relay")?.url;
        let (mut publisher, receiver) = wire::connect(url).await?;
        let _answers = receiver.drain();
        let sent = AtomicUsize::new(0);
        let flood = async {
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for some in openings.chunks((RATE as f64 * TICK.as_secs_f64()) as usize) {
                ticks.tick().await;
                for opening in some {
                    publisher.feed(Message::Text(opening.clone())).await?;
                }
                publisher.flush().await?;
                sent.fetch_add(some.len(), Ordering::Relaxed);
            }
            Outcome::Ok(())
        };
        let flooded = async {
            // Until the flood has come to the exit.
            sleep(Duration::from_millis(300)).await;
            let before = sent.load(Ordering::Relaxed);
            let mut cells = row(&format!("flood {round}"), ground, &tunnel, time).await?;
            let rate = (sent.load(Ordering::Relaxed) - before) as f64 / time.as_secs_f64();
            if let Some(cell) = cells.get_mut(1) {
                *cell = Cell::Number(rate, 0);
            }
            Outcome::Ok(cells)
        };
        let cells = tokio::select! {
            cells = flooded => cells?,
            Err(error) = flood => return Err(error),
        };
        table.cells(cells);
    }
    sleep(Duration::from_secs(2)).await;
    table.cells(row("after", ground, &tunnel, time).await?);
    table.note(
        "The requests are plain HTTP, one at a time, by a proxy of its own key. The flood is of signed events, made before, \
         each with one opening that nobody has seen yet; the flooder, its websocket and the relay's work for it share \
         the processors with everything else. The exit refuses what is above limits.peer_streams_per_second.",
    );
    Ok(table)
}

/// Requests for so long, and what the exit takes meanwhile.
async fn row(label: &str, ground: &Ground, tunnel: &Tunnel, time: Duration) -> Outcome<Vec<Cell>> {
    let (start, before) = (Instant::now(), ground.cpu(tunnel)?);
    let mut times = requests(tunnel, time).await?;
    let used = ground.cpu(tunnel)?.since(before).exit / start.elapsed().as_secs_f64();
    let memory = ground.processes(tunnel).iter().find(|process| process.label == "exit").map(|exit| exit.memory());
    let (middle, high) = (median(&mut times), percentile(&mut times, 90));
    Ok(vec![
        label.into(),
        Cell::None,
        Cell::ms(middle),
        Cell::ms(high),
        Cell::Number(times.len() as f64, 0),
        memory.transpose()?.map_or(Cell::None, |(now, _)| Cell::Number(now, 1)),
        Cell::Number(used, 2),
    ])
}

async fn requests(tunnel: &Tunnel, time: Duration) -> Outcome<Vec<Duration>> {
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        times.push(tunnel.proxy.first_byte(Way::Plain).await?);
    }
    Ok(times)
}

/// Signed openings of distinct streams, all by one key.
fn openings(tunnel: &Tunnel, count: usize) -> Outcome<Vec<Utf8Bytes>> {
    let exit = PublicKey::parse(&tunnel.exit_key)?;
    let conversation = Conversation::new(Keys::generate(), exit)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let opening = || Said {
        nws: Some(1),
        max: Some(65_536),
        destination: Some("x.nostr".into()),
        port: Some(WEB),
        ..Said::new(Uuid::new_v4(), Type::Connect)
    };
    (0..count).map(|_| Ok(Utf8Bytes::try_from(conversation.seal(&[opening()], now)?.frame)?)).collect()
}
