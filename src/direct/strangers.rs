//! Connections to a public address that have proved nothing yet: only so many are kept. When one more comes, the network
//! that has most of them loses its oldest, so that a flood drives out itself and nobody else.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Those who are likely to be one: of IPv6 anybody has a network of at least this size.
type Network = IpAddr;

/// The network of an address: a /24 of IPv4, a /56 of IPv6.
fn network(ip: IpAddr) -> Network {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) & (u32::MAX << 8)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & (u128::MAX << 72)).into(),
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// In the order in which they came.
    strangers: BTreeMap<u64, (Network, CancellationToken)>,
    of_network: HashMap<Network, usize>,
}

impl State {
    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let (network, cancel) = self.strangers.remove(&number)?;
        if let Some(count) = self.of_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.of_network.remove(&network);
            }
        }
        Some(cancel)
    }

    /// Drives one out.
    fn make_room(&mut self) {
        let Some((&most, _)) = self.of_network.iter().max_by_key(|(_, count)| **count) else { return };
        let oldest = self.strangers.iter().find(|(_, (network, _))| *network == most).map(|(&number, _)| number);
        if let Some(cancel) = oldest.and_then(|number| self.remove(number)) {
            cancel.cancel();
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Strangers {
    most: usize,
    state: Mutex<State>,
}

/// The place of one stranger, which ends when dropped.
#[derive(Debug)]
pub(super) struct Place {
    strangers: Arc<Strangers>,
    number: u64,
    /// Cancelled when the place is needed for somebody else.
    pub(super) driven_out: CancellationToken,
}

impl Strangers {
    /// Keeps so many at most.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more from this address.
    pub(super) fn admit(self: &Arc<Self>, ip: IpAddr) -> Place {
        let mut state = self.state();
        while state.strangers.len() >= self.most.max(1) {
            state.make_room();
        }
        let (number, network, driven_out) = (state.next, network(ip), CancellationToken::new());
        state.next += 1;
        *state.of_network.entry(network).or_default() += 1;
        state.strangers.insert(number, (network, driven_out.clone()));
        Place { strangers: Arc::clone(self), number, driven_out }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers.state().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_drives_out_itself() {
        let strangers = Strangers::new(10);
        let of = |ip: &str| strangers.admit(ip.parse().unwrap());
        let quiet = [of("192.0.2.1"), of("2001:db8::1")];
        let flood: Vec<Place> = (0..=255).map(|n| of(&format!("198.51.100.{n}"))).collect();
        assert!(quiet.iter().all(|place| !place.driven_out.is_cancelled()));
        assert_eq!(flood.iter().filter(|place| !place.driven_out.is_cancelled()).count(), 8);
        assert!(flood[248..].iter().all(|place| !place.driven_out.is_cancelled()), "the oldest went");
        drop((quiet, flood));
        assert!(strangers.state().strangers.is_empty() && strangers.state().of_network.is_empty());
    }

    #[test]
    fn a_network_is_what_one_of_them_has() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.255"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8:0:100::1"), of("2001:db8:0:1ff:ffff::"));
        assert_ne!(of("2001:db8:0:100::1"), of("2001:db8:0:200::1"));
    }
}
