//! Connections of a public exit to the open internet: [`crate::dial`] under the exit's [`Policy`].

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::policy::Policy;
use crate::destination::Destination;
use crate::dial::{Network, SystemNetwork, dial};
use crate::error::{Error, ErrorKind};

/// How long the list of this machine's addresses is used: it costs a few system calls, and hardly ever changes.
const OWN_ADDRESSES_FRESH: Duration = Duration::from_secs(5);

/// What connects a public exit to other hosts.
#[derive(Debug)]
pub struct Dialer {
    policy: Policy,
    network: Arc<dyn Network>,
    own: Mutex<Option<(Instant, Arc<[IpAddr]>)>>,
}

impl Dialer {
    /// Connects over the system's network.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self::over(policy, Arc::new(SystemNetwork))
    }

    /// Connects over some other network.
    #[must_use]
    pub fn over(policy: Policy, network: Arc<dyn Network>) -> Self {
        Self { policy, network, own: Mutex::default() }
    }

    /// Connects over the same network under another policy.
    #[must_use]
    pub fn under(&self, policy: Policy) -> Self {
        Self::over(policy, Arc::clone(&self.network))
    }

    /// Connects to a destination within `limit`, if the policy allows it.
    ///
    /// # Errors
    /// `denied` by the policy; or why there is no connection.
    pub async fn connect(&self, destination: &Destination, limit: Duration) -> Result<TcpStream, Error> {
        self.policy.check_port(destination.port)?;
        let destination = Destination { host: destination.host.canonical(), port: destination.port };
        dial(&*self.network, &destination, limit, |found| {
            self.policy.admit(&destination, found, &self.own_addresses()?)
        })
        .await
    }

    /// The addresses of this machine; without them nothing can be judged.
    fn own_addresses(&self) -> Result<Arc<[IpAddr]>, Error> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, addresses)) = &*own
            && at.elapsed() < OWN_ADDRESSES_FRESH
        {
            return Ok(Arc::clone(addresses));
        }
        let addresses: Arc<[IpAddr]> = self
            .network
            .own_addresses()
            .map_err(|error| Error::new(ErrorKind::Internal, format!("the exit does not know its addresses: {error}")))?
            .into();
        *own = Some((Instant::now(), Arc::clone(&addresses)));
        Ok(addresses)
    }
}
