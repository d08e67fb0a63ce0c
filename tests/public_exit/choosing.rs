//! Other hosts through a proxy and its exits: which exit is taken, what happens when one is gone, and what a client
//! hears when it may not go there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use nostr::{Keys, RelayUrl};
use nws::directory::{Announcer, Directory, Profile};
use nws::exit::{Dialer, Exit, Policy, Services};
use nws::limits::Limits;
use nws::name::NostrName;
use nws::proxy::exits::{ExitName, Exits, Rule};
use nws::proxy::{Chooser, Listener, Optimistic, Plan, Router};
use nws::tunnel::{Acceptor, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::announcing::until;
use super::network::TestNetwork;
use super::support::deployed::{OldEntry, Options};
use super::support::shaper::Shaper;
use super::support::{ANY_PORT, TestRelay, soon};

/// A public exit in whose network every address is a server that answers with the exit's letter.
struct PublicExit {
    name: ExitName,
    network: Arc<TestNetwork>,
    end: CancellationToken,
    announcing: AbortOnDropHandle<()>,
    _serving: AbortOnDropHandle<()>,
}

impl PublicExit {
    async fn start(relay: &RelayUrl, letter: u8) -> Self {
        let backend = TcpListener::bind(ANY_PORT).await.unwrap();
        let network = TestNetwork::to(backend.local_addr().unwrap())
            .name("site.example", &["1.1.1.1"])
            .name("other.example", &["1.0.0.1"])
            .name("inside.example", &["10.0.0.1"])
            .shared();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = backend.accept().await {
                tokio::spawn(async move {
                    let mut said = vec![letter];
                    let _ = stream.read_buf(&mut said).await;
                    let _ = stream.write_all(&said).await;
                });
            }
        });
        let (keys, limits) = (Keys::generate(), Arc::new(Limits::default()));
        let mut acceptor = Acceptor::start(keys.clone(), std::slice::from_ref(relay), Arc::clone(&limits));
        soon("the exit's relay", acceptor.ready()).await;
        let policy = Policy::default();
        let (_, ports) = tokio::sync::watch::channel(policy.open_ports());
        let profile = Profile { interval: Duration::from_secs(10), ports, name: None, contact: None };
        let announcer = Announcer::new(keys.clone(), acceptor.links(), acceptor.heard_on(), profile);
        let end = CancellationToken::new();
        let announcing = AbortOnDropHandle::new(tokio::spawn(announcer.run(end.clone())));
        let exit = Exit::public(Services::default(), Some(Dialer::over(policy, network.clone())), limits);
        let serving = AbortOnDropHandle::new(tokio::spawn(async move {
            exit.serve(&mut acceptor, &CancellationToken::new(), &TaskTracker::new()).await;
        }));
        Self { name: ExitName(NostrName::new(keys.public_key(), [])), network, end, announcing, _serving: serving }
    }

    /// Ends it in order: it is heard until it has taken back its announcement.
    async fn stop(self) {
        self.end.cancel();
        soon("the announcement is taken back", self.announcing).await.unwrap();
    }
}

/// A proxy that finds its exits on this relay.
struct Proxy {
    addr: SocketAddr,
    directory: Arc<Directory>,
    _end: DropGuard,
}

impl Proxy {
    async fn start(
        relay: &RelayUrl,
        exits: Exits,
        exclude: Vec<ExitName>,
        rules: Vec<Rule>,
        network: TestNetwork,
    ) -> Self {
        let limits = Arc::new(Limits::default());
        let tunnel = Arc::new(Tunnel::new(vec![relay.clone()], Arc::clone(&limits)));
        let wanted = match &exits {
            Exits::Any => None,
            Exits::Listed(list) => Some(list.iter().map(|exit| exit.0.public_key).collect()),
        };
        let directory = Arc::new(Directory::start(&[tunnel.link(relay)], wanted, Arc::clone(&limits)));
        let chooser = Chooser::new(Arc::clone(&tunnel), Some(Arc::clone(&directory)), exits, exclude);
        let plan =
            Plan { rules, chooser: Arc::new(chooser), network: network.shared(), dial_timeout: limits.dial_timeout };
        let listener = Listener::bind(ANY_PORT).await.unwrap();
        let addr = listener.local_addr();
        let end = CancellationToken::new();
        let router = Router::new(tunnel, Optimistic::default()).with_plan(plan);
        tokio::spawn(listener.serve(router, limits, end.clone(), TaskTracker::new()));
        Self { addr, directory, _end: end.drop_guard() }
    }

    /// A proxy with these exits and nothing else.
    async fn with(relay: &RelayUrl, exits: &[&PublicExit]) -> Self {
        let list = exits.iter().map(|exit| exit.name.clone()).collect();
        Self::start(relay, Exits::Listed(list), Vec::new(), Vec::new(), TestNetwork::default()).await
    }

