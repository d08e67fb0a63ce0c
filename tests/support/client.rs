//! A plain Nostr client over one websocket (NIP-01): sends what it is told, returns what comes. It never reconnects
//! and hides nothing.

use futures_util::{SinkExt, StreamExt};
use nostr::{
    ClientMessage, Event, EventBuilder, Filter, JsonUtil, Keys, Kind, RelayMessage, RelayUrl, SubscriptionId, Tag,
};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use super::soon;

/// The ephemeral kind of NIP-74 messages.
pub const KIND: u16 = 28333;

/// One connection to a relay.
pub struct Client {
    /// The websocket beneath, for what the methods do not cover.
    pub ws: WebSocketStream<TcpStream>,
}

impl Client {
    /// Connects, or says why not.
    pub async fn try_connect(url: &RelayUrl) -> tungstenite::Result<Self> {
        let url = url.as_str_without_trailing_slash();
        let stream = TcpStream::connect(url.trim_start_matches("ws://")).await?;
        stream.set_nodelay(true)?;
        let (ws, _) = soon("websocket handshake", tokio_tungstenite::client_async(url, stream)).await?;
        Ok(Self { ws })
    }

    /// Connects.
    pub async fn connect(url: &RelayUrl) -> Self {
        Self::try_connect(url).await.expect("the relay takes the connection")
    }

    /// Sends a message.
    pub async fn send(&mut self, message: ClientMessage<'_>) {
        self.ws.send(Message::text(message.as_json())).await.expect("the connection stands");
    }

    /// Publishes an event without waiting for its `OK`.
    pub async fn publish(&mut self, event: &Event) {
        self.send(ClientMessage::event(event.clone())).await;
    }

    /// The next Nostr message; panics when the connection ends or nothing comes.
    pub async fn next(&mut self) -> RelayMessage<'static> {
        loop {
            match soon("a message of the relay", self.ws.next()).await {
                Some(Ok(Message::Text(json))) => return RelayMessage::from_json(json.as_str()).expect("Nostr message"),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no Nostr message: {other:?}"),
            }
        }
    }

    /// The next event that a subscription brings; other messages are skipped.
    pub async fn next_event(&mut self) -> Event {
        loop {
            if let RelayMessage::Event { event, .. } = self.next().await {
                return event.into_owned();
            }
        }
    }

    /// The next `OK`: whether, and why not; other messages are skipped.
    pub async fn next_ok(&mut self) -> (bool, String) {
        loop {
            if let RelayMessage::Ok { status, message, .. } = self.next().await {
                return (status, message.into_owned());
            }
        }
    }

    /// Subscribes and waits for the end of stored events.
    pub async fn subscribe(&mut self, id: &str, filter: Filter) {
        self.send(ClientMessage::req(SubscriptionId::new(id), filter)).await;
        loop {
            if let RelayMessage::EndOfStoredEvents(_) = self.next().await {
                return;
            }
        }
    }

    /// Subscribes to the tunnel's messages for this key.
    pub async fn subscribe_to(&mut self, keys: &Keys) {
        self.subscribe("tunnel", Filter::new().kind(Kind::from(KIND)).pubkey(keys.public_key())).await;
    }

    /// Reads until the connection ends; the close frame's code, if one came.
    pub async fn until_closed(&mut self) -> Option<u16> {
        let mut code = None;
        loop {
            match soon("the end of the connection", self.ws.next()).await {
                Some(Ok(Message::Close(frame))) => code = frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return code,
            }
        }
    }
}

/// A tunnel event with this content, from a key of its own, for this key.
pub fn message_to(recipient: &Keys, content: impl Into<String>) -> Event {
    let tag = Tag::public_key(recipient.public_key());
    EventBuilder::new(Kind::from(KIND), content).tag(tag).sign_with_keys(&Keys::generate()).expect("event")
}
