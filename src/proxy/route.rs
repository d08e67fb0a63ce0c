//! Where a client's request goes: `.nostr` names to their exit, everything else nowhere yet.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tower::Service;

use super::connect::{BoxedIo, Connect, Destination, Host};
use crate::error::{Error, ErrorKind};
use crate::name::{self, NostrName};
use crate::tunnel::Tunnel;

/// The route of a proxy.
#[derive(Debug, Clone)]
pub struct Router {
    tunnel: Arc<Tunnel>,
}

impl Router {
    /// Routes over these tunnels.
    #[must_use]
    pub const fn new(tunnel: Arc<Tunnel>) -> Self {
        Self { tunnel }
    }
}

impl Service<Connect> for Router {
    type Response = BoxedIo;
    type Error = Error;
    type Future = BoxFuture<'static, Result<BoxedIo, Error>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, connect: Connect) -> Self::Future {
        let tunnel = Arc::clone(&self.tunnel);
        Box::pin(async move {
            let name = nostr_name(&connect.destination)?;
            let stream = tunnel.open(&name, connect.destination.port, &connect.early_data).await?;
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
