//! One GET over the way that relays are reached on: the NIP-11 document of a relay, and what NIP-05 asks of a domain.
//! Redirections are not followed: neither specification allows them.

use std::io;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use url::{Position, Url};

use super::transport::Place;
use super::upstream::Upstream;

/// Longest answer that is read.
const ANSWER_MAX: usize = 256 * 1024;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The time that it is there, as HTTP writes it (RFC 9110 section 5.6.7).
    pub date: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// Fetches a document within `limit`, with TLS if the scheme is `https` or `wss`.
///
/// # Errors
/// There is no connection, or no answer of HTTP in time, or too long a one.
pub async fn get(url: &Url, upstream: Option<&Upstream>, accept: &str, limit: Duration) -> io::Result<Answer> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs_f32()));
    timeout(limit, exchange(url, upstream, accept)).await.map_err(|_| late())?
}

async fn exchange(url: &Url, upstream: Option<&Upstream>, accept: &str) -> io::Result<Answer> {
    let place = Place::of(url)?;
    let stream = place.secure(place.tcp(upstream).await?).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let host = &url[Position::BeforeHost..Position::AfterPort];
    let request = Request::get(&url[Position::BeforePath..Position::AfterQuery])
        .header(header::HOST, host)
        .header(header::ACCEPT, accept)
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(io::Error::other)?.to_bytes();
    drop(driver);
    Ok(Answer { status, date, body })
}
