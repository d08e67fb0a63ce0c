//! What is logged: a filter in the syntax of `tracing_subscriber::EnvFilter` and a format. Not here: the logging
//! itself (`run::log`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::error::ValueError;

/// Settings of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What is logged, by level and module.
    pub filter: LogFilter,
    /// How a line is written.
    pub format: LogFormat,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogFormat {
    /// One line for people: time, level, module, message, fields.
    Human,
    /// One JSON object a line.
    Json,
    /// Entries of systemd's journal, with fields of their own.
    Journald,
    /// For people; where standard error leads to the journal, with the priority for it and without the time.
    #[default]
    Auto,
}

/// A filter that is known to parse, such as `info` or `nws=debug,info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter for so many `-v` (positive) or `-q` (negative); none at 0.
    #[must_use]
    pub fn for_verbosity(steps: i16) -> Option<Self> {
        let text = match steps {
            0 => return None,
            1 => "nws=debug,info",
            2 => "nws=trace,debug",
            3.. => "trace",
            -1 => "warn",
            -2 => "error",
            ..=-3 => "off",
        };
        Some(Self(text.to_owned()))
    }

    /// The filter as tracing takes it.
    #[must_use]
    pub fn to_env_filter(&self) -> EnvFilter {
        // It parsed when it was made; were that ever untrue, the default is better than no log.
        let filter = EnvFilter::try_new(&self.0).unwrap_or_else(|_| EnvFilter::new("info"));
        // The relay library calls every client that vanishes an error, and that of the resolver tells at info which names are
        // asked for. Who wants to hear of it names the library.
        [("nostr_relay_builder", "nostr_relay_builder=off"), ("hickory", "hickory_server=warn")].into_iter().fold(
            filter,
            |filter, (library, quieter)| match quieter.parse() {
                Ok(directive) if !self.0.contains(library) => filter.add_directive(directive),
                _ => filter,
            },
        )
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl FromStr for LogFilter {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        const WAY_OUT: &str = "write off, error, warn, info, debug or trace, or MODULE=LEVEL, separated by commas";
        if text.trim().is_empty() {
            return Err(ValueError::new(format!("an empty log filter; {WAY_OUT}")));
        }
        // A bare word counts as the name of a module for tracing: `debgu` would silence everything, and nobody is told.
        let bare = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
        if let Some(word) =
            text.split(',').map(str::trim).find(|part| bare(part) && part.parse::<LevelFilter>().is_err())
        {
            return Err(ValueError::new(format!("{word:?} is not a log level; {WAY_OUT}")));
        }
        EnvFilter::try_new(text)
            .map_err(|error| ValueError::new(format!("{text:?} is not a log filter ({error}); {WAY_OUT}")))?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for LogFilter {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<LogFilter> for String {
    fn from(filter: LogFilter) -> Self {
        filter.0
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_tracing_are_taken() {
        for text in ["info", "WARN", "off", "nws=debug,info", "nws::relay=trace", "hyper_util=warn, debug"] {
            assert_eq!(text.parse::<LogFilter>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_misspelt_level_is_an_error_and_not_silence() {
        for text in ["debgu", "info,debgu", "nws=loud", "", " "] {
            assert!(text.parse::<LogFilter>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn libraries_that_tell_what_is_visited_are_quiet_unless_they_are_named() {
        let text = |filter: &str| filter.parse::<LogFilter>().unwrap().to_env_filter().to_string();
        for filter in ["info", "nws=debug,info", "trace"] {
            assert!(text(filter).contains("hickory_server=warn"), "{}", text(filter));
        }
        assert!(!text("hickory_server=info").contains("warn"));
    }

    #[test]
    fn every_verbosity_is_a_filter() {
        assert_eq!(LogFilter::for_verbosity(0), None);
        for steps in [-9, -3, -2, -1, 1, 2, 3, 9] {
            let filter = LogFilter::for_verbosity(steps).unwrap();
            assert_eq!(filter.to_string().parse(), Ok(filter));
        }
    }
}
