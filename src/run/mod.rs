//! The commands that need the network, one file each, and what they have in common: the log, the information file for scripts,
//! the exit's key, and the way they end. Not here: the command line, which decides what runs (`cli`).

pub mod cert;
pub mod connect;
pub mod demo;
mod direct;
pub mod doctor;
pub mod exit;
pub mod exits;
pub mod find;
pub mod forward;
pub mod info;
pub mod key;
pub mod log;
pub mod manager;
pub mod names;
pub mod progress;
pub mod proxy;
pub mod qr;
pub mod reach;
pub mod relay;
pub mod reload;
pub mod shutdown;
pub mod sockets;
mod system_wide;
pub mod trust;

use std::io;

use crate::config::ConfigError;
use crate::tls::TlsError;

use self::info::InfoError;
use self::key::KeyError;

/// Exit code for a command line that makes no sense (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// Exit code for a configuration or key that cannot be used (`EX_CONFIG` of sysexits.h): a restart would not help.
pub const EXIT_CONFIG: u8 = 78;

/// Exit code for every other failure.
pub const EXIT_FAILURE: u8 = 1;

/// Why a command ended other than well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The exit has no key that it could use.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Flags and configuration together do not say enough.
    #[error("{0}")]
    Usage(String),
    /// The information file for scripts cannot be written.
    #[error(transparent)]
    Info(#[from] InfoError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address as it was configured.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The system refuses something that every command needs.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The command did its work and found that the answer is no, as a demo whose check fails.
    #[error("{0}")]
    Failed(String),
}

impl RunError {
    /// The exit code of the process.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Key(_) | Self::Tls(_) => EXIT_CONFIG,
            Self::Usage(_) => EXIT_USAGE,
            Self::Info(_) | Self::Listen { .. } | Self::System { .. } | Self::Failed(_) => EXIT_FAILURE,
        }
    }
}
