//! Where a client's request goes: `.nostr` names to their own exit, everything else by the rules of this proxy: through
//! an exit, from this machine, or nowhere. Names are resolved by the exit; here only what goes directly.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower::Service;

use super::by_key;
use super::choose::Chooser;
use super::connect::{BoxedIo, Connect, Destination, Host};
use super::exits::{Exits, Rule, Via};
use super::intercept::Interceptor;
use super::names::Names;
use crate::addresses::reserved;
use crate::dial::{Network, SystemNetwork, dial};
use crate::directory::RelayLists;
use crate::error::{Error, ErrorKind};
use crate::name::{self, NostrName};
use crate::pattern::Pattern;
use crate::tunnel::{Compartment, Target, Tunnel};

/// How long an opening waits for the first bytes of a client that has just been told of success: most clients speak
/// first and at once, and those that do not wait so much longer for the server's greeting.
const HOLD_FOR_CLIENT: Duration = Duration::from_millis(2);
/// How long it waits for a request that this program is about to write itself: it comes for certain, and only a busy
/// machine makes it late.
const HOLD_FOR_REQUEST: Duration = Duration::from_millis(20);

/// When SOCKS5 and `CONNECT` clients are told of success before the exit has accepted the stream, which saves them a
/// round trip. A failure then ends their connection with a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimistic {
    /// When the same service has accepted a stream within the last minute, and has not failed to since.
    #[default]
    Auto,
    /// Always, also when the exit was never met.
    Always,
    /// Never: success means that the service is there.
    Never,
}

/// Ends of names that mean something on one network only (RFC 6761, RFC 6762, RFC 8375, ICANN's `internal`): no exit can
/// know them, and none needs to learn of them.
const LOCAL_SUFFIXES: [&str; 4] = ["localhost", "local", "home.arpa", "internal"];

/// What a proxy does with names other than `.nostr`.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The rules; the first that is about a destination decides.
    pub rules: Vec<Rule>,
    /// The exits for what goes through one.
    pub chooser: Arc<Chooser>,
    /// What connects without an exit.
    pub network: Arc<dyn Network>,
    /// How long that may take.
    pub dial_timeout: Duration,
}

/// The route of a proxy. Its clones go by the same ways, also when these change.
#[derive(Debug, Clone)]
pub struct Router {
    tunnel: Arc<Tunnel>,
    ways: watch::Sender<Arc<Ways>>,
}

/// What can change while a proxy runs.
#[derive(Debug, Clone)]
struct Ways {
    optimistic: Optimistic,
    isolate_destinations: bool,
    names: Names,
    lists: Option<Arc<RelayLists>>,
    interceptor: Option<Arc<Interceptor>>,
    plan: Plan,
}

impl Ways {
    /// Whose streams may share a session with this one.
    fn compartment(&self, connect: &Connect) -> Compartment {
        let host = self.isolate_destinations.then(|| connect.destination.host.canonical());
        Compartment::of(&(&connect.isolation, host))
    }
}

impl Router {
    /// Routes `.nostr` names over these tunnels, and nothing else.
    #[must_use]
    pub fn new(tunnel: Arc<Tunnel>, optimistic: Optimistic) -> Self {
        let chooser = Chooser::new(Arc::clone(&tunnel), None, Exits::default(), Vec::new());
        let chooser = Arc::new(chooser);
        let plan = Plan { rules: Vec::new(), chooser, network: Arc::new(SystemNetwork), dial_timeout: Duration::ZERO };
        let ways = Ways {
            optimistic,
            isolate_destinations: false,
            names: Names::default(),
            lists: None,
            interceptor: None,
            plan,
        };
        Self { tunnel, ways: watch::Sender::new(Arc::new(ways)) }
    }

    /// Whether streams to different hosts through the same exit share no session.
    #[must_use]
    pub fn isolating_destinations(self, isolate: bool) -> Self {
        self.change(|ways| ways.isolate_destinations = isolate);
        self
    }

    /// Ends TLS for `.nostr` names with the authority of this machine.
    #[must_use]
    pub fn with_interceptor(self, interceptor: Interceptor) -> Self {
        self.change(|ways| ways.interceptor = Some(Arc::new(interceptor)));
        self
    }

    /// Knows these names, and whatever becomes of them.
    #[must_use]
    pub fn with_names(self, names: Names) -> Self {
        self.change(|ways| ways.names = names);
        self
    }

