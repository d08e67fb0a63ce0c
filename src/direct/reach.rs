//! Dialling addresses that peers name: only where the owner allows it, not too often, and with no answer that would tell a
//! peer what is there. Anybody can name any address.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use super::{Connection, Failures};
use crate::addresses::{Reserved, reserved};
use crate::destination::{Destination, Host, split_port};
use crate::dial::{Network, dial};
use crate::error::{Error, ErrorKind};
use crate::limits::Limits;
use crate::message::Failed;
use crate::pattern::{Pattern, Ports};

/// Longest address that is looked at: a DNS name and a port.
const ADDRESS_MAX: usize = 260;

/// Which addresses there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Families {
    /// Both families.
    #[default]
    Any,
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
}

/// What may be dialled of what peers name.
#[derive(Debug, Clone)]
pub struct Reachable {
    /// Ports.
    pub ports: Ports,
    /// Address families.
    pub families: Families,
    /// Ranges of reserved addresses that may be dialled all the same.
    pub private: Vec<Pattern>,
}

impl Reachable {
    fn has(&self, ip: IpAddr, own: &[IpAddr]) -> bool {
        let family = match self.families {
            Families::Any => true,
            Families::Ipv4 => ip.is_ipv4(),
            Families::Ipv6 => ip.is_ipv6(),
        };
        let itself = || own.contains(&ip).then(|| Reserved { net: ip.into(), what: "an address of this machine" });
        let opened =
            |reserved: &Reserved| self.private.iter().any(|range| range.has_address(ip) && range.is_within(reserved));
        family && reserved(ip).or_else(itself).as_ref().is_none_or(opened)
    }
}

/// Dials what peers name; see the module.
pub struct Reach {
    reachable: Reachable,
    network: Arc<dyn Network>,
    rate: DefaultDirectRateLimiter,
    /// Addresses where nothing accepted a connection.
    failures: Failures<String>,
    limit: Duration,
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reach").field("reachable", &self.reachable).finish_non_exhaustive()
    }
}

impl Reach {
    /// Dials these over a network.
    #[must_use]
    pub fn new(reachable: Reachable, network: Arc<dyn Network>, limits: &Limits) -> Self {
        let rate = NonZeroU32::new(limits.direct_dials_per_second).unwrap_or(NonZeroU32::MIN);
        Self {
            reachable,
            network,
            rate: RateLimiter::direct(Quota::per_second(rate)),
            failures: Failures::new(limits.direct_pause),
            limit: limits.direct_timeout,
        }
    }

    /// A proven connection to an address, within `limits.direct_timeout`. A failure is told when that is over, whatever it
    /// was, so that nobody learns from it whether a port is open.
    ///
    /// # Errors
    /// As far as the peer may know.
    pub async fn dial<P, F>(&self, address: &str, prove: P) -> Result<Connection, Failed>
    where
        P: FnOnce(TcpStream) -> F,
        F: Future<Output = io::Result<Connection>>,
    {
        let destination = self.destination(address).ok_or(Failed::Denied)?;
        let place = destination.to_string();
        if self.failures.has(&place) {
            return Err(Failed::Unreachable);
        }
        if self.rate.check().is_err() {
            debug!("more is to be dialled than limits.direct_dials_per_second allows");
            return Err(Failed::Overloaded);
        }
        let until = Instant::now() + self.limit;
        let tcp = match dial(&*self.network, &destination, self.limit, |found| self.judge(found)).await {
            Ok(tcp) => tcp,
            Err(error) if error.kind() == ErrorKind::Denied => return Err(Failed::Denied),
            Err(error) => {
                debug!(code = error.kind().code(), "a direct address is not reached");
                // What answers and is not the peer is not remembered: anybody could name somebody else's address.
                self.failures.note(place);
                sleep_until(until).await;
                return Err(Failed::Unreachable);
            }
        };
        match timeout_at(until, prove(tcp)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => debug!(%error, "a direct address is somebody else's"),
            Err(_) => debug!("a direct address does not answer"),
        }
        sleep_until(until).await;
        Err(Failed::Unreachable)
    }

