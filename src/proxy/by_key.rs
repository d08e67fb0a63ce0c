//! Opening a stream to an exit of which nothing but its key is known: on the relays of the configuration, and if it does
//! not answer there, on those of its own relay list. Both ways are tried side by side, and no byte of the client's leaves
//! before the exit has accepted on one of them, so none arrives twice.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use nostr::RelayUrl;
use tokio::time::timeout;

use crate::directory::RelayLists;
use crate::error::{Error, ErrorKind};
use crate::name::NostrName;
use crate::tunnel::{Compartment, Target, Tunnel, TunnelStream, Unopened};

/// How long the relays of the configuration have for themselves: an exit that is there answers within a second.
const PATIENCE: Duration = Duration::from_secs(2);

/// Opens a stream to a port of the exit; see the module.
///
/// # Errors
/// What the exit says, or else why it was not found.
pub(super) async fn open(
    tunnel: &Tunnel,
    lists: &RelayLists,
    compartment: Compartment,
    name: &NostrName,
    port: u16,
) -> Result<TunnelStream, Error> {
    let presumed = Mutex::new(None);
    let outcome = race(tunnel, lists, compartment, name, port, &presumed).await;
    // Perhaps an old exit, which never says that it has accepted, after all.
    let presumed = presumed.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.or_else(|error| presumed.ok_or(error))
}

/// Both ways side by side. A stream on the relays of the configuration that counts as open without a word of the exit's goes
/// into `presumed`: silence is also what there is where nobody listens.
async fn race(
    tunnel: &Tunnel,
    lists: &RelayLists,
    compartment: Compartment,
    name: &NostrName,
    port: u16,
    presumed: &Mutex<Option<TunnelStream>>,
) -> Result<TunnelStream, Error> {
    let by_list = async {
        let relays = lists.find(&name.public_key).await;
        if relays.is_empty() || same(&relays, tunnel.relays()) {
            return Err(unlisted());
        }
        tracing::debug!("asking for an exit on the relays of its own list");
        let opened = ask(tunnel, compartment, &NostrName::new(name.public_key, relays), port).await?;
        lists.prove(&name.public_key);
        Ok(opened)
    };
    let by_list = pin!(by_list);
    if tunnel.relays().is_empty() {
        return by_list.await.map_err(|unopened| unopened.error);
    }
    let configured = async {
        let stream = ask(tunnel, compartment, name, port).await?;
        if stream.is_answered() {
            return Ok(stream);
        }
        *presumed.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        let error = Error::new(ErrorKind::Timeout, "the exit is silent on the relays of the configuration");
        Err(Unopened { error, answered: false })
    };
    let mut configured = pin!(configured);
    // Whoever was reached by its list before is asked there at once, too.
    let patience = if lists.proven(&name.public_key).is_some() { Duration::ZERO } else { PATIENCE };
    let (first, silent) = match timeout(patience, configured.as_mut()).await {
        Ok(Err(Unopened { answered: false, error })) => return by_list.await.map_err(|second| later(error, second)),
        Ok(outcome) => return outcome.map_err(|unopened| unopened.error),
        Err(_) => match select(configured, by_list).await {
            Either::Left((first, second)) => (first, Either::Left(second)),
            Either::Right((first, second)) => (first, Either::Right(second)),
        },
    };
    match (first, silent) {
        (Err(Unopened { answered: false, error }), Either::Left(list)) => {
            list.await.map_err(|second| later(error, second))
        }
        (Err(second @ Unopened { answered: false, .. }), Either::Right(configured)) => {
            configured.await.map_err(|first| later(first.error, second))
        }
        (outcome, _) => outcome.map_err(|unopened| unopened.error),
    }
}

/// Asks the exit on the relays of this name.
async fn ask(tunnel: &Tunnel, compartment: Compartment, name: &NostrName, port: u16) -> Result<TunnelStream, Unopened> {
    tunnel.try_open(compartment, &Target::service(name, port), None).await
}

/// Which of two failures is told: what the exit has said, if it has.
fn later(first: Error, second: Unopened) -> Error {
    if second.answered { second.error } else { first }
}

fn unlisted() -> Unopened {
    let reason = "the name carries no relay, and no relay list of its key (kind 10002) was found either: set `relays` in \
                  the configuration, use --relay, or ask for the full name";
    Unopened { error: Error::new(ErrorKind::HostUnreachable, reason), answered: false }
}

/// Whether both lead to the same places.
fn same(some: &[RelayUrl], others: &[RelayUrl]) -> bool {
    some.iter().all(|relay| others.contains(relay))
}
