//! The log: tracing's events as lines on standard error. Standard output is for what a command answers.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFilter, LogFormat};

/// Puts another filter in the place of that of the log.
static SET_FILTER: OnceLock<Box<dyn Fn(EnvFilter) -> bool + Send + Sync>> = OnceLock::new();

/// Starts the log of the process. A log that something else started before stays as it is.
pub fn start(config: &LogConfig) {
    // https://no-color.org: set and not empty.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = io::stderr().is_terminal() && !plain;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(config.filter.to_env_filter())
        .with_writer(io::stderr)
        .with_ansi(colours)
        // A log that nobody reads any more must not take the program with it, which complaining about it on the same
        // closed pipe would do.
        .log_internal_errors(false)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    // The only way to fail is a log that is there already, as in tests that run several commands in one process.
    let started = match config.format {
        LogFormat::Human => builder.try_init(),
    };
    if started.is_ok() {
        // Only the first log starts.
        let _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter).is_ok()));
    }
}

/// Logs by another filter from now on; false if this process has no log of ours.
pub fn set_filter(filter: &LogFilter) -> bool {
    SET_FILTER.get().is_some_and(|set| set(filter.to_env_filter()))
}