    /// A connection on which a host was asked for over SOCKS5, with these first bytes behind the request.
    async fn ask(&self, host: &str, port: u16, first_bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let mut request = vec![5, 1, 0, 5, 1, 0];
        match host.parse() {
            Ok(std::net::IpAddr::V4(ip)) => request.extend([&[1][..], &ip.octets()].concat()),
            Ok(std::net::IpAddr::V6(ip)) => request.extend([&[4][..], &ip.octets()].concat()),
            Err(_) => request.extend([&[3, u8::try_from(host.len()).unwrap()], host.as_bytes()].concat()),
        }
        request.extend(port.to_be_bytes());
        request.extend(first_bytes);
        stream.write_all(&request).await.unwrap();
        let mut method = [0; 2];
        soon("the method", stream.read_exact(&mut method)).await.unwrap();
        stream
    }

    /// What answers a host over SOCKS5, with the client's own word behind it; or the reply code.
    async fn socks(&self, host: &str, port: u16) -> Result<String, u8> {
        // The client's first bytes are there before the reply, and still arrive once.
        let mut stream = self.ask(host, port, b"!").await;
        let code = reply(&mut stream).await;
        if code != 0 {
            return Err(code);
        }
        let mut answer = String::new();
        soon(host, stream.read_to_string(&mut answer)).await.unwrap();
        Ok(answer)
    }

