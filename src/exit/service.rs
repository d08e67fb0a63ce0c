//! Where a stream goes: which port seen by clients is which local service, what is meant for other hosts, and the joining
//! of a stream to either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, debug_span, warn};

use super::access::{Access, check};
use super::dial::Dialer;
use super::direct::{DirectPaths, serve_reverse};
use super::policy::Policy;
use super::terminator::Terminator;
use crate::destination::{Destination, Host, split_port};
use crate::error::{Error, ErrorKind};
use crate::limits::Limits;
use crate::name;
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
    /// The target of a port.
    ///
    /// # Errors
    /// When no service is offered there.
    pub fn find(&self, port: Option<u16>) -> Result<&str, Error> {
        let target = match port {
            Some(port) => self.by_port.get(&port).or(self.default.as_ref()),
            None => self.only(),
        };
        target.map(String::as_str).ok_or_else(|| match port {
            Some(port) => Error::new(ErrorKind::Denied, format!("this exit offers no service on port {port}")),
            None => {
                Error::new(ErrorKind::Denied, "this exit offers several services, and the destination names no port")
            }
        })
    }

    /// Whether a destination without a port does not tell which service is meant.
    pub(super) fn is_ambiguous(&self, port: Option<u16>) -> bool {
        let offers_any = self.default.is_some() || !self.by_port.is_empty();
        port.is_none() && offers_any && self.only().is_none()
    }

    /// The port of the service that is meant, if one is.
    pub(super) fn port_of(&self, port: Option<u16>) -> Option<u16> {
        match port {
            Some(port) => self.by_port.contains_key(&port).then_some(port),
            None if self.default.is_none() && self.by_port.len() == 1 => self.by_port.keys().next().copied(),
            None => None,
        }
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

/// What a client asks an exit for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// A service of the exit's own, by its port if that was said.
    Service(Option<u16>),
    /// Another host.
    Elsewhere(Destination),
}

impl Asked {
    /// Reads a destination as a client wrote it, and its port where that was said apart. Services are meant by a `.nostr`
    /// name, whichever it is (a client may know this exit by several), by a name without a dot, or by none.
    pub(super) fn read(destination: Option<&str>, port: Option<u16>) -> Result<Self, Error> {
        let Some(text) = destination else { return Ok(Self::Service(port)) };
        let (host, named) = split_port(text)
            .map_err(|_| Error::new(ErrorKind::Protocol, "the port of the destination is no number"))?;
        let port = port.or(named);
        match Host::parse(host).canonical() {
            Host::Name(name) if name::is_nostr(&name) || !name.contains('.') => Ok(Self::Service(port)),
            host => match port {
                Some(port) => Ok(Self::Elsewhere(Destination { host, port })),
                None => Err(Error::new(ErrorKind::Denied, "the destination names no port")),
            },
        }
    }
}

/// An exit that serves.
#[derive(Debug, Clone)]
pub struct Exit(Arc<Offered>);

/// What is behind an exit.
#[derive(Debug)]
pub(super) struct Offered {
    services: watch::Sender<Arc<Services>>,
    /// What connects to other hosts, at a public exit.
    public: watch::Sender<Option<Arc<Dialer>>>,
    access: watch::Sender<Arc<Access>>,
    /// What ends TLS on some ports, if any have it.
    terminator: OnceLock<Terminator>,
    /// Streams that may still be served at once.
    slots: Arc<Semaphore>,
    /// Streams that were refused for want of a slot.
    turned_away: AtomicU64,
    direct: OnceLock<Arc<DirectPaths>>,
    pub(super) limits: Arc<Limits>,
}

impl Exit {
    /// An exit with these services and nothing else.
    #[must_use]
    pub fn new(services: Services, limits: Arc<Limits>) -> Self {
        Self::public(services, None, limits)
    }

