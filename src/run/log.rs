//! The log: tracing's events as lines on standard error. Standard output is for what a command answers.

use std::io::{self, IsTerminal};

use crate::config::{LogConfig, LogFormat};

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
        .log_internal_errors(false);
    // The only way to fail is a log that is there already, as in tests that run several commands in one process.
    let _ = match config.format {
        LogFormat::Human => builder.try_init(),
    };
}
