//! nws: TCP over Nostr relays (NIP-74).
//!
//! The map, from the ground up; a module imports only from floors below its own:
//!
//! | floor | module | what lives there |
//! | --- | --- | --- |
//! | 6 | [`cli`] | the command line |
//! | 5 | [`config`], [`run`] | the layered configuration; one file per command that stays up |
//! | 4 | [`proxy`], [`exit`] | listeners, SOCKS, HTTP, routing; services |
//! | 3 | [`tunnel`], [`directory`], [`dns`], [`tls`] | sessions on relay links; streams as `AsyncRead + AsyncWrite`; exits announced and found; addresses for names; certificates |
//! | 2 | [`relay`], [`dial`], [`direct`] | one link, the set of links, NIP-11, the embedded server; from a name to a TCP connection; connections beside the relays |
//! | 1 | [`stream`] | the engine without I/O and without a clock |
//! | 1 | [`identity`] | a lasting key, proved to an exit |
//! | 0 | [`name`], [`message`], [`envelope`], [`error`], [`limits`], [`destination`], [`addresses`], [`pattern`], [`private_file`], [`pace`], [`pinned`] | names, messages, events, the error table, limits, destinations, reserved addresses, what rules speak of, files with secrets, rates of bytes, certificates by their fingerprint |

pub mod addresses;
pub mod cli;
pub mod config;
pub mod destination;
pub mod dial;
pub mod direct;
pub mod directory;
pub mod dns;
pub mod envelope;
pub mod error;
pub mod exit;
pub mod identity;
pub mod limits;
pub mod message;
pub mod name;
pub mod pace;
pub mod pattern;
pub mod pinned;
pub mod private_file;
pub mod proxy;
pub mod relay;
pub mod run;
pub mod stream;
pub mod tls;
pub mod tunnel;

pub use error::{Error, ErrorKind};
