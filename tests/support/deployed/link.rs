//! One websocket of a deployed peer to one relay: publishes and waits for `OK`, subscribes, hands on events. It does
//! not reconnect.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nostr::{Event, EventId, JsonUtil, RelayMessage, RelayUrl};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::lock;

/// An event and the relay that brought it.
pub(super) type Arrival = (RelayUrl, Event);

/// The connection; it closes when dropped.
pub(super) struct Link {
    out: mpsc::UnboundedSender<String>,
    waiting: Arc<Mutex<Waiting>>,
    /// Ends the reader, and with it the connection, when the link is dropped.
    _stop: tokio_util::sync::DropGuard,
}

/// Who waits for an answer of the relay.
#[derive(Default)]
struct Waiting {
    closed: bool,
    oks: HashMap<EventId, oneshot::Sender<bool>>,
    eose: Option<oneshot::Sender<()>>,
}

impl Link {
    /// Connects; what subscriptions bring goes to `events`.
    pub(super) async fn open(
        relay: &RelayUrl,
        events: mpsc::UnboundedSender<Arrival>,
        stop: &CancellationToken,
    ) -> io::Result<Self> {
        let url = relay.as_str_without_trailing_slash();
        let stream = TcpStream::connect(url.trim_start_matches("ws://")).await?;
        stream.set_nodelay(true)?;
        let (ws, _) = tokio_tungstenite::client_async(url, stream).await.map_err(io::Error::other)?;
        let (mut sink, mut stream) = ws.split();
        let (out, mut outgoing) = mpsc::unbounded_channel::<String>();
        let stop = stop.child_token();
        let waiting = Arc::<Mutex<Waiting>>::default();

        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Some(frame) = outgoing.recv().await {
                if sink.send(Message::text(frame)).await.is_err() {
                    return;
                }
            }
        }));
        let (answers, relay) = (waiting.clone(), relay.clone());
        let reading = stop.clone();
        tokio::spawn(async move {
            while let Some(Some(Ok(message))) = reading.run_until_cancelled(stream.next()).await {
                let Message::Text(text) = message else { continue };
                match RelayMessage::from_json(text.as_str()) {
                    Ok(RelayMessage::Event { event, .. }) => {
                        let _ = events.send((relay.clone(), event.into_owned()));
                    }
                    Ok(RelayMessage::Ok { event_id, status, .. }) => {
                        if let Some(waiting) = lock(&answers).oks.remove(&event_id) {
                            let _ = waiting.send(status);
                        }
                    }
                    Ok(RelayMessage::EndOfStoredEvents(_)) => {
                        if let Some(waiting) = lock(&answers).eose.take() {
                            let _ = waiting.send(());
                        }
                    }
                    _ => {}
                }
            }
            *lock(&answers) = Waiting { closed: true, ..Waiting::default() };
        });
        Ok(Self { out, waiting, _stop: stop.drop_guard() })
    }

    /// Sends an event now; the future waits for its `OK` and tells whether the relay took it in time.
    pub(super) fn publish(&self, event: &Event, timeout: Duration) -> impl Future<Output = bool> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if !waiting.closed {
                waiting.oks.insert(event.id, answer);
            }
        }
        self.send(&json!(["EVENT", event]));
        async move { matches!(tokio::time::timeout(timeout, answered).await, Ok(Ok(true))) }
    }

    /// Subscribes now; the future ends with the relay's `EOSE`, or fails with the connection.
    pub(super) fn subscribe(&self, filter: &Value) -> impl Future<Output = bool> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if !waiting.closed {
                waiting.eose = Some(answer);
            }
        }
        self.send(&json!(["REQ", "deployed", filter]));
        async move { answered.await.is_ok() }
    }

    fn send(&self, frame: &Value) {
        let _ = self.out.send(frame.to_string());
    }
}
