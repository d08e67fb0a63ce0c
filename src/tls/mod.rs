//! Certificates of exits, and the authority of this machine that browsers may be told to trust (`docs/https.md`):
//! making and keeping them, publishing and finding them on relays (kind 38334). TLS itself is rustls's; where it is
//! spoken is decided in `exit` and `proxy`.

pub mod authority;
pub mod certificate;
pub mod install;
pub mod kept;
pub mod pem;
pub mod published;
pub mod publisher;
pub mod search;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::private_file::PrivateFileError;

pub use authority::Authority;
pub use certificate::Certificate;
pub use kept::{Kept, Source};
pub use published::{KIND_CERTIFICATE, Published};
pub use publisher::Publisher;
pub use search::search;

/// Why there is no certificate to work with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate or its key cannot be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// A file with a key cannot be used.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// What was read is not what it should be.
    #[error("{what}: {why}")]
    Content {
        /// The file, or whatever it came in.
        what: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The TLS library does not take it.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

impl TlsError {
    /// Something that was read is wrong.
    pub(crate) fn content(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Content { what: what.into(), why: why.into() }
    }
}

/// The cryptography that TLS is done with.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
