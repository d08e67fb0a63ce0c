//! The log: tracing's events as lines on standard error, as JSON there, or as entries of systemd's journal. Standard output
//! is for what a command answers.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFilter, LogFormat};

/// Puts another filter in the place of that of the log.
static SET_FILTER: OnceLock<Box<dyn Fn(EnvFilter) -> bool + Send + Sync>> = OnceLock::new();

/// What the names of our fields begin with in the journal.
const JOURNAL_PREFIX: &str = "NWS";

/// Starts the log of the process. A log that something else started before stays as it is.
pub fn start(config: &LogConfig) {
    let (layer, failed) = match config.format {
        LogFormat::Json => (json(), None),
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(journal) => (journal.with_field_prefix(Some(JOURNAL_PREFIX.to_owned())).boxed(), None),
            Err(error) => (human(true), Some(error)),
        },
        LogFormat::Human => (human(true), None),
        // The journal notes the time itself, and shows nothing but the line to who does not ask for fields.
        LogFormat::Auto => (human(!goes_to_the_journal()), None),
    };
    // The only way to fail is a log that is there already, as in tests that run several commands in one process.
    let (filter, handle) = reload::Layer::new(config.filter.to_env_filter());
    if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
        // Only the first log starts.
        let _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter).is_ok()));
    }
    if let Some(error) = failed {
        tracing::warn!(%error, "the journal cannot be written to; logging to standard error");
    }
}

/// Logs by another filter from now on; false if this process has no log of ours.
pub fn set_filter(filter: &LogFilter) -> bool {
    SET_FILTER.get().is_some_and(|set| set(filter.to_env_filter()))
}

type AnyLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Lines for people, with the time if nobody else notes it.
fn human(timed: bool) -> AnyLayer {
    // https://no-color.org: set and not empty.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    // A log that nobody reads any more must not take the program with it, which complaining about it on the same
    // closed pipe would do.
    let layer = layer.with_ansi(io::stderr().is_terminal() && !plain).log_internal_errors(false);
    if timed { layer.boxed() } else { layer.without_time().boxed() }
}

/// One JSON object a line, its fields beside time, level, module and message.
fn json() -> AnyLayer {
    let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
    layer.with_span_list(false).with_writer(io::stderr).log_internal_errors(false).boxed()
}

/// Whether standard error is connected to the journal (systemd.exec(5), `$JOURNAL_STREAM`): then the time is noted
/// there.
fn goes_to_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
    stderr.is_ok_and(|stderr| is_stream(&stream, stderr.dev(), stderr.ino()))
}

/// Whether `$JOURNAL_STREAM` speaks of this file.
fn is_stream(variable: &str, device: u64, inode: u64) -> bool {
    variable == format!("{device}:{inode}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_stream_that_systemd_names_is_the_journal() {
        assert!(is_stream("9:42", 9, 42));
        for other in ["", "9", "9:43", "8:42", "9:42:1", "x:y"] {
            assert!(!is_stream(other, 9, 42), "{other:?}");
        }
    }
}
