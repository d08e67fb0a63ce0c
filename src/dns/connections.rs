//! Questions over TCP (RFC 7766): so many connections at once, each until it has asked nothing for a while. What is answered
//! is in `server.rs`. hickory's own listener takes any number of connections, and does not rest when descriptors are short.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use hickory_server::net::BufDnsStreamHandle;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_server::server::{Request, RequestHandler, ResponseHandle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a connection may take for its next question, and for taking an answer.
const IDLE: Duration = Duration::from_secs(5);

/// Pause after a failure to accept: descriptors come back as connections end.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers connections as long as it is polled, each with a place among `places`; what is above waits in the system's queue.
pub(super) async fn serve<H: RequestHandler + Clone>(listener: TcpListener, handler: H, places: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Of those above the limit one waits here, which keeps a place free as long as nobody needs it.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                while connections.try_join_next().is_some() {}
                let (handler, places) = (handler.clone(), Arc::clone(&places));
                connections.spawn(async move {
                    if let Err(error) = answer(stream, peer, &handler, &places).await {
                        tracing::debug!(%error, "a connection for questions has ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection for questions");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Answers one connection, one question after the other, so that nobody takes more than its share. Where all places are
/// taken it ends after an answer (RFC 7766, section 6.2.3), or those who ask all the time would keep the others out.
async fn answer<H: RequestHandler>(
    mut stream: TcpStream,
    peer: SocketAddr,
    handler: &H,
    places: &Semaphore,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let question = async {
            let mut question = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut question).await?;
            Ok::<_, io::Error>(question)
        };
        let question = timeout(IDLE, question).await??;
        let Some(answer) = reply(question, peer, handler).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        // In one piece: some programs take no length without its message.
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
        if places.available_permits() == 0 {
            return Ok(());
        }
    }
}

/// The answer to a message; none to what is no question, and ends the connection.
async fn reply<H: RequestHandler>(question: Vec<u8>, peer: SocketAddr, handler: &H) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes([*question.first()?, *question.get(1)?]);
    let Ok(request) = Request::from_bytes(question, peer, Protocol::Tcp) else {
        return Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok();
    };
    if request.metadata.message_type == MessageType::Response {
        return None;
    }
    let (handle, mut answers) = BufDnsStreamHandle::with_buffer_size(peer, 1);
    let response = ResponseHandle::new(peer, handle, Protocol::Tcp);
    handler.handle_request::<_, TokioTime>(&request, response).await;
    let (answer, _) = answers.next().now_or_never()??.into_parts();
    Some(answer)
}
