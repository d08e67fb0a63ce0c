//! The client's connection as hyper reads it: of a request that is a `CONNECT`, the head and no byte more. hyper would
//! take what a client sends behind it along and give it out after the answer only; so it stays in the socket, and can
//! travel with the opening. Any other request, and all that follows it on its connection, passes as it comes.
//!
//! This finds the end of a head, and judges nothing: whether the head is one is for hyper to say.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tunnel::socket::Socket;

/// How a request begins that is held apart.
const CONNECT: &[u8] = b"CONNECT ";

/// What hyper is given to read; shared with who serves its requests.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug)]
enum State {
    /// The head of a request that may be a `CONNECT`.
    Head(Head),
    /// Nothing: the head of a `CONNECT` is read. hyper waits here if it wants more.
    Shut(Option<Waker>),
    /// Everything.
    Open,
}

impl Default for State {
    fn default() -> Self {
        Self::Head(Head::default())
    }
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything behind the request is still in the socket.
    pub(super) fn is_shut(&self) -> bool {
        matches!(*self.state(), State::Shut(_))
    }

    /// The connection is no longer HTTP: everything passes.
    pub(super) fn open(&self) {
        self.change(State::Open);
    }

    /// The request is answered and the next one may come.
    pub(super) fn next_request(&self) {
        if self.is_shut() {
            self.change(State::default());
        }
    }

    fn change(&self, state: State) {
        let before = std::mem::replace(&mut *self.state(), state);
        if let State::Shut(Some(waiting)) = before {
            waiting.wake();
        }
    }
}

/// How much of a request's head has passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Head {
    /// Bytes of `CONNECT ` that it began with.
    begun: usize,
    /// Whether the line that passes is empty so far.
    empty_line: bool,
}

/// What some bytes of a head are.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// All of them belong to it, and more is to come.
    More,
    /// So many of them are its last.
    End(usize),
    /// It is no `CONNECT`.
    Other,
}

impl Head {
    /// Takes the next bytes. A line may end without its carriage return, as it may for hyper.
    fn pass(&mut self, bytes: &[u8]) -> Part {
        for (index, byte) in bytes.iter().enumerate() {
            if let Some(expected) = CONNECT.get(self.begun) {
                if byte != expected {
                    return Part::Other;
                }
                self.begun += 1;
            }
            match byte {
                b'\n' if self.empty_line => return Part::End(index + 1),
                b'\n' => self.empty_line = true,
                b'\r' => {}
                _ => self.empty_line = false,
            }
        }
        Part::More
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Requests {
    client: Socket,
    gate: Arc<Gate>,
}

impl Requests {
    /// The requests of this client, as this gate lets them pass.
    pub(super) const fn new(client: Socket, gate: Arc<Gate>) -> Self {
        Self { client, gate }
    }
}

impl AsyncRead for Requests {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { client, gate } = self.get_mut();
        let mut state = gate.state();
        let head = match &mut *state {
            State::Open => {
                drop(state);
                return Pin::new(client).poll_read(cx, buf);
            }
            State::Shut(waiting) => {
                *waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            State::Head(head) => head,
        };
        let seen = ready!(client.poll_peek(cx, buf.initialize_unfilled()))?;
        // What is read is what was seen: nobody else reads here.
        let seen = &buf.initialize_unfilled()[..seen];
        let mut len = seen.len();
        match head.pass(seen) {
            Part::More => {}
            Part::End(end) => {
                len = end;
                *state = State::Shut(None);
            }
            Part::Other => *state = State::Open,
        }
        drop(state);
        let mut limited = buf.take(len);
        ready!(Pin::new(client).poll_read(cx, &mut limited))?;
        let count = limited.filled().len();
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Requests {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.client).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.client).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.client.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the bytes are, given in pieces of this size: how many belong to the head, `None` for no end.
    fn head_len(bytes: &[u8], piece: usize) -> Option<usize> {
        let mut head = Head::default();
        for (index, piece_bytes) in bytes.chunks(piece).enumerate() {
            match head.pass(piece_bytes) {
                Part::More => {}
                Part::End(len) => return Some(index * piece + len),
                Part::Other => panic!("it is a CONNECT"),
            }
        }
        None
    }

    #[test]
    fn the_head_of_a_connect_ends_where_hyper_ends_it_in_pieces_of_any_size() {
        for head in [
            "CONNECT a:1 HTTP/1.1\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n",
            "CONNECT a:1 HTTP/1.0\n\n",
            "CONNECT a:1 HTTP/1.1\nHost: a\r\n\n",
        ] {
            for behind in ["", "x", "\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"] {
                let all = format!("{head}{behind}");
                for piece in 1..=all.len() {
                    assert_eq!(head_len(all.as_bytes(), piece), Some(head.len()), "{all:?} in {piece}");
                }
            }
            for len in 0..head.len() {
                assert_eq!(head_len(&head.as_bytes()[..len], 3), None);
            }
        }
    }

    #[test]
    fn every_other_method_passes_at_once() {
        for request in ["GET / HTTP/1.1", "CONNECTION / HTTP/1.1", "connect a:1 HTTP/1.1", "\r\nCONNECT a:1"] {
            assert_eq!(Head::default().pass(request.as_bytes()), Part::Other, "{request}");
        }
        assert_eq!(Head::default().pass(b"CONN"), Part::More, "it may become one");
    }
}
