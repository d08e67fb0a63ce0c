//! Which port seen by clients is which local service, and the joining of a stream to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, debug_span};

use crate::error::{Error, ErrorKind};
use crate::limits::Limits;
use crate::tunnel::copy::copy;
use crate::tunnel::socket::Socket;
use crate::tunnel::{Acceptor, Offer};

/// A client whose stream takes longer to connect is told that it was heard.
const HEARD_AFTER: Duration = Duration::from_millis(20);

/// What an exit offers. A target is `host:port`, connected to from this machine.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// The target for each port that clients see.
    pub by_port: BTreeMap<u16, String>,
    /// The target for every other port.
    pub default: Option<String>,
}

impl Services {
    /// The target of a destination as a client wrote it; its host is of no importance here, only its port.
    ///
    /// # Errors
    /// When no service is offered there.
    pub fn find(&self, destination: Option<&str>, port: Option<u16>) -> Result<&str, Error> {
        let named = || destination.and_then(|text| text.rsplit_once(':')).map(|(_, port)| port.parse::<u16>());
        let port = port.map(Ok).or_else(named);
        let target = match port {
            Some(Ok(port)) => self.by_port.get(&port).or(self.default.as_ref()),
            Some(Err(_)) => return Err(Error::new(ErrorKind::Protocol, "the port of the destination is no number")),
            None => self.only(),
        };
        target.map(String::as_str).ok_or_else(|| match port {
            Some(Ok(port)) => Error::new(ErrorKind::Denied, format!("this exit offers no service on port {port}")),
            _ => Error::new(ErrorKind::Denied, "this exit offers several services, and the destination names no port"),
        })
    }

    /// Whether the destination alone does not tell which service is meant.
    fn is_ambiguous(&self, destination: Option<&str>, port: Option<u16>) -> bool {
        port.is_none() && !destination.is_some_and(|text| text.contains(':')) && self.only().is_none()
    }

    /// The only target there is.
    fn only(&self) -> Option<&String> {
        match (&self.default, self.by_port.len()) {
            (Some(target), 0) => Some(target),
            (None, 1) => self.by_port.values().next(),
            _ => None,
        }
    }
}

/// An exit that serves.
#[derive(Debug)]
pub struct Exit {
    services: Arc<Services>,
    limits: Arc<Limits>,
}

impl Exit {
    /// An exit with these services.
    #[must_use]
    pub fn new(services: Services, limits: Arc<Limits>) -> Self {
        Self { services: Arc::new(services), limits }
    }

    /// Serves the streams that come in until `cancel`; those that are open then go on in `tracker`.
    pub async fn serve(&self, acceptor: &mut Acceptor, cancel: &CancellationToken, tracker: &TaskTracker) {
        loop {
            let offer = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                offer = acceptor.accept() => offer,
            };
            let Some(offer) = offer else { return };
            let span = debug_span!("stream", peer = %offer.peer());
            let (services, limits) = (Arc::clone(&self.services), Arc::clone(&self.limits));
            tracker.spawn(async move { serve(&services, &limits, offer).await }.instrument(span));
        }
    }
}

async fn serve(services: &Services, limits: &Limits, offer: Offer) {
    match connect(services, limits, &offer).await {
        Ok(service) => {
            let service = Socket::new(service);
            if let Some(stream) = offer.accept() {
                copy(service.clone(), stream, &service).await;
            }
        }
        Err(error) => {
            debug!(%error, code = error.kind().code(), "refused");
            offer.reject(&error);
        }
    }
}

/// Connects to the service that the client asks for.
async fn connect(services: &Services, limits: &Limits, offer: &Offer) -> Result<TcpStream, Error> {
    let target = match (offer.port(), services.is_ambiguous(offer.destination(), offer.port())) {
        (port, false) => services.find(offer.destination(), port)?,
        (_, true) => {
            let first = tokio::time::timeout(limits.handshake_timeout, offer.first_bytes()).await;
            let first =
                first.map_err(|_| Error::new(ErrorKind::Timeout, "the client names no port and says nothing"))??;
            services.find(offer.destination(), Some(guess_port(&first)))?
        }
    };
    let dial = async {
        match tokio::time::timeout(limits.dial_timeout, TcpStream::connect(target)).await {
            Ok(connected) => connected.map_err(|error| refused(&error)),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "the service does not answer")),
        }
    };
    let mut dial = std::pin::pin!(dial);
    tokio::select! {
        biased;
        connected = &mut dial => return connected,
        () = tokio::time::sleep(HEARD_AFTER) => offer.heard(),
    }
    dial.await
}

/// What a client that names no port wants, by its first bytes: a TLS ClientHello goes to 443, all else to 80.
fn guess_port(first: &[u8]) -> u16 {
    const TLS_HANDSHAKE: u8 = 22;
    if first.first() == Some(&TLS_HANDSHAKE) { 443 } else { 80 }
}

/// What a failed connection means to the client, who need not know where the service lives.
fn refused(error: &std::io::Error) -> Error {
    let kind = Error::from_io(error, "").kind();
    debug!(%error, "the service cannot be reached");
    let reason = match kind {
        ErrorKind::Refused => "the service behind the exit is not running",
        ErrorKind::Timeout => "the service behind the exit does not answer",
        _ => "the exit cannot reach its service",
    };
    Error::new(kind, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(ports: &[u16], default: bool) -> Services {
        Services {
            by_port: ports.iter().map(|port| (*port, format!("127.0.0.1:{}", 1000 + port))).collect(),
            default: default.then(|| "127.0.0.1:9".to_owned()),
        }
    }

    #[test]
    fn a_port_leads_to_its_service_whatever_host_the_client_names() {
        let services = services(&[22, 80], false);
        for host in ["x.nostr", "example.com", "127.0.0.1", "[::1]"] {
            assert_eq!(services.find(Some(&format!("{host}:80")), None).unwrap(), "127.0.0.1:1080");
        }
        assert_eq!(services.find(Some("x.nostr:81"), None).unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(services.find(Some("x.nostr:999999"), None).unwrap_err().kind(), ErrorKind::Protocol);
        assert_eq!(services.find(Some("x.nostr"), None).unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(services.find(None, None).unwrap_err().kind(), ErrorKind::Denied);
    }

    #[test]
    fn a_default_target_takes_every_other_port_and_an_only_service_takes_a_missing_one() {
        assert_eq!(services(&[22], true).find(Some("x.nostr:80"), None).unwrap(), "127.0.0.1:9");
        assert_eq!(services(&[22], true).find(Some("x.nostr:22"), None).unwrap(), "127.0.0.1:1022");
        assert_eq!(services(&[22], false).find(Some("x.nostr"), None).unwrap(), "127.0.0.1:1022");
        assert_eq!(services(&[], true).find(None, None).unwrap(), "127.0.0.1:9");
    }
}
