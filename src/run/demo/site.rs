//! The web site of the demo: a page and a file.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// The page.
pub(super) const PAGE: &str = "<!doctype html>\n<title>nws</title>\n<h1>It works</h1>\n\
    <p>This page came through a Nostr relay, encrypted from end to end.</p>\n";

/// Where the file is.
pub(super) const FILE_PATH: &str = "/file";

/// Bytes of the file.
const FILE_SIZE: usize = 16 * 1024 * 1024;

/// The file: bytes without a pattern, the same every time.
pub(super) fn file() -> Vec<u8> {
    let mut bytes = vec![0; FILE_SIZE];
    fastrand::Rng::with_seed(74).fill(&mut bytes);
    bytes
}

/// Serves the site for as long as the process lives.
pub(super) async fn serve(listener: TcpListener) {
    let file = Bytes::from(file());
    while let Ok((stream, _)) = listener.accept().await {
        let file = file.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(request.uri().path(), &file);
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn answer(path: &str, file: &Bytes) -> Response<Full<Bytes>> {
    let (status, kind, body) = match path {
        "/" => (StatusCode::OK, "text/html; charset=utf-8", Bytes::from_static(PAGE.as_bytes())),
        FILE_PATH => (StatusCode::OK, "application/octet-stream", file.clone()),
        _ => (StatusCode::NOT_FOUND, "text/plain", Bytes::from_static(b"There is only / and /file here.\n")),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