    /// Finds keys that come without relays by their relay lists, where the configuration does not lead to them.
    #[must_use]
    pub fn with_relay_lists(self, lists: Arc<RelayLists>) -> Self {
        self.change(|ways| ways.lists = Some(lists));
        self
    }

    /// The names that it knows.
    #[must_use]
    pub fn names(&self) -> Names {
        self.ways.borrow().names.clone()
    }

    /// Everything other than `.nostr` names goes as planned.
    #[must_use]
    pub fn with_plan(self, plan: Plan) -> Self {
        self.change(|ways| ways.plan = plan);
        self
    }

    /// From now on streams are opened in this way; those that are open go on.
    pub fn replace(&self, optimistic: Optimistic, isolate_destinations: bool, plan: Plan) {
        self.change(|ways| *ways = Ways { optimistic, isolate_destinations, plan, ..ways.clone() });
    }

    fn change(&self, change: impl FnOnce(&mut Ways)) {
        self.ways.send_modify(|ways| change(Arc::make_mut(ways)));
    }
}

/// How long the opening may wait for the first bytes of a stream that is given out at once.
const fn hold(connect: &Connect) -> Duration {
    if connect.eager { HOLD_FOR_REQUEST } else { HOLD_FOR_CLIENT }
}

impl Service<Connect> for Router {
    type Response = BoxedIo;
    type Error = Error;
    type Future = BoxFuture<'static, Result<BoxedIo, Error>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, connect: Connect) -> Self::Future {
        let (tunnel, ways) = (Arc::clone(&self.tunnel), Arc::clone(&self.ways.borrow()));
        let compartment = ways.compartment(&connect);
        Box::pin(async move {
            if let Host::Name(host) = &connect.destination.host
                && name::is_nostr(host)
            {
                let mut name = ways.names.resolve(host)?;
                let (port, early) = (connect.destination.port, &connect.early_data);
                // What waits for an answer here is a plain HTTP request of our own.
                if let Some(interceptor) = ways.interceptor.as_ref().filter(|i| !connect.eager && i.serves(host, port))
                {
                    let listed = ways.lists.as_ref().filter(|_| name.relays.is_empty());
                    if let Some(relays) = listed.and_then(|lists| lists.proven(&name.public_key)) {
                        name = NostrName::new(name.public_key, relays);
                    }
                    return interceptor.open(compartment, name, host, early).await;
                }
                let mut target = Target::service(&name, port);
                let lists = ways.lists.as_ref().filter(|_| name.relays.is_empty());
                if let Some(lists) = lists {
                    let listed = lists.proven(&name.public_key).map(|relays| NostrName::new(name.public_key, relays));
                    let listed = listed.map(|listed| Target::service(&listed, port));
                    match listed {
                        _ if tunnel.accepts_lately(compartment, &target) => {}
                        Some(listed) if tunnel.accepts_lately(compartment, &listed) => target = listed,
                        _ => return begin(by_key::open(&tunnel, lists, compartment, &name, port).await?, early).await,
                    }
                }
                let at_once = match ways.optimistic {
                    _ if connect.eager => true,
                    Optimistic::Auto => tunnel.accepts_lately(compartment, &target),
                    Optimistic::Always => true,
                    Optimistic::Never => false,
                };
                let stream = if at_once {
                    tunnel.open_eager(compartment, &target, early, hold(&connect)).await?
                } else {
                    tunnel.open(compartment, &target, early).await?
                };
                return Ok(Box::new(stream) as BoxedIo);
            }
            let destination =
                Destination { host: connect.destination.host.canonical(), port: connect.destination.port };
            let (plan, early) = (&ways.plan, &connect.early_data);
            let via = match decide(&plan.rules, &destination)? {
                Way::Exit => None,
                Way::This(exit) => Some(exit),
                Way::Direct(rule) => return begin(plan.dial(rule, &destination).await?, early).await,
            };
            // Never without a sign that the exit will accept, whatever is configured: this is about the destination, too.
            if connect.eager || ways.optimistic != Optimistic::Never {
                let opened = plan.chooser.open_eager(compartment, &destination, via, early, hold(&connect)).await?;
                if let Some(stream) = opened {
                    return Ok(Box::new(stream) as BoxedIo);
                }
            }
            begin(plan.chooser.open(compartment, &destination, via).await?, early).await
        })
    }
}

