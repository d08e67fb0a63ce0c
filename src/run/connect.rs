//! `nws connect`: standard input and output joined to one stream, as `ssh -o ProxyCommand` wants it. Bytes pass as they
//! are; each end of direction is passed on by itself.

use std::fs::File as StdFile;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::Service;

use super::RunError;
use super::reach::{Reach, Through};
use super::shutdown::Shutdown;
use crate::config::Config;
use crate::destination::Destination;
use crate::error::Error;
use crate::proxy::connect::{Connect, Isolation};
use crate::tunnel::copy::both;

/// How long the far side may take to hear of our end when nobody waits for it any more.
const FAREWELL: Duration = Duration::from_secs(1);

/// Joins standard input and output to a stream to `to`, until both directions have ended.
///
/// # Errors
/// When there is no stream, it breaks before both sides have ended, or the end is asked for before that.
pub async fn run(config: Config, to: Destination, through: Through, shutdown: Shutdown) -> Result<(), RunError> {
    let failed = |source| RunError::System { what: "cannot use standard input and output", source };
    let mut stdio = Stdio::take().map_err(failed)?;
    let limits = Arc::new(config.limits.clone());
    let mut reach = Reach::find(&config, &through, std::slice::from_ref(&to), &limits).await?;
    let outcome = tokio::select! {
        outcome = join(&mut reach, &to, &mut stdio, limits.open_timeout) => outcome,
        () = shutdown.requested() => Err(RunError::Failed(format!("{to}: ended before both sides were done"))),
    };
    // Whoever reads our output is not to wait for the farewell.
    drop(stdio);
    reach.close().await;
    outcome
}

async fn join(reach: &mut Reach, to: &Destination, stdio: &mut Stdio, limit: Duration) -> Result<(), RunError> {
    let failed = |error: Error| RunError::Failed(format!("{to}: {error}"));
    let late = |_| RunError::Failed(format!("{to}: no answer within {} s; is it running?", limit.as_secs_f32()));
    // The outcome may be told by the first bytes that come back, so the first ones out can travel with the opening.
    let connect = Connect {
        destination: to.clone(),
        early_data: bytes::Bytes::new(),
        eager: true,
        isolation: Isolation::default(),
    };
    let mut stream = tokio::time::timeout(limit, reach.call(connect)).await.map_err(late)?.map_err(failed)?;
    let (unread, ended) = (stdio.unread.clone(), stdio.ended.clone());
    // Whoever sits at a terminal does not type an end of file after the other side has gone.
    let at_terminal = io::stdin().is_terminal();
    let outcome = tokio::select! {
        outcome = both(stdio, &mut stream) => outcome,
        () = unread.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
        () = ended.cancelled(), if at_terminal => {
            let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
            return Ok(());
        }
    };
    match outcome {
        Ok((up, down)) => {
            tracing::debug!(up, down, "both directions have ended");
            Ok(())
        }
        // Whoever closed our output has what he wanted, as with `| head`.
        Err(_) if unread.is_cancelled() => Ok(()),
        Err(error) => Err(failed(Error::from_io(&error, "the connection broke"))),
    }
}

/// Standard input and output as one stream. Its `shutdown` closes standard output for good, which whoever reads it sees.
struct Stdio {
    input: File,
    output: Option<Output>,
    /// Cancelled when nobody reads our output any more.
    unread: CancellationToken,
    /// Cancelled when our output has been closed because the other side has ended.
    ended: CancellationToken,
}

struct Output {
    file: File,
    _watch: Option<AbortOnDropHandle<()>>,
}

impl Stdio {
    /// Takes both over. The process keeps standard output in name only, so that it can be closed while we go on.
    fn take() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdout(StdFile::options().write(true).open("/dev/null")?)?;
        let unread = CancellationToken::new();
        let watch = watch(output.try_clone()?, unread.clone());
        Ok(Self {
            input: File::from_std(input.into()),
            output: Some(Output { file: File::from_std(output.into()), _watch: watch }),
            unread,
            ended: CancellationToken::new(),
        })
    }
}

/// Watches for the moment when the reader of our output goes, which writing alone would not tell while there is nothing
/// to write. A file cannot be watched, and need not be.
fn watch(output: OwnedFd, unread: CancellationToken) -> Option<AbortOnDropHandle<()>> {
    // It is never written to by this handle, so it may block, and may be something else than a pipe.
    let output = pipe::Sender::from_owned_fd_unchecked(output).ok()?;
    Some(AbortOnDropHandle::new(tokio::spawn(async move {
        if output.ready(Interest::ERROR).await.is_ok() {
            unread.cancel();
        }
    })))
}

impl AsyncRead for Stdio {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_read(cx, buf)
    }
}

impl Stdio {
    /// Remembers that it was our output that failed.
    fn note<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            self.unread.cancel();
        }
        outcome
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(output) = &mut self.output else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let outcome = Pin::new(&mut output.file).poll_write(cx, data);
        self.note(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(output) = &mut self.output else { return Poll::Ready(Ok(())) };
        let outcome = Pin::new(&mut output.file).poll_flush(cx);
        self.note(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        if let Some(output) = self.output.take() {
            // Where input and output are one socket, closing the one leaves the other, and nobody would see an end.
            let _ = SockRef::from(&output.file).shutdown(std::net::Shutdown::Write);
        }
        self.ended.cancel();
        Poll::Ready(Ok(()))
    }
}
