//! Small TCP services for tests, each on a free loopback port: what a tunnel's exit connects to. A backend serves
//! until its handle is dropped. Bodies are the deterministic bytes of [`pattern`], so both ends can compute them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use nostr::hashes::{Hash, HashEngine, sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ANY_PORT;

/// What the banner server says first.
pub const BANNER: &[u8] = b"SSH-2.0-test\r\n";

/// Piece in which long bodies are made; a multiple of the generator's word, so that pieces join without a seam.
const PIECE: usize = 64 * 1024;

/// A running backend.
pub struct Backend {
    /// Where it listens.
    pub addr: SocketAddr,
    _stop: DropGuard,
}

impl Backend {
    /// Serves every connection with this function.
    async fn start<F, S>(serve: S) -> Self
    where
        S: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind(ANY_PORT).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let stop = CancellationToken::new();
        let accepting = stop.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                tokio::spawn(accepting.clone().run_until_cancelled_owned(serve(stream)));
            }
        }));
        Self { addr, _stop: stop.drop_guard() }
    }
}

/// Deterministic bytes.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// The same bytes in pieces, for lengths that should not be held in memory.
pub fn pattern_pieces(seed: u64, len: u64) -> impl Iterator<Item = Bytes> + Send + Sync {
    let mut rng = Rng::with_seed(seed);
    let mut left = len;
    std::iter::from_fn(move || {
        let size = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        left -= size as u64;
        let mut piece = vec![0; size];
        rng.fill(&mut piece);
        (size > 0).then(|| piece.into())
    })
}

/// The SHA-256 of these bytes, in hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    sha256::Hash::hash(bytes).to_string()
}

/// The SHA-256 of a pattern, in hex, whatever its length.
pub fn pattern_sha256(seed: u64, len: u64) -> String {
    let mut engine = sha256::Hash::engine();
    pattern_pieces(seed, len).for_each(|piece| engine.input(&piece));
    sha256::Hash::from_engine(engine).to_string()
}

/// Sends back what comes, and ends when the client ends.
pub async fn echo() -> Backend {
    Backend::start(|stream| async move { copy_back(stream).await }).await
}

/// Says [`BANNER`] before the client says anything, then echoes.
pub async fn banner() -> Backend {
    Backend::start(|mut stream| async move {
        stream.write_all(BANNER).await?;
        copy_back(stream).await
    })
    .await
}

/// Reads until the client ends its direction, then answers with the line `<length> <sha256>` and closes.
pub async fn half_close() -> Backend {
    Backend::start(|mut stream| async move {
        let mut engine = sha256::Hash::engine();
        let (mut len, mut piece) = (0_u64, vec![0; PIECE]);
        loop {
            let read = stream.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            engine.input(&piece[..read]);
            len += read as u64;
        }
        let answer = format!("{len} {}\n", sha256::Hash::from_engine(engine));
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    })
    .await
}

/// Accepts and never reads or writes.
pub async fn black_hole() -> Backend {
    Backend::start(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
        Ok(())
    })
    .await
}

/// An address that refuses: the port stays bound, so that nobody else gets it, but nothing listens.
pub struct RefusedPort {
    /// The address.
    pub addr: SocketAddr,
    _socket: TcpSocket,
}

/// A port that refuses connections for as long as the handle lives.
pub fn refused_port() -> RefusedPort {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(ANY_PORT).expect("a free port");
    RefusedPort { addr: socket.local_addr().expect("a bound address"), _socket: socket }
}

/// An HTTP/1.1 server:
///
/// | request | answer |
/// | --- | --- |
/// | `GET /` | a small HTML page |
/// | `GET /bytes/N` | `pattern(N, N)` with `content-length` |
/// | `GET /chunked/N` | the same, chunked |
/// | `GET /close/N` | the same without a length; ends with the connection |
/// | `GET /slow/N/MS` | N lines `line <i>`, one each MS milliseconds, chunked |
/// | `GET /hang` | nothing, ever |
/// | `GET /status/CODE` | an empty answer with this status |
/// | `POST /sum` | the SHA-256 of the body in hex |
/// | `POST /mirror` | the body, as it comes |
/// | any `/request` | method, target and headers as the server saw them, one a line |
/// | `GET /upgrade` with `Upgrade: echo` | 101, then an echo |
pub async fn http() -> Backend {
    Backend::start(|stream| async move {
        let served = hyper::server::conn::http1::Builder::new()
            // Clients that end their direction behind the request are still answered.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service_fn(respond))
            .with_upgrades()
            .await;
        served.map_err(std::io::Error::other)
    })
    .await
}

type Body = BoxBody<Bytes, hyper::Error>;

async fn respond(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let number = |at: usize| parts.get(at).and_then(|part| part.parse::<u64>().ok()).unwrap_or(0);
    let is_get = *request.method() == Method::GET || *request.method() == Method::HEAD;
    let mut response = Response::new(empty());
    match parts[0] {
        "" if is_get => *response.body_mut() = full("<!doctype html><title>test</title><h1>It works</h1>\n"),
        "bytes" if is_get => {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(number(1)));
            *response.body_mut() = pattern_body(number(1));
        }
        "chunked" if is_get => *response.body_mut() = pattern_body(number(1)),
        "close" if is_get => {
            // An HTTP/1.0 answer has neither chunks nor, here, a length.
            *response.version_mut() = Version::HTTP_10;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            *response.body_mut() = pattern_body(number(1));
        }
        "slow" if is_get => *response.body_mut() = slow_body(number(1), Duration::from_millis(number(2))),
        "hang" => std::future::pending().await,
        "status" => {
            let code = u16::try_from(number(1)).ok().and_then(|code| StatusCode::from_u16(code).ok());
            *response.status_mut() = code.unwrap_or(StatusCode::BAD_REQUEST);
        }
        "sum" if *request.method() == Method::POST => match sum(request.into_body()).await {
            Ok(sum) => *response.body_mut() = full(sum),
            Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
        },
        "mirror" if *request.method() == Method::POST => *response.body_mut() = request.into_body().boxed(),
        "request" => {
            let mut seen = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                seen += &format!("{name}: {}\n", value.to_str().unwrap_or("(not text)"));
            }
            *response.body_mut() = full(seen);
        }
        "upgrade" if request.headers().get(UPGRADE).is_some_and(|protocol| protocol == "echo") => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Ok(upgraded) = upgrade.await {
                    let _ = copy_back(TokioIo::new(upgraded)).await;
                }
            });
        }
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    Ok(response)
}

async fn sum(mut body: Incoming) -> Result<String, hyper::Error> {
    let mut engine = sha256::Hash::engine();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            engine.input(&data);
        }
    }
    Ok(sha256::Hash::from_engine(engine).to_string())
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

fn pattern_body(len: u64) -> Body {
    let pieces = pattern_pieces(len, len).map(|piece| Ok(Frame::data(piece)));
    BodyExt::boxed(StreamBody::new(stream::iter(pieces)))
}

fn slow_body(lines: u64, pause: Duration) -> Body {
    let lines = stream::unfold(0, move |i| async move {
        if i >= lines {
            return None;
        }
        if i > 0 {
            tokio::time::sleep(pause).await;
        }
        Some((Ok(Frame::data(Bytes::from(format!("line {i}\n")))), i + 1))
    });
    BodyExt::boxed(StreamBody::new(lines))
}

async fn copy_back<S: AsyncRead + AsyncWrite>(stream: S) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}