/// Sends the first bytes, which did not travel with the opening.
async fn begin<S>(mut stream: S, early: &[u8]) -> Result<BoxedIo, Error>
where
    S: super::connect::Io + AsyncWrite,
{
    let send = async {
        stream.write_all(early).await?;
        stream.flush().await
    };
    send.await.map_err(|error| Error::from_io(&error, "sending the first bytes"))?;
    Ok(Box::new(stream))
}

impl Plan {
    /// Connects from this machine. A name that leads to a reserved address is refused, unless the rule is about that name
    /// or another one sends that address directly, too: sites could otherwise reach into this network by their names.
    async fn dial(&self, rule: &Rule, destination: &Destination) -> Result<TcpStream, Error> {
        dial(&*self.network, destination, self.dial_timeout, |found| {
            let allowed = |ip: &IpAddr| {
                let Some(reserved) = reserved(*ip) else { return true };
                let opens = |other: &Rule| {
                    other.via == Via::Direct
                        && other.ports.has(destination.port)
                        && other.to.has_address(*ip)
                        && other.to.is_within(&reserved)
                };
                matches!(rule.to, Pattern::Suffix(_)) || self.rules.iter().any(opens)
            };
            match found.iter().find(|ip| !allowed(ip)) {
                Some(_) => Err(private(destination)),
                None => Ok(found.to_vec()),
            }
        })
        .await
    }
}

/// The way of a destination.
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    Exit,
    This(&'a super::exits::ExitName),
    Direct(&'a Rule),
}

/// Finds the way of a destination that is no `.nostr` name. Private ones are opened only by rules that name them.
fn decide<'a>(rules: &'a [Rule], destination: &Destination) -> Result<Way<'a>, Error> {
    let reserved = match &destination.host {
        Host::Ip(ip) => reserved(*ip),
        Host::Name(_) => None,
    };
    let local = reserved.is_some() || matches!(&destination.host, Host::Name(name) if is_local(name));
    for rule in rules.iter().filter(|rule| rule.ports.has(destination.port)) {
        let (matches, names_it) = match &destination.host {
            Host::Ip(ip) => (rule.to.has_address(*ip), reserved.as_ref().is_some_and(|r| rule.to.is_within(r))),
            Host::Name(name) => (rule.to.has_name(name), matches!(rule.to, Pattern::Suffix(_))),
        };
        match &rule.via {
            _ if !matches => {}
            Via::Reject => {
                let reason = format!("a rule of this proxy forbids {destination} (proxy.rule)");
                return Err(Error::new(ErrorKind::Denied, reason));
            }
            _ if local && !names_it => {}
            Via::Exit => return Ok(Way::Exit),
            Via::This(exit) => return Ok(Way::This(exit)),
            Via::Direct => return Ok(Way::Direct(rule)),
        }
    }
    if local { Err(private(destination)) } else { Ok(Way::Exit) }
}

/// Whether a name is one of this machine or its network.
fn is_local(name: &str) -> bool {
    let below = |suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !name.contains('.') || LOCAL_SUFFIXES.iter().any(|suffix| below(suffix))
}

