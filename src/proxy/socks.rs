//! SOCKS5 (RFC 1928, RFC 1929): what a client says before its bytes flow. The messages are read by fast-socks5, over
//! an [`Exchange`] that takes nothing beyond the request from the socket and holds the library's replies back; the
//! reply to the request is written here, once its outcome is known.
//!
//! Different from the library's own ways:
//! * user and password are read here: the library writes both into its log and breaks off at an empty password;
//! * it answers 05 to a name that is not UTF-8 and to a request cut short; here these are 04, and silence.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use fast_socks5::Socks5Command;
use fast_socks5::server::{AuthMethod, AuthMethodSuccessState, Socks5ServerProtocol, SocksServerError};
use fast_socks5::util::target_addr::{AddrError, TargetAddr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::connect::{Connect, Destination, EARLY_DATA_MAX, Host};
use super::listener::Front;
use super::open::{Route, open};
use crate::ErrorKind;
use crate::tunnel::copy::copy;
use crate::tunnel::socket::Socket;

/// SOCKS4's "request rejected".
pub(super) const SOCKS4_REFUSED: [u8; 8] = [0x00, 0x5b, 0, 0, 0, 0, 0, 0];
/// The reply "succeeded".
const SUCCEEDED: u8 = 0x00;
/// The reply to BIND and UDP ASSOCIATE.
const COMMAND_NOT_SUPPORTED: u8 = 0x07;
/// The reply to an address that is no name, IPv4 or IPv6 address.
const ADDRESS_TYPE_NOT_SUPPORTED: u8 = 0x08;

/// Why there is no request to serve.
enum Refusal {
    /// The client is told with this reply.
    Reply(u8),
    /// The client has been told by the library (FF: no common method).
    NoCommonMethod,
    /// There is nobody to tell, or nothing of SOCKS to tell it in.
    Broken(SocksServerError),
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self::Broken(SocksServerError::Io { source, context: "exchanging SOCKS messages" })
    }
}

/// Serves one client whose first byte is 5.
pub(super) async fn serve<S: Route>(mut client: Socket, front: &Front<S>, deadline: Instant) {
    let request = tokio::select! {
        request = timeout_at(deadline, read_request(&client)) => request,
        // It has not asked for anything yet.
        () = front.cancel.cancelled() => return,
    };
    let (destination, credentials) = match request {
        Ok(Ok(request)) => request,
        Ok(Err(Refusal::Reply(code))) => {
            debug!(code, "refused a SOCKS5 request");
            client.try_say(&reply(code));
            return client.close(&front.cancel).await;
        }
        Ok(Err(Refusal::NoCommonMethod)) => {
            debug!("a SOCKS5 client offers neither no-auth nor user and password");
            return client.close(&front.cancel).await;
        }
        Ok(Err(Refusal::Broken(error))) => return debug!(%error, "SOCKS5 handshake broke off"),
        Err(_) => return debug!("SOCKS5 handshake took too long"),
    };

    let early_data = client.take_ready(EARLY_DATA_MAX);
    let connect = Connect { destination, early_data, eager: false, isolation: front.isolation(&client, credentials) };
    let outcome = tokio::select! {
        outcome = open(front.route.clone(), connect, front.limits.open_timeout) => outcome,
        () = client.reset() => return debug!("the client left before its stream was open"),
    };
    let code = outcome.as_ref().map_or_else(|error| error.kind().socks_reply(), |_| SUCCEEDED);
    if client.write_all(&reply(code)).await.is_err() {
        return debug!("the client left before the reply");
    }
    match outcome {
        Ok(stream) => copy(client.clone(), stream, &client).await,
        Err(_) => client.close(&front.cancel).await,
    }
}

/// A reply (RFC 1928 section 6). `BND.ADDR` is unspecified: the exit does not tell its own address, and clients do not
/// look at it after CONNECT.
const fn reply(code: u8) -> [u8; 10] {
    [0x05, code, 0x00, 0x01, 0, 0, 0, 0, 0, 0]
}

