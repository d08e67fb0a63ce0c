//! Clients of the proxy in each language that it speaks, and when the first byte of the answer came.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Outcome;
use crate::backend::{ANSWER, BYTES, WEB, take};
use crate::pattern;

/// Longest time for one short request, far above what anything should take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The greeting of SOCKS5 without a password.
const GREETING: [u8; 3] = [5, 1, 0];

/// A proxy and the exit that is asked for through it.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) name: String,
}

/// How a client talks to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// SOCKS5, each step after the answer to the one before.
    Socks,
    /// SOCKS5, everything in one breath, the request to the service included.
    SocksAtOnce,
    /// HTTP `CONNECT`, the request after the answer.
    Connect,
    /// HTTP `CONNECT`, the request behind it at once.
    ConnectAtOnce,
    /// A plain HTTP request to the proxy.
    Plain,
}

impl Way {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Socks, Self::SocksAtOnce, Self::Connect, Self::ConnectAtOnce, Self::Plain];

    /// How the tables call it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Socks => "SOCKS5, request after the reply",
            Self::SocksAtOnce => "SOCKS5, all at once",
            Self::Connect => "CONNECT, request after the reply",
            Self::ConnectAtOnce => "CONNECT, all at once",
            Self::Plain => "plain HTTP",
        }
    }
}

impl Proxy {
    async fn dial(&self) -> Outcome<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn socks_request(&self, port: u16) -> Vec<u8> {
        let mut request = vec![5, 1, 0, 3, u8::try_from(self.name.len()).unwrap_or(u8::MAX)];
        request.extend_from_slice(self.name.as_bytes());
        request.extend_from_slice(&port.to_be_bytes());
        request
    }

    /// A stream to a service, opened in SOCKS5.
    async fn socks(&self, port: u16) -> Outcome<TcpStream> {
        let mut stream = self.dial().await?;
        stream.write_all(&GREETING).await?;
        stream.read_exact(&mut [0; 2]).await?;
        stream.write_all(&self.socks_request(port)).await?;
        socks_reply(&mut stream).await?;
        Ok(stream)
    }

    /// A connection for plain HTTP requests.
    pub(crate) async fn kept(&self) -> Outcome<Kept> {
        let request = |last: &str| format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n{last}\r\n", self.name);
        Ok(Kept { stream: self.dial().await?, request: request(""), last_request: request("Connection: close\r\n") })
    }

    /// One short request on a new connection, from the connecting to the first byte of the answer, which is checked.
    pub(crate) async fn first_byte(&self, way: Way) -> Outcome<Duration> {
        let outcome = timeout(PATIENCE, self.try_first_byte(way)).await;
        outcome.unwrap_or_else(|_| Err("no answer".into())).map_err(|error| format!("{}: {error}", way.label()).into())
    }

    async fn try_first_byte(&self, way: Way) -> Outcome<Duration> {
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.name);
        let connect = format!("CONNECT {0}:{WEB} HTTP/1.1\r\nHost: {0}:{WEB}\r\n\r\n", self.name);
        let start = Instant::now();
        let mut stream = match way {
            Way::Socks => {
                let mut stream = self.socks(WEB).await?;
                stream.write_all(request.as_bytes()).await?;
                stream
            }
            Way::SocksAtOnce => {
                let mut stream = self.dial().await?;
                stream.write_all(&[&GREETING, &*self.socks_request(WEB), request.as_bytes()].concat()).await?;
                stream.read_exact(&mut [0; 2]).await?;
                socks_reply(&mut stream).await?;
                stream
            }
            Way::Connect => {
                let mut stream = self.dial().await?;
                stream.write_all(connect.as_bytes()).await?;
                connect_reply(&mut stream).await?;
                stream.write_all(request.as_bytes()).await?;
                stream
            }
            Way::ConnectAtOnce => {
                let mut stream = self.dial().await?;
                stream.write_all((connect + &request).as_bytes()).await?;
                connect_reply(&mut stream).await?;
                stream
            }
            Way::Plain => {
                let mut kept = self.kept().await?;
                kept.stream.write_all(kept.last_request.as_bytes()).await?;
                kept.stream
            }
        };
        let first = stream.read_u8().await?;
        let took = start.elapsed();
        let mut answer = vec![first];
        stream.read_to_end(&mut answer).await?;
        if !answer.starts_with(b"HTTP/1.1 200") || !answer.ends_with(ANSWER) {
            return Err(format!("a wrong answer: {}", String::from_utf8_lossy(&answer)).into());
        }
        Ok(took)
    }

    /// Downloads the known bytes and compares them; from the opening to the last one.
    pub(crate) async fn download(&self, size: u64) -> Outcome<Duration> {
        let start = Instant::now();
        let mut stream = self.socks(BYTES).await?;
        stream.write_all(format!("DOWN {size}\n").as_bytes()).await?;
        if let Some(offset) = take(&mut stream, size).await? {
            return Err(format!("the download of {size} bytes differs or ends behind {offset}").into());
        }
        Ok(start.elapsed())
    }

    /// Uploads the known bytes, which the service compares; until it says so.
    pub(crate) async fn upload(&self, size: u64) -> Outcome<Duration> {
        let start = Instant::now();
        let mut stream = self.socks(BYTES).await?;
        stream.write_all(format!("UP {size}\n").as_bytes()).await?;
        let mut sent = 0;
        while sent < size {
            sent += stream.write(pattern::at(sent, size - sent)).await? as u64;
        }
        let mut verdict = String::new();
        stream.read_to_string(&mut verdict).await?;
        if verdict == "right" { Ok(start.elapsed()) } else { Err(format!("the upload arrived {verdict}").into()) }
    }

    /// A stream that has carried one byte and stays open.
    pub(crate) async fn idle(&self) -> Outcome<TcpStream> {
        let opened = async {
            let mut stream = self.socks(BYTES).await?;
            stream.write_all(b"IDLE\n").await?;
            stream.read_u8().await?;
            Ok(stream)
        };
        timeout(PATIENCE, opened).await.unwrap_or_else(|_| Err("a stream does not open".into()))
    }
}

/// A connection to the proxy for plain HTTP, kept for many requests.
pub(crate) struct Kept {
    stream: TcpStream,
    request: String,
    last_request: String,
}

impl Kept {
    /// One request and its whole answer; `last` asks for the end of the connection.
    pub(crate) async fn request(&mut self, last: bool) -> Outcome<()> {
        let request = if last { &self.last_request } else { &self.request };
        self.stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(512);
        loop {
            if self.stream.read_buf(&mut answer).await? == 0 {
                return Err(format!("the answer ends early: {}", String::from_utf8_lossy(&answer)).into());
            }
            if answer.ends_with(ANSWER) && answer.starts_with(b"HTTP/1.1 200") {
                return Ok(());
            }
            if answer.len() > 4096 || answer.len() > 12 && !answer.starts_with(b"HTTP/1.1 200") {
                return Err(format!("a wrong answer: {}", String::from_utf8_lossy(&answer)).into());
            }
        }
    }
}

async fn socks_reply(stream: &mut TcpStream) -> Outcome<()> {
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await?;
    if reply[1] == 0 { Ok(()) } else { Err(format!("SOCKS5 refuses with {}", reply[1]).into()) }
}

async fn connect_reply(stream: &mut TcpStream) -> Outcome<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    if head.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("CONNECT is refused: {head}").into()) }
}
