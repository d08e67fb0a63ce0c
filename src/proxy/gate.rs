//! What each client of a proxy, and all together, may ask for: a layer before the route. A client is known by its address;
//! behind a loopback listener all programs of the machine are one.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use super::connect::{BoxedIo, Connect};
use super::open::Route;
use crate::error::{Error, ErrorKind};
use crate::limits::Limits;
use crate::pace::Pace;
use crate::tunnel::pace::{self, Paced};

/// Clients remembered before those that have no stream are forgotten.
const CLIENTS_MIN: usize = 256;

/// One client.
struct Client {
    rate: DefaultDirectRateLimiter,
    streams: Arc<Semaphore>,
    pace: Arc<Pace>,
}

impl Client {
    fn new(limits: &Limits) -> Self {
        Self {
            rate: limiter(limits.client_streams_per_second),
            streams: Arc::new(Semaphore::new(limits.client_streams.min(Semaphore::MAX_PERMITS))),
            pace: Arc::new(pace::of_peer(limits.client_bytes_per_second)),
        }
    }
}

struct Gate {
    limits: Arc<Limits>,
    all: DefaultDirectRateLimiter,
    clients: Mutex<HashMap<Option<IpAddr>, Client>>,
}

impl Gate {
    /// Lets a client open one more stream, which it has until the permit is dropped.
    fn pass(&self, client: Option<IpAddr>) -> Result<(OwnedSemaphorePermit, Arc<Pace>), Error> {
        let overloaded = |reason: String| Err(Error::new(ErrorKind::Overloaded, reason));
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENTS_MIN && !clients.contains_key(&client) {
            let most = self.limits.client_streams.min(Semaphore::MAX_PERMITS);
            clients.retain(|_, client| client.streams.available_permits() < most);
        }
        let client = clients.entry(client).or_insert_with(|| Client::new(&self.limits));
        if client.rate.check().is_err() {
            let most = self.limits.client_streams_per_second;
            return overloaded(format!(
                "this client asks for more than {most} connections a second (limits.client_streams_per_second)"
            ));
        }
        if self.all.check().is_err() {
            let most = self.limits.proxy_streams_per_second;
            return overloaded(format!(
                "the proxy is asked for more than {most} connections a second (limits.proxy_streams_per_second)"
            ));
        }
        match Arc::clone(&client.streams).try_acquire_owned() {
            Ok(slot) => Ok((slot, Arc::clone(&client.pace))),
            Err(_) => {
                let most = self.limits.client_streams;
                overloaded(format!("this client has {most} connections open already (limits.client_streams)"))
            }
        }
    }
}

/// A limit of 0 is one of 1: the configuration does not have it.
fn limiter(rate: u32) -> DefaultDirectRateLimiter {
    RateLimiter::direct(Quota::per_second(NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN)))
}

/// A route behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    route: S,
    gate: Arc<Gate>,
}

impl<S> Gated<S> {
    /// The route, for clients within these limits.
    #[must_use]
    pub fn new(route: S, limits: Arc<Limits>) -> Self {
        let all = limiter(limits.proxy_streams_per_second);
        Self { route, gate: Arc::new(Gate { limits, all, clients: Mutex::default() }) }
    }
}

impl<S: Route> Service<Connect> for Gated<S> {
    type Response = BoxedIo;
    type Error = Error;
    type Future = BoxFuture<'static, Result<BoxedIo, Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.route.poll_ready(cx)
    }

    fn call(&mut self, connect: Connect) -> Self::Future {
        let (slot, pace) = match self.gate.pass(connect.isolation.client) {
            Ok(passed) => passed,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let (opening, is_paced) = (self.route.call(connect), self.gate.limits.client_bytes_per_second.as_u64() > 0);
        Box::pin(async move {
            let held = Held { io: opening.await?, _slot: slot };
            Ok(if is_paced { Box::new(Paced::new(held, pace)) as BoxedIo } else { Box::new(held) })
        })
    }
}

/// A stream that counts among its client's while it lasts.
struct Held {
    io: BoxedIo,
    _slot: OwnedSemaphorePermit,
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(change: impl FnOnce(&mut Limits)) -> Gate {
        let mut limits = Limits::default();
        change(&mut limits);
        let limits = Arc::new(limits);
        Gate { all: limiter(limits.proxy_streams_per_second), limits, clients: Mutex::default() }
    }

    fn client(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[tokio::test]
    async fn a_client_has_so_many_streams_and_others_have_theirs() {
        let gate = gate(|limits| limits.client_streams = 2);
        let first = gate.pass(client(1)).unwrap();
        let _second = gate.pass(client(1)).unwrap();
        let refused = gate.pass(client(1)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        assert!(refused.to_string().contains("limits.client_streams"), "{refused}");
        assert!(gate.pass(client(2)).is_ok());
        drop(first);
        assert!(gate.pass(client(1)).is_ok());
    }

    #[tokio::test]
    async fn a_hasty_client_is_refused_and_uses_up_nothing_of_the_others() {
        let gate = gate(|limits| limits.client_streams_per_second = 3);
        assert!((0..100).filter(|_| gate.pass(client(1)).is_err()).count() >= 90);
        assert!(gate.pass(client(2)).is_ok());
    }

    #[tokio::test]
    async fn all_clients_together_have_a_rate() {
        let gate = gate(|limits| limits.proxy_streams_per_second = 3);
        assert!((0..100).filter(|&last| gate.pass(client(last)).is_err()).count() >= 90);
    }

    #[tokio::test]
    async fn clients_without_streams_are_forgotten() {
        let gate = gate(|_| {});
        let kept = gate.pass(client(1)).unwrap();
        for number in 0..10_000_u32 {
            let _ = gate.pass(Some(std::net::Ipv4Addr::from(number).into()));
        }
        let clients = gate.clients.lock().unwrap();
        assert!(clients.len() <= CLIENTS_MIN + 1 && clients.contains_key(&client(1)), "{}", clients.len());
        drop(kept);
    }
}