/// Method negotiation, user and password if offered, and the request.
async fn read_request(client: &Socket) -> Result<(Destination, Option<String>), Refusal> {
    let mut exchange = Exchange { client: client.clone(), replies: BytesMut::new() };
    let chosen = match Socks5ServerProtocol::start(&mut exchange).negotiate_auth(&METHODS).await {
        Ok(chosen) => chosen,
        Err(SocksServerError::AuthMethodUnacceptable(_)) => {
            exchange.send().await?;
            return Err(Refusal::NoCommonMethod);
        }
        Err(error) => return Err(Refusal::Broken(error)),
    };
    let credentials = match chosen.method {
        Method::None => None,
        Method::Password => read_credentials(chosen.io).await?,
    };
    let (_, command, target) = chosen.finish_auth().read_command().await.map_err(refusal)?;
    if command != Socks5Command::TCPConnect {
        return Err(Refusal::Reply(COMMAND_NOT_SUPPORTED));
    }
    let destination = match target {
        TargetAddr::Ip(address) => Destination { host: Host::Ip(address.ip()), port: address.port() },
        TargetAddr::Domain(name, _) if name.is_empty() => {
            return Err(Refusal::Reply(ErrorKind::HostUnreachable.socks_reply()));
        }
        TargetAddr::Domain(name, port) => Destination { host: Host::parse(&name), port },
    };
    Ok((destination, credentials))
}

/// What the client is told when its request cannot be read.
fn refusal(error: SocksServerError) -> Refusal {
    match &error {
        SocksServerError::UnknownCommand(_) => Refusal::Reply(COMMAND_NOT_SUPPORTED),
        SocksServerError::AddrError(AddrError::IncorrectAddressType) => Refusal::Reply(ADDRESS_TYPE_NOT_SUPPORTED),
        SocksServerError::AddrError(AddrError::Utf8(_)) => Refusal::Reply(ErrorKind::HostUnreachable.socks_reply()),
        SocksServerError::UnsupportedSocksVersion(_) => Refusal::Reply(ErrorKind::Protocol.socks_reply()),
        _ => Refusal::Broken(error),
    }
}

/// The methods offered, the preferred one first: a client that offers a password as well has one to tell.
const METHODS: [Method; 2] = [Method::Password, Method::None];

/// A method of authentication that the listener understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// User and password (RFC 1929); any is accepted, and sets the client's streams apart.
    Password,
    /// No authentication.
    None,
}

/// The method that both sides know.
struct Chosen<T> {
    method: Method,
    io: T,
}

impl<T> AuthMethod<T> for Method {
    type StartingState = Chosen<T>;

    fn method_id(self) -> u8 {
        match self {
            Self::Password => 0x02,
            Self::None => 0x00,
        }
    }

    fn new(self, io: T) -> Chosen<T> {
        Chosen { method: self, io }
    }
}

impl<T> AuthMethodSuccessState<T> for Chosen<T> {
    fn into_inner(self) -> T {
        self.io
    }
}

/// Reads user and password and accepts them (RFC 1929). Empty ones are none at all.
async fn read_credentials(exchange: &mut Exchange) -> io::Result<Option<String>> {
    if exchange.read_u8().await? != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not version 1 of user/password"));
    }
    let user = read_counted(exchange).await?;
    let password = read_counted(exchange).await?;
    exchange.write_all(&[1, 0]).await?;
    if user.is_empty() && password.is_empty() {
        return Ok(None);
    }
    // NUL between them, so that no two pairs are written alike.
    Ok(Some(format!("{}\0{}", text(user), text(password))))
}

/// A field with a length byte before it.
async fn read_counted(exchange: &mut Exchange) -> io::Result<Vec<u8>> {
    let mut field = vec![0; usize::from(exchange.read_u8().await?)];
    exchange.read_exact(&mut field).await?;
    Ok(field)
}

/// Bytes as text: UTF-8, or else one character per byte, so that different bytes stay different.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| error.as_bytes().iter().copied().map(char::from).collect())
}

/// The client's end as the library sees it. It reads no further than it is asked, so what a client sends behind its
/// request stays in the socket. Replies are held until the next read; a flush does not send them, because the library
/// flushes replies to broken requests, and these are ours to give.
struct Exchange {
    client: Socket,
    replies: BytesMut,
}

impl Exchange {
    /// Sends the replies held back.
    async fn send(&mut self) -> io::Result<()> {
        self.client.write_all_buf(&mut self.replies).await
    }
}

impl AsyncRead for Exchange {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.replies.has_remaining() {
            let sent = ready!(Pin::new(&mut this.client).poll_write(cx, &this.replies))?;
            this.replies.advance(sent);
        }
        Pin::new(&mut this.client).poll_read(cx, buf)
    }
}

impl AsyncWrite for Exchange {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.replies.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(cx)
    }
}
