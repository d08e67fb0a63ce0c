//! What the integration tests share: a plain Nostr client, a misbehaving middleman before a relay, the peers of the
//! deployed dialect, TCP backends, deterministic bytes, and bounded waits. No test logic lives here.

#![allow(dead_code, unreachable_pub, reason = "every test crate compiles all of this and uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

pub mod backends;
pub mod client;
pub mod command;
pub mod deployed;
pub mod faults;
pub mod shaper;
pub mod spy;
pub mod world;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nostr::RelayUrl;
use nws::relay::server::{RelayServer, RelayServerOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest time that anything may take before a test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Any free port of the loopback interface.
pub const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Waits for the future, and fails the test naming `what` when it takes too long.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// An embedded relay that serves until it is stopped or dropped.
pub struct TestRelay {
    /// Where it is.
    pub url: RelayUrl,
    /// The address bound.
    pub addr: SocketAddr,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl TestRelay {
    /// A relay with default options on a free port.
    pub fn start() -> Self {
        Self::start_at(ANY_PORT, RelayServerOptions::default())
    }

    /// A relay at this address.
    pub fn start_at(addr: SocketAddr, options: RelayServerOptions) -> Self {
        let server = RelayServer::bind(addr, options).expect("the relay binds");
        let cancel = CancellationToken::new();
        let (url, addr) = (server.url(), server.local_addr());
        Self { url, addr, cancel: cancel.clone(), task: tokio::spawn(server.run(cancel)) }
    }

    /// Stops it in order and waits until its port is free.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        soon("the relay stops", &mut self.task).await.expect("the relay does not panic");
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
