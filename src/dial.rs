//! From a destination to a TCP connection: names are resolved once, the caller judges every address that came out, and
//! exactly the judged addresses are connected to, IPv6 and IPv4 raced (RFC 8305). Which addresses are allowed is not
//! decided here.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::destination::{Destination, Host};
use crate::error::{Error, ErrorKind};

/// Pause between two attempts while none has succeeded or failed (RFC 8305 section 5 recommends it).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Addresses of one name that are tried at most; a name may have hundreds.
const ADDRESSES_MAX: usize = 16;

/// A client that ends its direction and then exits looks like one that still listens; only a probe tells. The kernel
/// of a vanished client answers the first one with a reset, and its stream is freed.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// Time between two probes; a machine that is gone altogether is given up after the system's count of them.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// Sets the options that every TCP connection of a stream has; failing to set one is harmless.
pub fn prepare(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// The network as it is seen from here; tests put another one in its place.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// The addresses of a name, the preferred one first.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;

    /// A connection to an address.
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;

    /// The addresses of this machine's interfaces.
    ///
    /// # Errors
    /// When the system does not tell.
    fn own_addresses(&self) -> io::Result<Vec<IpAddr>>;
}

/// The network of the system that we run on, with its resolver (hosts file, DNS, whatever it is told to use).
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNetwork;

impl Network for SystemNetwork {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(address))
    }

    fn own_addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(if_addrs::get_if_addrs()?.into_iter().map(|interface| interface.ip()).collect())
    }
}

/// Connects to a destination within `limit`: resolves it if it is a name, has `judge` choose among its addresses, and
/// tries what was chosen.
///
/// # Errors
/// When the name does not resolve, `judge` says no, nothing accepts the connection, or the time is up.
pub async fn dial(
    network: &dyn Network,
    destination: &Destination,
    limit: Duration,
    judge: impl FnOnce(&[IpAddr]) -> Result<Vec<IpAddr>, Error>,
) -> Result<TcpStream, Error> {
    let attempt = async {
        let found = match &destination.host {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) => resolve(network, name).await?,
        };
        let chosen = judge(&found)?;
        race(network, &chosen, destination.port)
            .await
            .map_err(|error| Error::from_io(&error, "the exit cannot connect"))
    };
    let late = |_| Err(Error::new(ErrorKind::Timeout, "the destination does not answer"));
    timeout(limit, attempt).await.unwrap_or_else(late)
}

async fn resolve(network: &dyn Network, name: &str) -> Result<Vec<IpAddr>, Error> {
    let unknown = |why: &str| Error::new(ErrorKind::HostUnreachable, format!("the name does not resolve: {why}"));
    if !Host::is_plain_name(name) {
        return Err(unknown("it is no name"));
    }
    let found = network.resolve(name).await.map_err(|error| unknown(&error.to_string()))?;
    if found.is_empty() { Err(unknown("it has no address")) } else { Ok(found) }
}

/// Connects to whichever address answers first. Attempts start one after the other, the families in turn.
async fn race(network: &dyn Network, addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut waiting = interleave(addresses);
    waiting.truncate(ADDRESSES_MAX);
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "no address to connect to");
    let mut next_at = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some(outcome) = attempts.next() => match outcome {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failure = error;
                    // Nothing is to be waited for any more.
                    next_at = Instant::now();
                }
            },
            () = sleep_until(next_at), if !waiting.is_empty() => {
                if let Some(ip) = waiting.pop_front() {
                    attempts.push(network.connect(SocketAddr::new(ip, port)));
                    next_at = Instant::now() + ATTEMPT_DELAY;
                }
            }
            else => return Err(failure),
        }
    }
}

/// The families in turn, IPv6 first (RFC 8305 section 4), each in the resolver's order and each address once.
fn interleave(addresses: &[IpAddr]) -> VecDeque<IpAddr> {
    let (mut v6, mut v4): (VecDeque<_>, VecDeque<_>) = addresses.iter().copied().partition(IpAddr::is_ipv6);
    let mut out = VecDeque::new();
    while !(v6.is_empty() && v4.is_empty()) {
        for ip in [v6.pop_front(), v4.pop_front()].into_iter().flatten() {
            if !out.contains(&ip) {
                out.push_back(ip);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;

    /// Addresses that accept, refuse or never answer, by their last byte, and what was tried when.
    #[derive(Debug)]
    struct Scripted {
        backend: SocketAddr,
        tried: Mutex<Vec<(IpAddr, Duration)>>,
        start: Instant,
    }

    impl Scripted {
        async fn new() -> (Self, TcpListener) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let backend = listener.local_addr().unwrap();
            (Self { backend, tried: Mutex::default(), start: Instant::now() }, listener)
        }

        fn tried(&self) -> Vec<(String, u128)> {
            self.tried.lock().unwrap().iter().map(|(ip, at)| (ip.to_string(), at.as_millis())).collect()
        }
    }

    impl Network for Scripted {
        fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
            self.tried.lock().unwrap().push((address.ip(), self.start.elapsed()));
            let last = match address.ip() {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(ip) => ip.octets()[15],
            };
            Box::pin(async move {
                match last {
                    1 => TcpStream::connect(self.backend).await,
                    2 => Err(io::ErrorKind::ConnectionRefused.into()),
                    _ => std::future::pending().await,
                }
            })
        }

        fn own_addresses(&self) -> io::Result<Vec<IpAddr>> {
            Ok(Vec::new())
        }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_families_take_turns_and_ipv6_begins() {
        let mixed = ips(&["1.0.0.1", "1.0.0.2", "2a00::1", "1.0.0.1", "2a00::2"]);
        assert_eq!(Vec::from(interleave(&mixed)), ips(&["2a00::1", "1.0.0.1", "2a00::2", "1.0.0.2"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_holds_the_next_one_up_for_a_moment_only() {
        let (network, _listener) = Scripted::new().await;
        race(&network, &ips(&["2a00::3", "1.0.0.1"]), 80).await.unwrap();
        assert_eq!(network.tried(), [("2a00::3".to_owned(), 0), ("1.0.0.1".to_owned(), 250)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_makes_the_next_attempt_start_at_once() {
        let (network, _listener) = Scripted::new().await;
        race(&network, &ips(&["2a00::2", "1.0.0.1"]), 80).await.unwrap();
        assert_eq!(network.tried(), [("2a00::2".to_owned(), 0), ("1.0.0.1".to_owned(), 0)]);
        let error = race(&network, &ips(&["2a00::2", "1.0.0.2"]), 80).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_answers_is_a_timeout_and_what_is_judged_out_is_not_tried() {
        let (network, _listener) = Scripted::new().await;
        let to = |text: &str| Destination { host: Host::parse(text), port: 80 };
        let limit = Duration::from_secs(10);
        let error = dial(&network, &to("1.0.0.3"), limit, |found| Ok(found.to_vec())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        let no = |_: &[IpAddr]| Err(Error::new(ErrorKind::Denied, "no"));
        assert_eq!(dial(&network, &to("1.0.0.1"), limit, no).await.unwrap_err().kind(), ErrorKind::Denied);
        let error = dial(&network, &to("a.example"), limit, |found| Ok(found.to_vec())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable);
        assert_eq!(network.tried().len(), 1);
    }
}
