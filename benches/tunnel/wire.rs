//! A bare websocket to a relay, as fast as the program's own (no Nagle, quick acknowledgement), that knows just enough
//! of NIP-01 to publish frames which are ready and to see events come.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use nostr::RelayUrl;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::Outcome;

/// Longest time that a relay may be silent while something is owed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The half that publishes.
pub(crate) type Publisher = SplitSink<WebSocketStream<QuickAck>, Message>;

/// The half that events come from.
pub(crate) struct Receiver(SplitStream<WebSocketStream<QuickAck>>);

/// Connects to `ws://HOST:PORT`.
pub(crate) async fn connect(url: &RelayUrl) -> Outcome<(Publisher, Receiver)> {
    let address = url.as_str_without_trailing_slash();
    let host = address.strip_prefix("ws://").ok_or("the raw limit is measured over ws:// only")?;
    let host = host.split('/').next().unwrap_or_default();
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let stream = TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let (socket, _) = timeout(PATIENCE, tokio_tungstenite::client_async(address, QuickAck(stream))).await??;
    let (publisher, receiver) = socket.split();
    Ok((publisher, Receiver(receiver)))
}

/// Asks for events by this filter, and waits a moment for the relay to know it: some send no `EOSE`.
pub(crate) async fn subscribe(
    (publisher, receiver): &mut (Publisher, Receiver),
    filter: serde_json::Value,
) -> Outcome<()> {
    publisher.send(Message::text(serde_json::json!(["REQ", "bench", filter]).to_string())).await?;
    let _ = timeout(Duration::from_millis(500), receiver.until("[\"EOSE\"")).await;
    Ok(())
}

impl Receiver {
    /// The next event's frame; other messages are skipped.
    pub(crate) async fn event(&mut self) -> Outcome<Utf8Bytes> {
        self.until("[\"EVENT\"").await
    }

    async fn until(&mut self, start: &str) -> Outcome<Utf8Bytes> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.map_err(|_| "the relay is silent")? {
                Some(Ok(Message::Text(text))) if text.starts_with(start) => return Ok(text),
                Some(Ok(Message::Text(text))) if text.starts_with("[\"OK\"") && text.contains("false") => {
                    return Err(format!("the relay refuses an event: {text}").into());
                }
                Some(Ok(Message::Text(text))) if text.starts_with("[\"NOTICE\"") => eprintln!("the relay says: {text}"),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Err("the relay ended the connection".into()),
            }
        }
    }

    /// Reads and forgets what comes until the connection ends, so that the relay's answers do not pile up.
    pub(crate) fn drain(mut self) -> tokio_util::task::AbortOnDropHandle<()> {
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(Ok(message)) = self.0.next().await {
                if message.to_text().is_ok_and(|text| text.starts_with("[\"OK\"") && text.contains(",false,")) {
                    eprintln!("the relay refuses an event: {message}");
                }
            }
        }))
    }
}

/// A connection whose segments are acknowledged at once, as `src/relay/transport.rs` has it: relays that leave Nagle's
/// algorithm on would otherwise be measured at 40 ms an event.
pub(crate) struct QuickAck(TcpStream);

impl AsyncRead for QuickAck {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.0).poll_read(cx, buf);
        if buf.filled().len() > before {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            let _ = self.0.set_quickack(true);
        }
        outcome
    }
}

impl AsyncWrite for QuickAck {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
