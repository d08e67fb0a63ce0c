//! The log: tracing's events as lines on standard error, as JSON there, or as entries of systemd's journal. Standard output
//! is for what a command answers.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use tracing::{Event, Level};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{DefaultFields, FormatEvent, Writer};
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
            Ok(journal) => {
                let journal = journal.with_field_prefix(Some(JOURNAL_PREFIX.to_owned()));
                (journal.with_priority_mappings(PRIORITIES).boxed(), None)
            }
            Err(error) => (human(), Some(error)),
        },
        LogFormat::Human => (human(), None),
        // Lines, since of an entry with fields journalctl shows the message alone to who does not ask for more.
        LogFormat::Auto if goes_to_the_journal() => (for_the_journal(), None),
        LogFormat::Auto => (human(), None),
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

/// Lines for people.
fn human() -> AnyLayer {
    // https://no-color.org: set and not empty.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    // A log that nobody reads any more must not take the program with it, which complaining about it on the same
    // closed pipe would do.
    layer.with_ansi(io::stderr().is_terminal() && !plain).log_internal_errors(false).boxed()
}

/// Lines for people who read them in the journal.
fn for_the_journal() -> AnyLayer {
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false).log_internal_errors(false);
    layer.event_format(Prioritised(tracing_subscriber::fmt::format().without_time())).boxed()
}

/// One JSON object a line, its fields beside time, level, module and message.
fn json() -> AnyLayer {
    let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
    layer.with_span_list(false).with_writer(io::stderr).log_internal_errors(false).boxed()
}

/// Which of syslog's priorities the levels are, so that `journalctl -p warning` and its colours mean the same in both
/// formats.
const PRIORITIES: PriorityMappings = PriorityMappings {
    error: Priority::Error,
    warn: Priority::Warning,
    info: Priority::Informational,
    debug: Priority::Debug,
    trace: Priority::Debug,
};

/// What the journal takes off a line, and knows its priority by (sd-daemon(3)).
fn mark(level: Level) -> String {
    let priority = match level {
        Level::ERROR => PRIORITIES.error,
        Level::WARN => PRIORITIES.warn,
        Level::INFO => PRIORITIES.info,
        Level::DEBUG => PRIORITIES.debug,
        Level::TRACE => PRIORITIES.trace,
    };
    // The library has the digit as a character.
    format!("<{}>", char::from(priority as u8))
}

/// What a command ends with on standard error, whatever is logged: where the journal reads it, each line is marked as an
/// error.
#[must_use]
pub fn last_words(text: &str) -> String {
    let mark = if goes_to_the_journal() { mark(Level::ERROR) } else { String::new() };
    text.lines().map(|line| format!("{mark}{line}\n")).collect()
}

/// Lines behind their priority. Both are one piece for the writer, or lines of other threads might come between.
struct Prioritised<F>(F);

impl<S, F> FormatEvent<S, DefaultFields> for Prioritised<F>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    F: FormatEvent<S, DefaultFields>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(&mark(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// Whether standard error is connected to the journal (systemd.exec(5), `$JOURNAL_STREAM`): then the time is noted
/// there, and priorities are understood.
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

    #[test]
    fn both_formats_tell_the_journal_the_same_priority() {
        let marks = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE].map(mark);
        assert_eq!(marks, ["<3>", "<4>", "<6>", "<7>", "<7>"]);
    }
}