    /// An exit with these services that also connects to other hosts, if there is what does that.
    #[must_use]
    pub fn public(services: Services, dialer: Option<Dialer>, limits: Arc<Limits>) -> Self {
        let slots = Arc::new(Semaphore::new(limits.exit_streams.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(Offered {
            services: watch::Sender::new(Arc::new(services)),
            public: watch::Sender::new(dialer.map(Arc::new)),
            access: watch::Sender::default(),
            terminator: OnceLock::new(),
            direct: OnceLock::new(),
            slots,
            turned_away: AtomicU64::new(0),
            limits,
        }))
    }

    /// Takes streams off the relays where there is a way; only the first call counts.
    #[must_use]
    pub fn with_direct(self, direct: Arc<DirectPaths>) -> Self {
        self.0.direct.get_or_init(|| direct);
        self
    }

    /// From now on this ends TLS on its ports; a second one is not heeded.
    pub fn set_terminator(&self, terminator: Terminator) {
        let _ = self.0.terminator.set(terminator);
    }

    /// From now on these lists say who may connect; streams that are open go on.
    pub fn set_access(&self, access: Access) {
        self.0.access.send_replace(Arc::new(access));
    }

    /// From now on these services are offered; streams that are open go on.
    pub fn set_services(&self, services: Services) {
        self.0.services.send_replace(Arc::new(services));
    }

    /// From now on a public exit connects to other hosts under this policy; streams that are open go on. An exit that is
    /// not public stays so.
    pub fn set_policy(&self, policy: &Policy) {
        self.0.public.send_if_modified(|public| {
            public.as_mut().is_some_and(|dialer| {
                *dialer = Arc::new(dialer.under(policy.clone()));
                true
            })
        });
    }

    /// Streams that were refused because there were as many as `limits.exit_streams` allows.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.0.turned_away.load(Ordering::Relaxed)
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
            let offered = Arc::clone(&self.0);
            let Ok(slot) = Arc::clone(&offered.slots).try_acquire_owned() else {
                offered.turn_away(offer);
                continue;
            };
            tracker.spawn(
                async move {
                    serve(&offered, offer).await;
                    drop(slot);
                }
                .instrument(span),
            );
        }
    }
}

impl Offered {
    /// The services at the moment.
    pub(super) fn services(&self) -> Arc<Services> {
        Arc::clone(&self.services.borrow())
    }

    /// The ways beside the relays.
    pub(super) fn direct(&self) -> &DirectPaths {
        self.direct.get_or_init(Arc::default)
    }

    /// Refuses a stream for which there is no slot.
    fn turn_away(&self, offer: Offer) {
        let count = self.turned_away.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            warn!(limit = "limits.exit_streams", refused = count, "more comes than a limit allows");
        }
        offer.reject(&Error::new(ErrorKind::Overloaded, "the exit serves as many connections as it can"));
    }
}

/// Most connections are idle most of the time, and what a task may ever do is kept for as long as it lives. So what is done
/// once, or seldom, is apart.
async fn serve(offered: &Offered, offer: Offer) {
    if offer.reverse().is_some() {
        return Box::pin(serve_reverse(offered, offer)).await;
    }
    match Box::pin(connect(offered, &offer)).await {
        Ok((service, port)) => {
            let service = Socket::new(service);
            let said = offer.direct().cloned();
            if let Some((stream, mover)) = offer.accept() {
                let activity = stream.activity();
                let moving = async {
                    match &said {
                        Some(said) => Box::pin(offered.direct().follow(&mover, said)).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = join(offered, &service, stream, port) => {}
                    () = moving => {}
                    () = activity.ceases_for(offered.limits.stream_idle) => {
                        debug!("nothing has passed for limits.stream_idle");
                        service.end_with_reset();
                    }
                }
            }
        }
        Err(error) => {
            debug!(%error, code = error.kind().code(), "refused");
            offer.reject(&error);
        }
    }
}

/// Where a client that may goes.
pub(super) enum Target {
    Service(String),
    Elsewhere(Arc<Dialer>, Destination),
}

/// Joins a stream to its service, in TLS if that ends here.
pub(super) async fn join<S>(offered: &Offered, service: &Socket, stream: S, port: Option<u16>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let terminator = offered.terminator.get().filter(|tls| port.is_some_and(|port| tls.serves(port)));
    match terminator {
        Some(terminator) => Box::pin(join_in_tls(offered, terminator, service, stream)).await,
        None => copy(service.clone(), stream, service).await,
    }
}

async fn join_in_tls<S>(offered: &Offered, terminator: &Terminator, service: &Socket, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match tokio::time::timeout(offered.limits.handshake_timeout, terminator.accept(stream)).await {
        Ok(Ok(stream)) => copy(service.clone(), stream, service).await,
        Ok(Err(error)) => debug!(%error, "no TLS with the client"),
        Err(_) => debug!("the client's TLS handshake took too long"),
    }
}

/// Connects to what the client asks for; says which service that is, by its port.
async fn connect(offered: &Offered, offer: &Offer) -> Result<(TcpStream, Option<u16>), Error> {
    let mut asked = Asked::read(offer.destination(), offer.port())?;
    if let Asked::Service(port) = &mut asked
        && offered.services().is_ambiguous(*port)
    {
        *port = Some(told_port(&offered.limits, offer).await?);
    }
    let service_port = service_port(offered, &asked);
    let target = target(offered, offer, &asked)?;
    let dial = dial(offered, &target);
    tokio::pin!(dial);
    tokio::select! {
        biased;
        connected = &mut dial => return Ok((connected?, service_port)),
        () = tokio::time::sleep(HEARD_AFTER) => offer.heard(),
    }
    Ok((dial.await?, service_port))
}

/// The port of the service that is asked for, if it is one.
pub(super) fn service_port(offered: &Offered, asked: &Asked) -> Option<u16> {
    match asked {
        Asked::Service(port) => offered.services().port_of(*port),
        Asked::Elsewhere(_) => None,
    }
}

/// What a client is led to, if it may.
pub(super) fn target(offered: &Offered, offer: &Offer, asked: &Asked) -> Result<Target, Error> {
    let (services, access) = (offered.services(), Arc::clone(&offered.access.borrow()));
    let public = offered.public.borrow().clone();
    match (asked, public) {
        (Asked::Service(port), _) => {
            check(access.of_service(services.port_of(*port)), offer)?;
            Ok(Target::Service(services.find(*port)?.to_owned()))
        }
        (Asked::Elsewhere(destination), Some(dialer)) => {
            check(access.public.as_ref(), offer)?;
            Ok(Target::Elsewhere(dialer, destination.clone()))
        }
        (Asked::Elsewhere(_), None) => {
            let reason = "this exit offers its own services only, under its .nostr name; it is not a public one";
            Err(Error::new(ErrorKind::Denied, reason))
        }
    }
}

/// Connects there.
pub(super) async fn dial(offered: &Offered, target: &Target) -> Result<TcpStream, Error> {
    let limit = offered.limits.dial_timeout;
    match target {
        Target::Service(target) => dial_service(target, limit).await,
        Target::Elsewhere(dialer, destination) => dialer.connect(destination, limit).await,
    }
}

async fn dial_service(target: &str, limit: Duration) -> Result<TcpStream, Error> {
    match tokio::time::timeout(limit, TcpStream::connect(target)).await {
        Ok(connected) => connected.map_err(|error| refused(&error)),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "the service does not answer")),
    }
}

