//! What the service manager is told (sd_notify(3)): ready, reloading, stopping, a line of status, and that we still run.
//! Without one, when `NOTIFY_SOCKET` is not set, nothing happens. What it gives us, listening sockets, is in `sockets.rs`.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// How often the line of status is looked at; it is sent when it has changed.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Nobody has been told that we are ready.
const STARTING: u8 = 0;
/// The manager knows that we run.
const READY: u8 = 1;
/// The manager knows that we end.
const STOPPING: u8 = 2;

/// How far the process is, which only goes forward: a reload that ends while the process does must not call it ready.
static STATE: AtomicU8 = AtomicU8::new(STARTING);

/// Whether a service manager listens.
#[must_use]
pub fn listens() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Says that the service does its work, and from now on, until `end`, shows what `status` says.
pub fn ready(end: CancellationToken, status: impl Fn() -> String + Send + 'static) {
    if !listens() || STATE.compare_exchange(STARTING, READY, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    let line = status();
    tell(&[NotifyState::Ready, NotifyState::Status(&line)]);
    tokio::spawn(show(end, status, line));
}

/// The first sign of life: tells people what the service waits for before it is ready, and keeps the watchdog quiet for as
/// long as the runtime moves, also while connections drain at the end.
pub fn starting(what: &str) {
    if !listens() {
        return;
    }
    tell(&[NotifyState::Status(what)]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(keep_alive(limit));
    }
}

/// Says, once, that the service is about to end.
pub fn stopping() {
    if listens() && STATE.swap(STOPPING, Ordering::Relaxed) != STOPPING {
        tell(&[NotifyState::Stopping, NotifyState::Status("Ending: open connections may finish")]);
    }
}

/// Says that the configuration is being read again; [`reloaded`] must follow.
pub fn reloading() {
    if listens() && STATE.load(Ordering::Relaxed) == READY {
        // The time lets systemd from version 253 on tell the answer to its own signal from an older one.
        let now = NotifyState::monotonic_usec_now().ok();
        tell(&[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
    }
}

/// Says that the configuration has been read again, or has stayed that of before.
pub fn reloaded() {
    if listens() && STATE.load(Ordering::Relaxed) == READY {
        tell(&[NotifyState::Ready]);
    }
}

/// Shows the status whenever it has changed.
async fn show(end: CancellationToken, status: impl Fn() -> String + Send, mut shown: String) {
    let mut every = tokio::time::interval(STATUS_EVERY);
    while end.run_until_cancelled(every.tick()).await.is_some() {
        let line = status();
        if line != shown {
            tell(&[NotifyState::Status(&line)]);
            shown = line;
        }
    }
}

/// Says at half the time that the manager waits that the runtime still moves.
async fn keep_alive(limit: Duration) {
    let mut every = tokio::time::interval(limit / 2);
    loop {
        every.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// Sends a message; that nobody takes it is no reason to do anything else.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not hear us");
    }
}