    /// Reads an address, if its port may be dialled.
    fn destination(&self, address: &str) -> Option<Destination> {
        let (host, port) = split_port(address).ok().filter(|_| address.len() <= ADDRESS_MAX)?;
        let port = port.filter(|port| *port > 0 && self.reachable.ports.has(*port))?;
        Some(Destination { host: Host::parse(host).canonical(), port })
    }

    /// Those that may be dialled; all others of a name are left out.
    fn judge(&self, found: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        let own = self.network.own_addresses().map_err(|error| {
            Error::new(ErrorKind::Internal, format!("this machine's addresses are not known: {error}"))
        })?;
        let allowed: Vec<IpAddr> = found.iter().copied().filter(|ip| self.reachable.has(*ip, &own)).collect();
        if allowed.is_empty() {
            Err(Error::new(ErrorKind::Denied, "the address may not be dialled"))
        } else {
            Ok(allowed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reachable(private: &[&str], families: Families) -> Reachable {
        let private = private.iter().map(|text| text.parse().unwrap()).collect();
        Reachable { ports: Ports::parse(["1024-65535"]).unwrap(), families, private }
    }

    fn has(reachable: &Reachable, ip: &str) -> bool {
        reachable.has(ip.parse().unwrap(), &["9.9.9.9".parse().unwrap()])
    }

    #[test]
    fn no_address_of_a_private_network_or_of_this_machine_is_dialled_unless_it_is_named() {
        let default = reachable(&[], Families::Any);
        assert!(has(&default, "1.1.1.1") && has(&default, "2606:4700::1"));
        for ip in
            ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "9.9.9.9", "::1", "fe80::1", "::ffff:1.1.1.1"]
        {
            assert!(!has(&default, ip), "{ip}");
        }
        let named = reachable(&["10.0.0.0/8", "9.9.9.9", "*", "0.0.0.0/0"], Families::Any);
        assert!(has(&named, "10.1.2.3") && has(&named, "9.9.9.9"));
        assert!(!has(&named, "192.168.1.1") && !has(&named, "127.0.0.1"));
    }

    #[test]
    fn a_family_can_be_left_out() {
        assert!(
            !has(&reachable(&[], Families::Ipv4), "2606:4700::1") && has(&reachable(&[], Families::Ipv4), "1.1.1.1")
        );
        assert!(
            has(&reachable(&[], Families::Ipv6), "2606:4700::1") && !has(&reachable(&[], Families::Ipv6), "1.1.1.1")
        );
    }

    /// A network where one address accepts and all others refuse.
    #[derive(Debug)]
    struct Scripted;

    impl Network for Scripted {
        fn resolve<'a>(&'a self, _: &'a str) -> futures_util::future::BoxFuture<'a, io::Result<Vec<IpAddr>>> {
            Box::pin(async { Ok(vec!["10.0.0.1".parse().unwrap()]) })
        }

        fn connect(&self, _: std::net::SocketAddr) -> futures_util::future::BoxFuture<'_, io::Result<TcpStream>> {
            Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
        }

        fn own_addresses(&self) -> io::Result<Vec<IpAddr>> {
            Ok(Vec::new())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_comes_late_and_says_nothing_and_the_second_one_comes_at_once() {
        let limits = Limits { direct_dials_per_second: 3, ..Limits::default() };
        let reach = Reach::new(reachable(&[], Families::Any), Arc::new(Scripted), &limits);
        let prove = |_| async { unreachable!("nothing accepts") };
        for (address, expected, takes) in [
            ("1.1.1.1:22", Failed::Denied, Duration::ZERO),
            ("1.1.1.1", Failed::Denied, Duration::ZERO),
            ("1.1.1.1:x", Failed::Denied, Duration::ZERO),
            ("10.0.0.1:4000", Failed::Denied, Duration::ZERO),
            ("a.example:4000", Failed::Denied, Duration::ZERO),
            ("1.1.1.1:4000", Failed::Unreachable, limits.direct_timeout),
            ("1.1.1.1:4000", Failed::Unreachable, Duration::ZERO),
            ("1.1.1.1:4001", Failed::Overloaded, Duration::ZERO),
        ] {
            let start = Instant::now();
            assert_eq!(reach.dial(address, prove).await.err(), Some(expected), "{address}");
            assert_eq!(start.elapsed(), takes, "{address}");
        }
    }
}
