//! Plain HTTP over streams that were given out before their opening failed: the client still gets the status.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use nws::proxy::connect::BoxedIo;
use nws::{Error, ErrorKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::harness::{Proxy, Script, within};

/// When the failure shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    /// Whenever one looks.
    AtOnce,
    /// When one looks for the second time, which is before the request is there.
    SoonAfter,
    /// When something has been written.
    OnceWritten,
}

/// A stream whose opening fails.
struct Doomed {
    error: Error,
    fails: Fails,
    due: bool,
    reader: Option<Waker>,
}

impl AsyncRead for Doomed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.due {
            return Poll::Ready(Err(self.error.clone().into()));
        }
        self.reader = Some(cx.waker().clone());
        if self.fails == Fails::SoonAfter {
            self.due = true;
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl AsyncWrite for Doomed {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.due {
            return Poll::Ready(Err(self.error.clone().into()));
        }
        self.due = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(self.error.clone().into()))
    }
}

/// Says all of it, as far as it is taken, and gives back the head of the answer.
async fn ask(proxy: &Proxy, request: &str) -> String {
    let mut client = proxy.client().await;
    let (mut from, mut to) = client.0.split();
    let mut answer = Vec::new();
    let hear = async {
        while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
            assert!(from.read_buf(&mut answer).await.unwrap() > 0, "no answer");
        }
    };
    // The proxy may answer and close before it has taken everything.
    let (_, ()) = within(async { tokio::join!(to.write_all(request.as_bytes()), hear) }).await;
    String::from_utf8_lossy(&answer).to_ascii_lowercase()
}

#[tokio::test]
async fn an_opening_that_fails_with_the_request_inside_has_its_status_and_is_not_tried_again() {
    let long = format!("Content-Length: 300000\r\n\r\n{}", "x".repeat(300_000));
    for fails in [Fails::AtOnce, Fails::SoonAfter, Fails::OnceWritten] {
        let route = Script::new(move |connect| async move {
            assert!(connect.eager, "the client is told nothing before the answer");
            let kind = ErrorKind::from_code(connect.destination.to_string().split('.').next().unwrap());
            let error = Error::new(kind, "it cannot be had");
            let due = fails == Fails::AtOnce;
            Ok(Box::new(Doomed { error, fails, due, reader: None }) as BoxedIo)
        });
        let proxy = Proxy::start(route.clone()).await;
        let mut asked = 0;
        for kind in ErrorKind::ALL {
            for (method, rest) in [("GET", "\r\n"), ("POST", "Content-Length: 4\r\n\r\nbody"), ("POST", &long)] {
                let head = ask(&proxy, &format!("{method} http://{kind}.fail/ HTTP/1.1\r\n{rest}")).await;
                let status = kind.http_status().as_u16();
                assert!(head.starts_with(&format!("http/1.1 {status} ")), "{fails:?} {method}: {head}");
                assert!(head.contains(&format!("nws-error: {kind}\r\n")), "{fails:?} {method}: {head}");
                asked += 1;
                assert_eq!(route.seen().len(), asked, "{fails:?} {method} {kind} was sent again");
            }
        }
    }
}
