//! Forwarding of absolute-form requests (`GET http://name/`, RFC 9112 section 3.2.2): the request goes over a stream
//! to its authority, the answer comes back as it is, less what belongs to one hop. Bodies are streamed, never held.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Either, Empty};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::pool::{RouteClient, Upload, closed_unanswered, explain};
use super::{Answer, Failure, Session, credentials, failure, fields};
use crate::ErrorKind;
use crate::proxy::listener::Front;
use crate::proxy::open::Route;
use crate::proxy::page::NWS_ERROR;
use crate::tunnel::socket::Socket;

/// Sends the request on and gives back its answer.
pub(super) async fn forward<S: Route>(
    mut request: Request<Incoming>,
    front: &Front<S>,
    session: &Session,
) -> Result<Response<Answer>, Failure> {
    let client = front.pools.client(&front.isolation(&session.client, credentials(request.headers())));
    let on_upgrade = hyper::upgrade::on(&mut request);
    let (mut head, body) = request.into_parts();
    // HTTP/1.0 knows no upgrade (RFC 9110 section 7.8).
    let wanted = fields::upgrade(&head.headers).filter(|_| head.version == Version::HTTP_11);
    let authority = address(&mut head)?;
    fields::strip_hop_by_hop(&mut head.headers);
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad_address())?;
    head.headers.insert(header::HOST, host);
    head.version = Version::HTTP_11;
    if let Some(protocol) = wanted.clone() {
        fields::set_upgrade(&mut head.headers, protocol);
    }

    let mut response = send(&client, head, body).await.map_err(|error| {
        let error = explain(&error, authority.as_str());
        debug!(%error, "could not forward");
        error
    })?;

    // Only the proxy itself may say that the proxy failed.
    response.headers_mut().remove(NWS_ERROR);
    let granted = fields::upgrade(response.headers());
    fields::strip_hop_by_hop(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(_), Some(protocol)) = (wanted, granted) else {
            return Err(failure(ErrorKind::Protocol, format!("{authority} switched to a protocol nobody asked for")));
        };
        let upstream = hyper::upgrade::on(&mut response).await.map_err(|error| {
            failure(ErrorKind::Protocol, format!("{authority} broke off while it switched protocols: {error}"))
        })?;
        fields::set_upgrade(response.headers_mut(), protocol);
        session.take_over(on_upgrade, Box::new(TokioIo::new(upstream)));
    }
    let client = session.client.clone();
    Ok(response.map(|body| Download { body, client }.boxed_unsync()))
}

/// Sends the request. One whose repetition does no harm is sent again when the far end closed without an answer: a
/// server may give up a waiting connection at the very moment it is used (RFC 9110 section 9.2.2).
async fn send<S: Route>(
    client: &RouteClient<S>,
    head: Parts,
    body: Incoming,
) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
    let safe = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let again = (safe && body.is_end_stream()).then(|| head.clone());
    let first = client.request(Request::from_parts(head, Upload::Left(body))).await;
    match (first, again) {
        (Err(error), Some(head)) if closed_unanswered(&error) => {
            debug!("the far end closed without an answer; asking once more");
            client.request(Request::from_parts(head, Either::Right(Empty::new()))).await
        }
        (outcome, _) => outcome,
    }
}

/// Checks the target and rebuilds it without user and password, which must not reach `Host`.
fn address(head: &mut Parts) -> Result<Authority, Failure> {
    let full = head.uri.authority().ok_or_else(bad_address)?;
    let host_and_port = full.as_str().rsplit_once('@').map_or(full.as_str(), |(_, rest)| rest);
    let authority: Authority = host_and_port.parse().map_err(|_| bad_address())?;
    // A port that is no port would be taken for none at all, and the request would go to port 80.
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    if authority.host().is_empty() || !(matches!(port, "" | ":") || authority.port_u16().is_some()) {
        return Err(bad_address());
    }
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let builder = Uri::builder().scheme(Scheme::HTTP).authority(authority.clone()).path_and_query(path);
    head.uri = builder.build().map_err(|_| bad_address())?;
    Ok(authority)
}

fn bad_address() -> Failure {
    Failure::BadRequest("The address is not one of the form http://name:port/path.".to_owned())
}

/// The body of a forwarded answer. When it breaks off, the client's connection ends with a reset: with neither length
/// nor chunks, a plain close would look like the end.
struct Download {
    body: Incoming,
    client: Socket,
}

impl Body for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &frame {
            debug!(%error, "an answer broke off");
            self.client.end_with_reset();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
