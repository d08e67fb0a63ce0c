//! Where a client's request goes: `.nostr` names to their exit, everything else nowhere yet.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tower::Service;

use super::connect::{BoxedIo, Connect, Destination, Host};
use crate::error::{Error, ErrorKind};
use crate::name::{self, NostrName};
use crate::tunnel::Tunnel;

/// How long an opening waits for the first bytes of a client that has just been told of success: most clients speak
/// first and at once, and those that do not wait so much longer for the server's greeting.
const HOLD_FOR_CLIENT: Duration = Duration::from_millis(2);
/// How long it waits for a request that this program is about to write itself: it comes for certain, and only a busy
/// machine makes it late.
const HOLD_FOR_REQUEST: Duration = Duration::from_millis(20);

/// When SOCKS5 and `CONNECT` clients are told of success before the exit has accepted the stream, which saves them a
/// round trip. A failure then ends their connection with a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimistic {
    /// When the same service has accepted a stream within the last minute, and has not failed to since.
    #[default]
    Auto,
    /// Always, also when the exit was never met.
    Always,
    /// Never: success means that the service is there.
    Never,
}

/// The route of a proxy.
#[derive(Debug, Clone)]
pub struct Router {
    tunnel: Arc<Tunnel>,
    optimistic: Optimistic,
}

impl Router {
    /// Routes over these tunnels.
    #[must_use]
    pub const fn new(tunnel: Arc<Tunnel>, optimistic: Optimistic) -> Self {
        Self { tunnel, optimistic }
    }
}

/// How long the opening may wait for the first bytes of a stream that is given out at once; `None` for one that is given
/// out when the exit has accepted.
fn hold(tunnel: &Tunnel, optimistic: Optimistic, name: &NostrName, connect: &Connect) -> Option<Duration> {
    if connect.eager {
        return Some(HOLD_FOR_REQUEST);
    }
    let at_once = match optimistic {
        Optimistic::Auto => tunnel.accepts_lately(name, connect.destination.port),
        Optimistic::Always => true,
        Optimistic::Never => false,
    };
    at_once.then_some(HOLD_FOR_CLIENT)
}

impl Service<Connect> for Router {
    type Response = BoxedIo;
    type Error = Error;
    type Future = BoxFuture<'static, Result<BoxedIo, Error>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, connect: Connect) -> Self::Future {
        let (tunnel, optimistic) = (Arc::clone(&self.tunnel), self.optimistic);
        Box::pin(async move {
            let name = nostr_name(&connect.destination)?;
            let (port, early) = (connect.destination.port, &connect.early_data);
            let stream = match hold(&tunnel, optimistic, &name, &connect) {
                Some(hold) => tunnel.open_eager(&name, port, early, hold).await?,
                None => tunnel.open(&name, port, early).await?,
            };
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}

/// The `.nostr` name of a destination; the error says why there is none.
fn nostr_name(destination: &Destination) -> Result<NostrName, Error> {
    match &destination.host {
        Host::Name(host) if name::is_nostr(host) => Ok(host.parse::<NostrName>()?),
        _ => Err(Error::new(
            ErrorKind::Denied,
            format!("{destination} is no .nostr name, and no exit for other names is configured"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: &str) -> Result<NostrName, Error> {
        nostr_name(&Destination { host: Host::parse(host), port: 80 })
    }

    #[test]
    fn names_of_the_clear_net_and_addresses_are_denied_and_say_so() {
        for host in ["example.com", "127.0.0.1", "[::1]", "nostr", "x.nostr.example"] {
            let error = route(host).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{host}");
            assert!(error.reason().contains(host), "{error}");
        }
    }

    #[test]
    fn a_name_that_is_wrong_does_not_resolve() {
        assert_eq!(route("nonsense.nostr").unwrap_err().kind(), ErrorKind::HostUnreachable);
    }

    #[test]
    fn a_nostr_name_is_found_in_any_case() {
        let name = "ETPJKBPF60N30BHG5OO3KDPN6SRG.7rqkr7rul8t6vbtekq0b3k274i696g47eo1765t9add20llitt9g.nostr.";
        assert_eq!(route(name).unwrap().relays.len(), 1);
    }
}
