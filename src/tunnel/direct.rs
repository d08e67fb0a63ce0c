//! The proxy's part in direct connections: which exits are offered one, whether what they offer is dialled, and old exits,
//! of which a connection is asked for by NIP-74's `CONNECTR`.

use std::sync::Arc;
use std::time::Duration;

use nostr::PublicKey;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::debug;
use uuid::Uuid;

use super::moving::Mover;
use super::shared::Shared;
use super::stream::TunnelStream;
use crate::direct::{Connection, Failures, Plaintext, Reach, Rendezvous, Ticket, prove, welcome};
use crate::limits::Limits;
use crate::message::{Direct, Failed};

/// How long a proxy that only dials waits for the exit to offer something: as long as an offer of its own counts.
const PATIENCE: Duration = Duration::from_secs(30);

/// The ways of a proxy to its exits beside the relays.
#[derive(Debug)]
pub struct DirectPaths {
    /// Our own public address, where exits come to.
    rendezvous: Option<Arc<Rendezvous>>,
    /// What dials the addresses of exits.
    reach: Option<Reach>,
    plaintext: Plaintext,
    timeout: Duration,
    /// Exits that have not come.
    failures: Failures<PublicKey>,
    /// Streams that have come to a direct connection so far.
    moved: watch::Sender<u64>,
}

impl DirectPaths {
    /// Waits for exits at an address, dials what they offer, or both.
    #[must_use]
    pub fn new(
        rendezvous: Option<Arc<Rendezvous>>,
        reach: Option<Reach>,
        plaintext: Plaintext,
        limits: &Limits,
    ) -> Arc<Self> {
        let failures = Failures::new(limits.direct_pause);
        let (timeout, moved) = (limits.direct_timeout, watch::Sender::new(0));
        Arc::new(Self { rendezvous, reach, plaintext, timeout, failures, moved })
    }

    /// How many streams have come to a direct connection so far.
    #[must_use]
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// What an opening says about direct connections, if it says anything.
    pub(super) fn offer(&self, exit: &PublicKey) -> Option<(Direct, Option<Ticket>)> {
        let rendezvous = self.rendezvous.as_ref().filter(|_| !self.failures.has(exit));
        let issued = rendezvous.and_then(|rendezvous| {
            let issued = rendezvous.issue();
            issued.inspect_err(|error| debug!(%error, "no direct connection is offered")).ok()
        });
        let dials = self.reach.is_some();
        let (offer, ticket) = issued.unzip();
        (offer.is_some() || dials).then_some((Direct { offer, dials, failed: None }, ticket))
    }

    /// Moves a stream to whatever direct connection comes about, or leaves it where it is.
    pub(super) async fn follow(
        self: Arc<Self>,
        exit: PublicKey,
        mover: Mover,
        ticket: Option<Ticket>,
        said: mpsc::Receiver<Direct>,
    ) {
        tokio::select! {
            () = mover.ended() => {}
            () = self.follow_living(exit, &mover, ticket, said) => {}
        }
    }

    async fn follow_living(
        &self,
        exit: PublicKey,
        mover: &Mover,
        mut ticket: Option<Ticket>,
        mut said: mpsc::Receiver<Direct>,
    ) {
        let over = tokio::time::sleep(PATIENCE);
        tokio::pin!(over);
        loop {
            tokio::select! {
                connection = arrival(&mut ticket) => {
                    let Some(connection) = connection else {
                        // An exit that is only slow to accept has not refused to come.
                        if mover.is_open() {
                            self.note_failure(exit, None);
                        }
                        return;
                    };
                    self.note_moved(exit, mover.take_over(connection).await);
                    return mover.ended().await;
                }
                Some(direct) = said.recv() => {
                    if let Some(failed) = direct.failed {
                        self.note_failure(exit, Some(failed));
                        ticket = None;
                    }
                    if let (Some(offer), Some(reach)) = (direct.offer, &self.reach) {
                        match reach.dial(&offer.address, |tcp| prove(tcp, &offer)).await {
                            Ok(connection) => {
                                self.note_moved(exit, mover.hand_over(connection).await);
                                return mover.ended().await;
                            }
                            Err(failed) => {
                                debug!(%exit, ?failed, "the address of an exit is not reached");
                                mover.say(Direct { failed: Some(failed), ..Direct::default() });
                            }
                        }
                    }
                    if ticket.is_none() && self.reach.is_none() {
                        return;
                    }
                }
                () = &mut over, if ticket.is_none() => return,
            }
        }
    }

    fn note_moved(&self, exit: PublicKey, outcome: Result<(), crate::Error>) {
        match outcome {
            Ok(()) => {
                self.failures.clear(&exit);
                self.moved.send_modify(|count| *count += 1);
                debug!(%exit, "a stream is on a direct connection");
            }
            Err(error) => debug!(%exit, %error, "a direct connection came to nothing"),
        }
    }

    /// The exit has not come, and said why if it did. It is offered nothing more for a while.
    fn note_failure(&self, exit: PublicKey, failed: Option<Failed>) {
        if failed == Some(Failed::Overloaded) {
            return;
        }
        if !self.failures.has(&exit) {
            let why = match failed {
                Some(Failed::Denied) => "it does not dial this address, or none (exit.dial_back)",
                Some(_) => "it cannot reach proxy.public_address",
                None => "it has not come to proxy.public_address",
            };
            // Which exit is for nobody to read.
            debug!(%exit, why, "an exit has not come");
            tracing::info!(why, "streams through an exit stay on the relays");
        }
        self.failures.note(exit);
    }

    /// Whether a stream to this port of an old exit goes over a connection that the exit is asked for.
    pub(super) fn asks_old(&self, exit: &PublicKey, port: u16) -> Option<&Arc<Rendezvous>> {
        self.rendezvous.as_ref().filter(|_| self.plaintext.allows(port) && !self.failures.has(exit))
    }

    /// A stream in clear from an old exit, which says nothing if it cannot or will not.
    pub(super) async fn open_reverse(
        &self,
        rendezvous: &Arc<Rendezvous>,
        shared: Arc<Shared>,
        exit: PublicKey,
        host: String,
        port: u16,
    ) -> Option<TunnelStream> {
        let key = Uuid::new_v4();
        let mut ticket = rendezvous.issue_in_clear(key).ok()?;
        shared.engine().session.open_reverse(key, host, port, rendezvous.address().to_owned());
        shared.wake.notify_one();
        let arriving = async {
            let mut connection: Connection = ticket.arrival().await?;
            welcome(&mut connection).await.ok()?;
            Some(connection)
        };
        let Some(connection) = timeout(self.timeout, arriving).await.ok().flatten() else {
            debug!(%exit, "an old exit does not come, and is asked over the relays");
            self.failures.note(exit);
            return None;
        };
        self.moved.send_modify(|count| *count += 1);
        debug!(%exit, "an old exit has come");
        Some(TunnelStream::of_connection(shared, key, connection))
    }
}

/// The connection that comes by a ticket; never, without one.
async fn arrival(ticket: &mut Option<Ticket>) -> Option<Connection> {
    match ticket {
        Some(ticket) => ticket.arrival().await,
        None => std::future::pending().await,
    }
}
