//! How a process ends: the first SIGTERM or Ctrl-C stops new work and lets open connections finish, for so long as
//! `limits.drain_timeout` says; a second signal ends it at once. One [`Shutdown`] goes from the top down to every task.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::signal::unix::{self, SignalKind};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use super::manager;

/// What a command may take after its connections are drained or cut, to tell its peers and to tidy up.
const TIDY_UP: Duration = Duration::from_secs(1);

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: a service manager.
    Terminate,
}

impl Signal {
    /// The exit code of a process that this signal ended, as shells count: 128 and the number of the signal.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// The signals of this process, from now on: the default action, to die, is off once this has returned.
///
/// # Errors
///
/// The system does not let us register for them.
pub fn signals() -> io::Result<impl Stream<Item = Signal> + Send + 'static> {
    let stream = |kind: SignalKind, signal: Signal| {
        unix::signal(kind).map(|source| {
            stream::unfold(source, move |mut source| async move { source.recv().await.map(|()| (signal, source)) })
        })
    };
    let interrupts = stream(SignalKind::interrupt(), Signal::Interrupt)?;
    let terminations = stream(SignalKind::terminate(), Signal::Terminate)?;
    Ok(stream::select(interrupts, terminations))
}

/// How the waiting for open connections ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every tracked task has ended.
    All,
    /// The time is up; so many tasks were still running.
    TimedOut(usize),
}

/// The end of the process, shared by everything that runs in it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    token: CancellationToken,
    tracker: TaskTracker,
    drain_timeout: Duration,
    deadline: Arc<OnceLock<Instant>>,
}

impl Shutdown {
    /// A process that runs, and that will give its connections so long to finish.
    #[must_use]
    pub fn new(drain_timeout: Duration) -> Self {
        Self { token: CancellationToken::new(), tracker: TaskTracker::new(), drain_timeout, deadline: Arc::default() }
    }

    /// Asks everything to end; the time for it starts with the first call.
    pub fn request(&self) {
        self.deadline();
        manager::stopping();
        self.token.cancel();
    }

    /// Whether the end has been asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves when the end is asked for. Listeners stop accepting then; connections go on.
    pub fn requested(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    /// The token behind [`Shutdown::requested`], for code that takes one. Do not cancel it: call
    /// [`Shutdown::request`].
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The tasks that the end waits for.
    #[must_use]
    pub const fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Runs a task that the end waits for: one for each connection.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Asks everything to end, if nobody has yet, and waits for the tracked tasks: at most for the drain time, counted
    /// from when the end was asked for. A command calls this while its links to relays still stand.
    pub async fn drain(&self) -> Drained {
        self.request();
        self.tracker.close();
        match timeout_at(self.deadline(), self.tracker.wait()).await {
            Ok(()) => Drained::All,
            Err(_) => match self.tracker.len() {
                0 => Drained::All,
                cut => {
                    tracing::warn!(connections = cut, "the time to finish is up; the connections still open are cut");
                    Drained::TimedOut(cut)
                }
            },
        }
    }

    /// Turns signals into the end: the first asks for it, the second calls `end` with the exit code, which is not
    /// expected to return.
    pub async fn watch(self, signals: impl Stream<Item = Signal>, end: impl FnOnce(u8)) {
        let mut signals = pin!(signals);
        let Some(first) = signals.next().await else { return };
        tracing::info!(signal = ?first, drain = ?self.drain_timeout, "ending; a second signal ends at once");
        self.request();
        if let Some(second) = signals.next().await {
            end(second.exit_code());
        }
    }

    /// Runs a command to its end, with a bound on the time after the end was asked for: a command that does not heed
    /// it is dropped, which counts as an end and not as a failure.
    ///
    /// # Errors
    ///
    /// Those of the command.
    pub async fn supervise<E>(&self, command: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let overdue = async {
            self.token.cancelled().await;
            tokio::time::sleep_until(self.deadline() + TIDY_UP).await;
        };
        tokio::select! {
            biased;
            result = command => result,
            () = overdue => {
                tracing::warn!("ending with work undone: the command did not end in time");
                Ok(())
            }
        }
    }

    /// When the drain time is up, counted from the first call.
    fn deadline(&self) -> Instant {
        *self.deadline.get_or_init(|| Instant::now() + self.drain_timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use tokio::sync::{mpsc, oneshot};

    const DRAIN: Duration = Duration::from_secs(10);

    /// Signals that the test sends.
    fn channel() -> (mpsc::UnboundedSender<Signal>, impl Stream<Item = Signal>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, stream::unfold(receiver, |mut r| async move { r.recv().await.map(|signal| (signal, r)) }))
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_asks_and_the_second_ends_with_its_own_code() {
        for (second, code) in [(Signal::Interrupt, 130), (Signal::Terminate, 143)] {
            let shutdown = Shutdown::new(DRAIN);
            let (sender, signals) = channel();
            let (ended, end) = oneshot::channel();
            tokio::spawn(shutdown.clone().watch(signals, move |code| ended.send(code).unwrap()));
            assert!(!shutdown.is_requested());
            sender.send(Signal::Terminate).unwrap();
            shutdown.requested().await;
            sender.send(second).unwrap();
            assert_eq!(end.await, Ok(code));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_the_last_task_and_no_longer() {
        let shutdown = Shutdown::new(DRAIN);
        for seconds in [1, 4, 2] {
            shutdown.spawn(tokio::time::sleep(Duration::from_secs(seconds)));
        }
        let start = Instant::now();
        assert_eq!(shutdown.drain().await, Drained::All);
        assert_eq!(start.elapsed().as_secs(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_ends_with_the_drain_time_counted_from_the_request() {
        let shutdown = Shutdown::new(DRAIN);
        shutdown.spawn(pending::<()>());
        let start = Instant::now();
        shutdown.request();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(shutdown.drain().await, Drained::TimedOut(1));
        assert_eq!(start.elapsed().as_secs(), DRAIN.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn no_time_to_drain_is_no_wait() {
        let shutdown = Shutdown::new(Duration::ZERO);
        assert_eq!(shutdown.drain().await, Drained::All);
        shutdown.spawn(pending::<()>());
        assert_eq!(shutdown.drain().await, Drained::TimedOut(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_does_not_heed_the_end_is_dropped() {
        let shutdown = Shutdown::new(DRAIN);
        let start = Instant::now();
        shutdown.request();
        assert_eq!(shutdown.supervise(pending::<Result<(), ()>>()).await, Ok(()));
        assert_eq!(start.elapsed(), DRAIN + TIDY_UP);
    }

    #[tokio::test(start_paused = true)]
    async fn the_result_of_a_command_comes_through() {
        let shutdown = Shutdown::new(DRAIN);
        assert_eq!(shutdown.supervise(async { Err::<(), _>("failed") }).await, Err("failed"));
        let heeding = async {
            shutdown.requested().await;
            Err::<(), _>("late")
        };
        shutdown.request();
        assert_eq!(shutdown.supervise(heeding).await, Err("late"));
    }
}
