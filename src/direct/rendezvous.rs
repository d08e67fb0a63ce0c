//! Who is waited for at a public address: one connection for each ticket, known by its token (or, in the clear form, by
//! the key of its stream), once, and not for long.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::ServerConfig;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::Connection;
use super::tls::{Identity, one_time};
use crate::error::{Error, ErrorKind};
use crate::message::{Offer, SECRET_LEN};
use crate::pinned::sha256;

/// How long a ticket counts.
const AGE: Duration = Duration::from_secs(30);
/// Bytes of a token's hash that stand in the TLS greeting, which anybody on the way can read.
const NAME_LEN: usize = 16;
/// What a server name ends with (RFC 6761: it can be nobody's).
const SUFFIX: &str = ".invalid";

/// The server name by which a dialler says which ticket it has. It shows nothing of the token, and lets whoever waits cut
/// strangers before any key exchange.
pub(super) fn server_name(token: &[u8; SECRET_LEN]) -> String {
    format!("{}{SUFFIX}", HEXLOWER.encode(&sha256(token)[..NAME_LEN]))
}

/// By what a connection is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Id {
    /// The first bytes of the token's hash.
    Token([u8; NAME_LEN]),
    /// The key of the stream.
    Key(Uuid),
}

/// What waits for one connection.
struct Waiting {
    /// Of the whole token, and the certificate that goes with it.
    tls: Option<([u8; SECRET_LEN], Arc<ServerConfig>)>,
    door: oneshot::Sender<Connection>,
}

/// A public address of ours, and who is waited for there.
pub struct Rendezvous {
    address: String,
    most: usize,
    waiting: Mutex<HashMap<Id, Waiting>>,
}

impl fmt::Debug for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rendezvous").field("address", &self.address).field("most", &self.most).finish_non_exhaustive()
    }
}

impl Rendezvous {
    /// Peers are told this address; so many connections are waited for at once.
    #[must_use]
    pub fn new(address: String, most: usize) -> Arc<Self> {
        Arc::new(Self { address, most, waiting: Mutex::default() })
    }

    /// The address that peers are told.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many connections are waited for.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.table().len()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Id, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one connection of a peer of ours, which is to be given the offer.
    ///
    /// # Errors
    /// When as many are waited for as may be, or the system gives no random bytes.
    pub fn issue(self: &Arc<Self>) -> Result<(Offer, Ticket), Error> {
        self.check_room()?;
        let mut token = [0; SECRET_LEN];
        SystemRandom::new()
            .fill(&mut token)
            .map_err(|_| Error::new(ErrorKind::Internal, "the system gives no random bytes"))?;
        let Identity { config, fingerprint } = one_time()?;
        let hash = sha256(&token);
        let mut name = [0; NAME_LEN];
        name.copy_from_slice(&hash[..NAME_LEN]);
        let ticket = self.wait(Id::Token(name), Some((hash, config)));
        Ok((Offer { address: self.address.clone(), token, fingerprint }, ticket))
    }

    /// Waits for one connection of an old peer, which knows the key of the stream.
    ///
    /// # Errors
    /// When as many are waited for as may be.
    pub fn issue_in_clear(self: &Arc<Self>, key: Uuid) -> Result<Ticket, Error> {
        self.check_room()?;
        Ok(self.wait(Id::Key(key), None))
    }

    fn check_room(&self) -> Result<(), Error> {
        if self.table().len() < self.most {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Overloaded,
            "as many direct connections are waited for as may be (limits.direct_waiting)",
        ))
    }

    fn wait(self: &Arc<Self>, id: Id, tls: Option<([u8; SECRET_LEN], Arc<ServerConfig>)>) -> Ticket {
        let (door, arrival) = oneshot::channel();
        self.table().insert(id, Waiting { tls, door });
        Ticket { rendezvous: Arc::clone(self), id, until: Instant::now() + AGE, arrival }
    }

    /// The certificate for whoever greets with this server name.
    pub(super) fn greeted(&self, name: &str) -> Option<Arc<ServerConfig>> {
        let name = HEXLOWER.decode(name.strip_suffix(SUFFIX)?.as_bytes()).ok()?;
        let id = Id::Token(name.try_into().ok()?);
        self.table().get(&id).and_then(|waiting| waiting.tls.as_ref()).map(|(_, config)| Arc::clone(config))
    }

    /// Takes a token, which then counts no longer: the one who waits gets the connection that this gives.
    pub(super) fn take(&self, token: &[u8; SECRET_LEN]) -> Option<oneshot::Sender<Connection>> {
        let hash = sha256(token);
        let mut name = [0; NAME_LEN];
        name.copy_from_slice(&hash[..NAME_LEN]);
        let mut table = self.table();
        let id = Id::Token(name);
        table.get(&id).and_then(|waiting| waiting.tls.as_ref()).filter(|(wanted, _)| *wanted == hash)?;
        table.remove(&id).map(|waiting| waiting.door)
    }

    /// Takes the key of a stream that an old exit names.
    pub(super) fn take_key(&self, key: Uuid) -> Option<oneshot::Sender<Connection>> {
        self.table().remove(&Id::Key(key)).map(|waiting| waiting.door)
    }
}

/// The right to one connection. Dropped, nobody waits for it any more.
pub struct Ticket {
    rendezvous: Arc<Rendezvous>,
    id: Id,
    until: Instant,
    arrival: oneshot::Receiver<Connection>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Ticket {
    /// The connection, proven; `None` when it has not come in time. It has not been welcomed ([`super::welcome`]).
    pub async fn arrival(&mut self) -> Option<Connection> {
        timeout_at(self.until, &mut self.arrival).await.ok()?.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.rendezvous.table().remove(&self.id);
    }
}
