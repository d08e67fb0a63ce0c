//! The proxy's front end, spoken to byte by byte: SOCKS5 (RFC 1928), HTTP/1.1 (RFC 9110, RFC 9112), the listener's
//! limits. The route behind it dials TCP directly or follows a script; no tunnel is involved.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic in a test or its harness is the failure report")]

mod eager;
mod forward;
mod harness;
mod http;
mod listener;
mod socks;