    /// The head of the answer to an HTTP `CONNECT`.
    async fn connect(&self, authority: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream
            .write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
            assert!(soon(authority, stream.read_buf(&mut answer)).await.unwrap() > 0);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// The code of the reply to a SOCKS5 request.
async fn reply(stream: &mut TcpStream) -> u8 {
    let mut reply = [0; 10];
    soon("a reply", stream.read_exact(&mut reply)).await.unwrap();
    reply[1]
}

#[tokio::test]
async fn when_the_first_exit_is_gone_the_next_request_goes_through_the_second_by_itself() {
    let relay = TestRelay::start();
    let (a, b) = (PublicExit::start(&relay.url, b'A').await, PublicExit::start(&relay.url, b'B').await);
    let proxy = Proxy::with(&relay.url, &[&a, &b]).await;
    for host in ["site.example", "1.1.1.1", "2606:4700::1111", "SITE.example."] {
        assert_eq!(proxy.socks(host, 80).await.as_deref(), Ok("A!"), "{host}");
    }
    assert_eq!(a.network.connected()[..2], ["1.1.1.1:80", "1.1.1.1:80"].map(|text| text.parse().unwrap()));
    // Killed: it neither says goodbye nor takes its announcement back.
    drop(a);
    assert_eq!(proxy.socks("site.example", 80).await.as_deref(), Ok("B!"));
    assert_eq!(proxy.socks("other.example", 443).await.as_deref(), Ok("B!"));
    assert_eq!(b.network.connected().len(), 2);
    // A refusal of the one that is there is not held back until the other one has not answered, either.
    let refused = tokio::time::timeout(Limits::default().open_timeout / 2, proxy.socks("site.example", 25));
    assert_eq!(refused.await.expect("an answer well before the time is up"), Err(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_exit_is_trusted_with_what_it_has_just_accepted_and_one_of_several_is_not() {
    let relay = TestRelay::start();
    let (a, b) = (PublicExit::start(&relay.url, b'A').await, PublicExit::start(&relay.url, b'B').await);
    let between = Shaper::start(&relay.url, 1).await;
    // Reached there alone, whatever relays their announcements name.
    let through = |exit: &PublicExit| ExitName(NostrName::new(exit.name.0.public_key, [between.url()]));
    let proxy = async |exits: &[&PublicExit]| {
        let exits = Exits::Listed(exits.iter().map(|exit| through(exit)).collect());
        Proxy::start(&relay.url, exits, Vec::new(), Vec::new(), TestNetwork::default()).await
    };
    let (alone, both) = (proxy(&[&a]).await, proxy(&[&a, &b]).await);
    for proxy in [&alone, &both] {
        assert_eq!(proxy.socks("site.example", 80).await.as_deref(), Ok("A!"));
    }
    between.change(|faults| faults.stall(true));
    let mut told = alone.ask("site.example", 80, b"").await;
    assert_eq!(reply(&mut told).await, 0, "while the exit cannot even be asked");
    let mut other_port = alone.ask("site.example", 443, b"").await;
    let mut untold = both.ask("site.example", 80, b"").await;
    // A round trip with the proxies, after those requests; by then it would have been told, too.
    told.write_all(b"!").await.unwrap();
    assert_eq!(reply(&mut alone.ask("site.example", 80, b"").await).await, 0);
    assert_eq!(reply(&mut both.ask("127.0.0.1", 80, b"").await).await, 2);
    for silent in [&mut other_port, &mut untold] {
        let told = silent.read_u8().now_or_never();
        assert!(told.is_none(), "{told:?}");
    }
    between.change(|faults| faults.stall(false));
    for late in [&mut other_port, &mut untold] {
        assert_eq!(reply(late).await, 0);
    }
    let mut answer = String::new();
    soon("the answer", told.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "A!");
}

#[tokio::test]
async fn an_exit_that_ends_in_order_is_not_even_tried() {
    let relay = TestRelay::start();
    let (a, b) = (PublicExit::start(&relay.url, b'A').await, PublicExit::start(&relay.url, b'B').await);
    let proxy = Proxy::start(&relay.url, Exits::Any, vec![b.name.clone()], Vec::new(), TestNetwork::default()).await;
    assert_eq!(proxy.socks("site.example", 80).await.as_deref(), Ok("A!"), "the other one is excluded");
    let key = a.name.0.public_key;
    a.stop().await;
    until(&proxy.directory, "the deletion is heard", |directory| directory.get(&key).is_none()).await;
    assert_eq!(proxy.socks("site.example", 80).await, Err(4), "nobody is left");
    assert_eq!(b.network.connected(), []);
}

#[tokio::test]
async fn what_an_exit_refuses_is_refused_to_the_client() {
    let relay = TestRelay::start();
    let exit = PublicExit::start(&relay.url, b'A').await;
    let proxy = Proxy::with(&relay.url, &[&exit]).await;
    for (host, port) in
        [("inside.example", 80), ("site.example", 25), ("127.0.0.1.", 80), ("10.0.0.1", 443), ("0x7f.1", 80)]
    {
        assert_eq!(proxy.socks(host, port).await, Err(2), "{host}:{port}");
        let answer = proxy.connect(&format!("{host}:{port}")).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("nws-error: denied"), "{answer}");
    }
    assert_eq!(proxy.socks("unknown.example", 80).await, Err(4));
    assert_eq!(exit.network.connected(), []);
}

#[tokio::test]
async fn an_exit_that_is_not_public_serves_its_services_and_nothing_else() {
    let relay = TestRelay::start();
    let backend = TcpListener::bind(ANY_PORT).await.unwrap();
    let mut setup =
        super::support::world::Setup::new(std::slice::from_ref(&relay.url), &[(80, backend.local_addr().unwrap())]);
    setup.keys = Keys::generate();
    let end = CancellationToken::new();
    setup.start_exit(&end).await;
    let exits = Exits::Listed(vec![ExitName(NostrName::new(setup.keys.public_key(), [relay.url.clone()]))]);
    let proxy = Proxy::start(&relay.url, exits, Vec::new(), Vec::new(), TestNetwork::default()).await;
    for host in ["site.example", "1.1.1.1"] {
        assert_eq!(proxy.socks(host, 80).await, Err(2), "{host}");
    }
    end.cancel();
}

#[tokio::test]
async fn rules_send_a_host_directly_or_through_an_exit_of_its_own() {
    let relay = TestRelay::start();
    let (a, b) = (PublicExit::start(&relay.url, b'A').await, PublicExit::start(&relay.url, b'B').await);
    let here = TcpListener::bind(ANY_PORT).await.unwrap();
    let network = TestNetwork::to(here.local_addr().unwrap())
        .name("direct.example", &["8.8.8.8"])
        .name("inside.example", &["10.0.0.1"]);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = here.accept().await {
            stream.write_all(b"here").await.unwrap();
            let _ = stream.read_u8().await;
        }
    });
    let rules = format!(
        r#"[{{"to":"direct.example","via":"direct"}}, {{"to":"other.example","via":"{}"}},
            {{"to":"*","ports":[81],"via":"reject"}}, {{"to":"10.9.0.0/16","via":"direct"}}, {{"to":"*","ports":[443],"via":"direct"}}]"#,
        b.name
    );
    let rules = serde_json::from_str(&rules).unwrap();
    let proxy = Proxy::start(&relay.url, Exits::Listed(vec![a.name.clone()]), Vec::new(), rules, network).await;
    assert_eq!(proxy.socks("direct.example", 80).await.as_deref(), Ok("here"));
    assert_eq!(proxy.socks("10.9.0.1", 80).await.as_deref(), Ok("here"));
    assert_eq!(proxy.socks("other.example", 80).await.as_deref(), Ok("B!"));
    assert_eq!(proxy.socks("site.example", 80).await.as_deref(), Ok("A!"));
    assert_eq!(proxy.socks("site.example", 81).await, Err(2));
    assert_eq!(proxy.socks("10.8.0.1", 80).await, Err(2));
    // Directly, but not to where a name leads into this network.
    assert_eq!(proxy.socks("inside.example", 443).await, Err(2));
}

#[tokio::test]
async fn an_entry_of_the_go_program_reaches_other_hosts_by_their_addresses() {
    let relay = TestRelay::start();
    let exit = PublicExit::start(&relay.url, b'A').await;
    let options = Options { lifetime: Duration::from_secs(60), leak_websockets: false, ..Options::entry().in_order() };
    let entry = OldEntry::start(exit.name.0.public_key, std::slice::from_ref(&relay.url), options).await;
    // It has resolved the name itself, and is told nothing when it is refused.
    let mut inside = entry.connect_to("10.0.0.1:80").await.unwrap();
    inside.write_all(b"!").await.unwrap();
    let mut stream = entry.connect_to("1.1.1.1:80").await.unwrap();
    stream.write_all(b"!").await.unwrap();
    let mut answer = [0; 2];
    soon("an answer", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"A!");
    assert_eq!(exit.network.connected(), ["1.1.1.1:80".parse().unwrap()]);
}
