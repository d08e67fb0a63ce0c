//! The services behind the exit, in the benchmark's own process or another of the same program: a web server with a short answer, and a server of
//! known bytes that gives, takes and checks them, or stays silent.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Outcome, pattern};

/// The port of the web server, as clients of the tunnel see it.
pub(crate) const WEB: u16 = 80;
/// The port of the server of bytes.
pub(crate) const BYTES: u16 = 81;
/// Body of every answer of the web server.
pub(crate) const ANSWER: &[u8] = &[b'n'; 200];
/// Thousands of connections may come at once.
const BACKLOG: u32 = 4096;
/// Bytes read at a time.
const READ: usize = 256 * 1024;

/// Both servers, until dropped.
pub(crate) struct Backend {
    web: SocketAddr,
    bytes: SocketAddr,
    _end: DropGuard,
}

impl Backend {
    pub(crate) fn start() -> Outcome<Self> {
        let end = CancellationToken::new();
        let web = listen(&end, |stream| async move {
            let answer = |_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(ANSWER))))
            };
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        })?;
        let bytes = listen(&end, |stream| async move {
            // A client that breaks off has its own error to report.
            let _ = serve(stream).await;
        })?;
        Ok(Self { web, bytes, _end: end.drop_guard() })
    }

    /// The exit's services.
    pub(crate) fn services(&self) -> Vec<(u16, SocketAddr)> {
        vec![(WEB, self.web), (BYTES, self.bytes)]
    }
}

/// The whole of a process that is only the backend: says in the file where it is, and ends with its standard input,
/// which is to say with the process that started it.
pub(crate) async fn serve_apart(path: &Path) -> Outcome<()> {
    let backend = Backend::start()?;
    let passing = path.with_extension("passing");
    fs::write(&passing, serde_json::to_vec(&backend.services())?)?;
    fs::rename(passing, path)?;
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    Ok(())
}

fn listen<F>(end: &CancellationToken, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Outcome<SocketAddr>
where
    F: Future<Output = ()> + Send + 'static,
{
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let listener: TcpListener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    tokio::spawn(end.clone().run_until_cancelled_owned(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream));
        }
    }));
    Ok(address)
}

/// One line says what is wanted: `DOWN n` for so many bytes, `UP n` to bring them, `IDLE` for one byte and silence.
async fn serve(stream: TcpStream) -> Outcome<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let (verb, count) = line.trim().split_once(' ').unwrap_or((line.trim(), "0"));
    let count: u64 = count.parse()?;
    match verb {
        "DOWN" => {
            let mut sent = 0;
            while sent < count {
                sent += stream.write(pattern::at(sent, count - sent)).await? as u64;
            }
        }
        "UP" => {
            let verdict = match take(&mut stream, count).await? {
                None => "right".to_owned(),
                Some(offset) => format!("wrong in the piece at {offset}"),
            };
            stream.write_all(verdict.as_bytes()).await?;
        }
        _ => {
            stream.write_all(b".").await?;
            stream.read_to_end(&mut Vec::new()).await?;
        }
    }
    stream.shutdown().await?;
    Ok(())
}

/// Reads the known bytes; where they begin to differ or end too soon, roughly.
pub(crate) async fn take(stream: &mut (impl AsyncReadExt + Unpin), count: u64) -> Outcome<Option<u64>> {
    let (mut buffer, mut offset) = (vec![0; READ], 0);
    while offset < count {
        let read = stream.read(&mut buffer).await?;
        if read == 0 || !pattern::matches(offset, &buffer[..read]) {
            return Ok(Some(offset));
        }
        offset += read as u64;
    }
    Ok((offset > count).then_some(count))
}