fn private(destination: &Destination) -> Error {
    let way_out = "only a rule that names it can send it somewhere (proxy.rule)";
    Error::new(ErrorKind::Denied, format!("{destination} is of this machine or of a private network; {way_out}"))
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;

    fn destination(host: &str, port: u16) -> Destination {
        Destination { host: Host::parse(host).canonical(), port }
    }

    fn rules(text: &str) -> Vec<Rule> {
        serde_json::from_str(text).unwrap()
    }

    fn way(rules: &[Rule], host: &str, port: u16) -> String {
        match decide(rules, &destination(host, port)) {
            Ok(Way::Exit) => "exit".to_owned(),
            Ok(Way::This(exit)) => exit.to_string(),
            Ok(Way::Direct(_)) => "direct".to_owned(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Denied, "{host}");
                "reject".to_owned()
            }
        }
    }

    #[test]
    fn what_sets_clients_apart_sets_their_sessions_apart() {
        let tunnel = Arc::new(Tunnel::new(Vec::new(), Arc::default()));
        let router = Router::new(tunnel, Optimistic::default());
        let connect = |listener: &str, credentials: Option<&str>, host: &str| Connect {
            destination: destination(host, 443),
            eager: false,
            early_data: bytes::Bytes::new(),
            isolation: super::super::connect::Isolation {
                listener: Some(listener.parse().unwrap()),
                client: None,
                credentials: credentials.map(str::to_owned),
            },
        };
        let (here, there) = ("127.0.0.1:1", "127.0.0.1:2");
        let one = router.ways.borrow().compartment(&connect(here, Some("a"), "x.example"));
        assert_eq!(one, router.ways.borrow().compartment(&connect(here, Some("a"), "y.example")));
        for other in [connect(here, Some("b"), "x.example"), connect(here, None, "x.example")] {
            assert_ne!(one, router.ways.borrow().compartment(&other));
        }
        assert_ne!(one, router.ways.borrow().compartment(&connect(there, Some("a"), "x.example")));
        let router = router.isolating_destinations(true);
        let one = router.ways.borrow().compartment(&connect(here, None, "x.example"));
        assert_eq!(one, router.ways.borrow().compartment(&connect(here, None, "X.example.")));
        assert_ne!(one, router.ways.borrow().compartment(&connect(here, None, "y.example")));
    }

    #[tokio::test]
    async fn without_an_exit_the_answer_says_how_to_configure_one() {
        let tunnel = Arc::new(Tunnel::new(Vec::new(), Arc::default()));
        let mut router = Router::new(tunnel, Optimistic::default());
        let connect = Connect {
            destination: destination("www.example.com", 443),
            eager: false,
            early_data: bytes::Bytes::new(),
            isolation: super::super::connect::Isolation::default(),
        };
        let error = router.call(connect.clone()).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Denied);
        for words in ["www.example.com", "--exit NPUB", "proxy.exit", "nws exits"] {
            assert!(error.reason().contains(words), "{error}");
        }
        let wrong = Connect { destination: destination("nonsense.nostr", 80), ..connect };
        assert_eq!(router.call(wrong).await.err().unwrap().kind(), ErrorKind::HostUnreachable);
    }

    #[test]
    fn without_rules_private_destinations_go_nowhere_and_all_else_through_an_exit() {
        for host in [
            "127.0.0.1",
            "[::1]",
            "10.0.0.1",
            "0x7f.1",
            "2130706433",
            "localhost",
            "a.localhost",
            "printer",
            "printer.local",
            "x.home.arpa",
            "db.internal",
            "169.254.169.254",
            "[::ffff:1.1.1.1]",
            "LOCALHOST.",
        ] {
            assert_eq!(way(&[], host, 80), "reject", "{host}");
        }
        for host in
            ["example.com", "1.1.1.1", "[2606:4700::1]", "x.nostr.example", "notlocal.example", "mylocalhost.de"]
        {
            assert_eq!(way(&[], host, 80), "exit", "{host}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let npub = NostrName::new(Keys::generate().public_key(), []).npub();
        let rules = rules(&format!(
            r#"[{{"to":"ads.example","via":"reject"}}, {{"to":"bank.example","ports":[443],"via":"{npub}"}},
                {{"to":"9.9.9.0/24","via":"direct"}}, {{"to":"*","ports":[25],"via":"reject"}},
                {{"to":"mail.example","via":"exit"}}, {{"to":"*","via":"direct"}}]"#
        ));
        for (host, port, expected) in [
            ("x.ads.example", 443, "reject"),
            ("bank.example", 443, &*npub),
            ("bank.example", 80, "direct"),
            ("9.9.9.9", 25, "direct"),
            ("mail.example", 25, "reject"),
            ("mail.example", 587, "exit"),
            ("example.com", 80, "direct"),
        ] {
            assert_eq!(way(&rules, host, port), expected, "{host}:{port}");
        }
    }

    #[test]
    fn only_rules_that_name_private_destinations_open_them() {
        let wide =
            rules(r#"[{"to":"*","via":"exit"}, {"to":"0.0.0.0/0","via":"direct"}, {"to":"::/0","via":"direct"}]"#);
        for host in ["127.0.0.1", "[::1]", "10.0.0.1", "localhost", "printer"] {
            assert_eq!(way(&wide, host, 80), "reject", "{host}");
        }
        let named = rules(
            r#"[{"to":"10.1.0.0/16","via":"direct"}, {"to":"printer","via":"direct"}, {"to":"127.0.0.1","via":"exit"}]"#,
        );
        for (host, expected) in [
            ("10.1.2.3", "direct"),
            ("10.2.0.1", "reject"),
            ("printer", "direct"),
            ("127.0.0.1", "exit"),
            ("127.0.0.2", "reject"),
        ] {
            assert_eq!(way(&named, host, 80), expected, "{host}");
        }
        assert_eq!(way(&rules(r#"[{"to":"*","via":"reject"}]"#), "example.com", 80), "reject");
    }
}
