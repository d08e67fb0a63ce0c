//! The clients of the demo: one that speaks SOCKS5 to the proxy, one that speaks HTTP CONNECT.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use fast_socks5::client::{Config, Socks5Stream};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// What was fetched.
pub(super) struct Fetched {
    pub(super) body: Vec<u8>,
    pub(super) first_byte: Instant,
}

/// Fetches a path over SOCKS5; the name is resolved by the proxy.
pub(super) async fn over_socks(proxy: SocketAddr, name: &str, path: &str) -> io::Result<Fetched> {
    let stream =
        Socks5Stream::connect(proxy, name.to_owned(), 80, Config::default()).await.map_err(io::Error::other)?;
    get(stream, name, path).await
}

/// Fetches a path over HTTP CONNECT.
pub(super) async fn over_connect(proxy: SocketAddr, name: &str, path: &str) -> io::Result<Fetched> {
    let stream = TcpStream::connect(proxy).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection.with_upgrades());
    let authority = format!("{name}:80");
    let request = Request::connect(&authority)
        .header(header::HOST, &authority)
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    if response.status() != StatusCode::OK {
        return Err(io::Error::other(format!("the proxy answers {}", response.status())));
    }
    let stream = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
    get(TokioIo::new(stream), name, path).await
}

async fn get<S>(stream: S, name: &str, path: &str) -> io::Result<Fetched>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, name)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let first_byte = Instant::now();
    if response.status() != StatusCode::OK {
        return Err(io::Error::other(format!("the web server answers {}", response.status())));
    }
    let body = response.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Fetched { body: body.into(), first_byte })
}
