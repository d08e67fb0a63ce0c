//! How many bytes of a peer may pass in a second, over all its streams and both directions, and how long a stream may be
//! without any.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytesize::ByteSize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::pace::Pace;

/// What a peer that was quiet may send ahead of its pace: a page loads at once.
const AHEAD: Duration = Duration::from_secs(1);

/// The pace of one peer: so many bytes a second; 0 is no limit.
pub(crate) fn of_peer(rate: ByteSize) -> Pace {
    Pace::new(rate.as_u64() as f64, AHEAD)
}

/// When bytes of a stream last passed.
#[derive(Debug, Clone)]
pub(crate) struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    fn last(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when nothing has passed for so long; zero is never.
    pub(crate) async fn ceases_for(&self, limit: Duration) {
        if limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let until = *self.last() + limit;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// A stream at the pace of its peer.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    stream: S,
    pace: Arc<Pace>,
    activity: Activity,
    /// Waits for the time to read on, and to write on.
    pauses: [Option<Pin<Box<Sleep>>>; 2],
}

/// Places in [`Paced::pauses`].
const READING: usize = 0;
const WRITING: usize = 1;

impl<S> Paced<S> {
    /// Puts a stream under the pace.
    pub(crate) fn new(stream: S, pace: Arc<Pace>) -> Self {
        Self { stream, pace, activity: Activity(Arc::new(Mutex::new(Instant::now()))), pauses: [None, None] }
    }

    /// Tells when bytes passed.
    pub(crate) fn activity(&self) -> Activity {
        self.activity.clone()
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>, place: usize) -> Poll<()> {
        loop {
            if let Some(pause) = &mut self.pauses[place] {
                ready!(pause.as_mut().poll(cx));
                self.pauses[place] = None;
            }
            match self.pace.resumes_at() {
                None => return Poll::Ready(()),
                Some(at) => self.pauses[place] = Some(Box::pin(sleep_until(at))),
            }
        }
    }

    fn passed(&self, bytes: usize) {
        if bytes > 0 {
            self.pace.spend(bytes);
            *self.activity.last() = Instant::now();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pause(cx, READING));
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.passed(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_pause(cx, WRITING));
        let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, data))?;
        self.passed(taken);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_streams_of_a_peer_share_its_pace_in_both_directions() {
        let pace = Arc::new(of_peer(ByteSize::b(1_000)));
        let start = Instant::now();
        let (here, mut there) = duplex(100_000);
        let mut here = Paced::new(here, Arc::clone(&pace));
        let (other, mut beyond) = duplex(100_000);
        let mut other = Paced::new(other, pace);
        here.write_all(&[0; 5_000]).await.unwrap();
        there.read_exact(&mut [0; 5_000]).await.unwrap();
        beyond.write_all(&[0; 5_000]).await.unwrap();
        other.read_exact(&mut [0; 5_000]).await.unwrap();
        other.write_all(&[0]).await.unwrap();
        let took = start.elapsed();
        assert!((Duration::from_secs(9)..Duration::from_secs(10)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let start = Instant::now();
        let (here, _there) = duplex(10_000_000);
        Paced::new(here, Arc::new(of_peer(ByteSize::b(0)))).write_all(&[0; 9_000_000]).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_idle_when_nothing_has_passed_for_so_long() {
        let limit = Duration::from_secs(60);
        let (here, _there) = duplex(1_000);
        let mut here = Paced::new(here, Arc::new(of_peer(ByteSize::b(0))));
        let (start, activity) = (Instant::now(), here.activity());
        tokio::time::advance(limit / 2).await;
        here.write_all(b"x").await.unwrap();
        activity.ceases_for(limit).await;
        assert_eq!(start.elapsed(), limit / 2 + limit);
    }
}