/// The port that the first bytes of a client tell, which names none.
async fn told_port(limits: &Limits, offer: &Offer) -> Result<u16, Error> {
    let first = tokio::time::timeout(limits.handshake_timeout, offer.first_bytes()).await;
    let first = first.map_err(|_| Error::new(ErrorKind::Timeout, "the client names no port and says nothing"))??;
    Ok(guess_port(&first))
}

/// What a client that names no port wants, by its first bytes: a TLS ClientHello goes to 443, all else to 80.
pub(super) fn guess_port(first: &[u8]) -> u16 {
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

    fn target(services: &Services, destination: Option<&str>) -> Result<String, ErrorKind> {
        match Asked::read(destination, None).map_err(|error| error.kind())? {
            Asked::Service(port) => services.find(port).map(str::to_owned).map_err(|error| error.kind()),
            Asked::Elsewhere(destination) => Ok(format!("elsewhere {destination}")),
        }
    }

    #[test]
    fn a_port_leads_to_its_service_under_every_name_that_can_mean_the_exit() {
        let services = services(&[22, 80], false);
        for host in ["x.nostr", "X.NOSTR.", "localhost", "web", "npub1x"] {
            assert_eq!(target(&services, Some(&format!("{host}:80"))).unwrap(), "127.0.0.1:1080", "{host}");
        }
        assert_eq!(target(&services, Some("x.nostr:81")), Err(ErrorKind::Denied));
        assert_eq!(target(&services, Some("x.nostr:999999")), Err(ErrorKind::Protocol));
        assert_eq!(target(&services, Some("x.nostr")), Err(ErrorKind::Denied));
        assert_eq!(target(&services, None), Err(ErrorKind::Denied));
    }

    #[test]
    fn other_hosts_are_never_a_service() {
        let services = services(&[80], true);
        for (text, read) in [
            ("example.com:80", "example.com:80"),
            ("Example.COM.:80", "example.com:80"),
            ("x.nostr.example:80", "x.nostr.example:80"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("2130706433:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(target(&services, Some(text)).unwrap(), format!("elsewhere {read}"));
        }
        assert_eq!(target(&services, Some("example.com")), Err(ErrorKind::Denied));
        let apart = Asked::read(Some("[::1]"), Some(80)).unwrap();
        assert_eq!(apart, Asked::Elsewhere(Destination { host: Host::Ip("::1".parse().unwrap()), port: 80 }));
    }

    #[test]
    fn a_default_target_takes_every_other_port_and_an_only_service_takes_a_missing_one() {
        assert_eq!(target(&services(&[22], true), Some("x.nostr:80")).unwrap(), "127.0.0.1:9");
        assert_eq!(target(&services(&[22], true), Some("x.nostr:22")).unwrap(), "127.0.0.1:1022");
        assert_eq!(target(&services(&[22], false), Some("x.nostr")).unwrap(), "127.0.0.1:1022");
        assert_eq!(target(&services(&[], true), None).unwrap(), "127.0.0.1:9");
    }
}
