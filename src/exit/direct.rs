//! An exit's part in direct connections: dialling the addresses that proxies offer, offering its own, and the clear form
//! that old entries ask for with NIP-74's `CONNECTR`. All of it shows the exit's address to its clients, so none of it
//! happens unless the owner says so.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::service::{Asked, Offered, dial, guess_port, join, service_port, target};
use crate::direct::{Connection, Plaintext, Reach, Rendezvous, prove, prove_in_clear};
use crate::error::{Error, ErrorKind};
use crate::message::{Direct, Failed};
use crate::tunnel::socket::Socket;
use crate::tunnel::{Mover, Offer};

/// Pauses between the times that an offer is said: relays lose messages.
const SAY_AGAIN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(30)];
/// First bytes of an old entry that are looked at to tell what it wants.
const FIRST_BYTES: usize = 4096;

/// The ways of an exit to its clients beside the relays. The default has none.
#[derive(Debug, Default)]
pub struct DirectPaths {
    /// What dials the addresses that proxies and old entries offer.
    pub reach: Option<Reach>,
    /// When old entries are connected to in clear.
    pub plaintext: Plaintext,
    /// The exit's own public address, where proxies come to.
    pub rendezvous: Option<Arc<Rendezvous>>,
}

impl DirectPaths {
    /// Moves a stream to whatever direct connection comes about, or leaves it where it is. Does not end before the stream.
    pub(super) async fn follow(&self, mover: &Mover, said: &Direct) {
        let moved = self.dial_back(mover, said).await || self.offer(mover, said).await;
        if moved {
            debug!("a stream is on a direct connection");
        }
        std::future::pending().await
    }

    /// Dials what the proxy offers, if it does. True when the stream has moved.
    async fn dial_back(&self, mover: &Mover, said: &Direct) -> bool {
        let Some(offer) = &said.offer else { return false };
        let failed = |failed| mover.say(Direct { failed: Some(failed), ..Direct::default() });
        let Some(reach) = &self.reach else {
            failed(Failed::Denied);
            return false;
        };
        mover.worth_it().await;
        match reach.dial(&offer.address, |tcp| prove(tcp, offer)).await {
            Ok(connection) => report(mover.hand_over(connection).await),
            Err(why) => {
                failed(why);
                false
            }
        }
    }

    /// Offers our own address to a proxy that would dial it. True when the stream has moved.
    async fn offer(&self, mover: &Mover, said: &Direct) -> bool {
        let Some(rendezvous) = self.rendezvous.as_ref().filter(|_| said.dials) else { return false };
        mover.worth_it().await;
        let (offer, mut ticket) = match rendezvous.issue() {
            Ok(issued) => issued,
            Err(error) => {
                debug!(%error, "no direct connection is offered");
                return false;
            }
        };
        let mut answers = mover.listen();
        for pause in SAY_AGAIN {
            mover.say(Direct { offer: Some(offer.clone()), ..Direct::default() });
            tokio::select! {
                connection = ticket.arrival() => {
                    let Some(connection) = connection else { return false };
                    return report(mover.take_over(connection).await);
                }
                Some(_) = answers.recv() => return false,
                () = tokio::time::sleep(pause) => {}
            }
        }
        false
    }
}

fn report(outcome: Result<(), Error>) -> bool {
    if let Err(error) = &outcome {
        debug!(%error, "a direct connection came to nothing");
    }
    outcome.is_ok()
}

/// Serves an old entry over the connection that it asks for.
pub(super) async fn serve_reverse(offered: &Offered, offer: Offer) {
    match connect(offered, &offer).await {
        Ok(Reverse { connection, first, service, port }) => {
            let service = Socket::new(service);
            let (read, write) = tokio::io::split(connection);
            let stream = offer.paced(tokio::io::join(Cursor::new(first).chain(read), write));
            let activity = stream.activity();
            offer.let_go();
            tokio::select! {
                () = join(offered, &service, stream, port) => {}
                () = activity.ceases_for(offered.limits.stream_idle) => service.end_with_reset(),
            }
        }
        Err(error) => {
            debug!(%error, code = error.kind().code(), "refused to connect back");
            offer.reject(&error);
        }
    }
}

/// A connection back, and what it is to be joined to.
struct Reverse {
    connection: Connection,
    /// What has been read of it.
    first: Vec<u8>,
    service: TcpStream,
    /// The service's port, if it is one.
    port: Option<u16>,
}

/// The connection to the entry first, as the deployed exit does it: that it ends is the one refusal which an entry hears.
async fn connect(offered: &Offered, offer: &Offer) -> Result<Reverse, Error> {
    let denied = |why: &'static str| Error::new(ErrorKind::Denied, why);
    let (address, key) = offer.reverse().ok_or_else(|| denied("no connection back was asked for"))?;
    let direct = offered.direct();
    let reach = direct.reach.as_ref().ok_or_else(|| denied("this exit makes no connections back to its clients"))?;
    let asked = Asked::read(offer.destination(), offer.port())?;
    let known = match &asked {
        Asked::Service(port) if offered.services().is_ambiguous(*port) => None,
        asked => Some(target(offered, offer, asked)?),
    };
    let in_clear = |port: Option<u16>| match port {
        Some(port) if direct.plaintext.allows(port) => Ok(()),
        None if direct.plaintext == Plaintext::Always => Ok(()),
        _ => Err(denied("this exit does not send these bytes in clear (exit.direct_plaintext)")),
    };
    match &asked {
        // The first bytes will tell; there is nothing to hope for if none of the services may.
        Asked::Service(None) if known.is_none() => {
            if direct.plaintext == Plaintext::Never {
                in_clear(None)?;
            }
        }
        Asked::Service(port) => in_clear(offered.services().port_of(*port).or(*port))?,
        Asked::Elsewhere(destination) => in_clear(Some(destination.port))?,
    }
    let dialled = reach.dial(address, |tcp| prove_in_clear(tcp, key)).await;
    let mut connection = dialled.map_err(|failed| match failed {
        Failed::Denied => denied("this exit does not connect back to such an address"),
        Failed::Overloaded => Error::new(ErrorKind::Overloaded, "the exit is asked for too many connections back"),
        Failed::Unreachable => Error::new(ErrorKind::Timeout, "the exit cannot reach the client's public address"),
    })?;
    let Some(known) = known else {
        let mut first = vec![0; FIRST_BYTES];
        let count = timeout(offered.limits.handshake_timeout, connection.read(&mut first))
            .await
            .map_err(|_| Error::new(ErrorKind::Timeout, "the client names no port and says nothing"))?
            .map_err(|error| Error::from_io(&error, "the direct connection"))?;
        first.truncate(count);
        let port = guess_port(&first);
        in_clear(Some(port))?;
        let asked = Asked::Service(Some(port));
        let service = dial(offered, &target(offered, offer, &asked)?).await?;
        return Ok(Reverse { connection, first, service, port: service_port(offered, &asked) });
    };
    let service = dial(offered, &known).await?;
    Ok(Reverse { connection, first: Vec::new(), service, port: service_port(offered, &asked) })
}
