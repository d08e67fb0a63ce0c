//! Relays that are reached through a SOCKS5 proxy alone: every connection passes it, and no name is resolved here.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use fast_socks5::ReplyError;
use fast_socks5::server::Socks5ServerProtocol;
use fast_socks5::util::target_addr::TargetAddr;
use nostr::{Keys, RelayUrl};
use nws::exit::{Exit, Services};
use nws::limits::Limits;
use nws::name::NostrName;
use nws::relay::Upstream;
use nws::tunnel::{Acceptor, Compartment, Target, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use support::backends::{self, pattern};
use support::command::{Child, nws};
use support::{ANY_PORT, TestRelay, soon};

/// A name that resolves nowhere but in the proxy.
const HIDDEN: &str = "relay.hidden.invalid";

/// A SOCKS5 server that knows one name, wants a password, and notes what it is asked.
struct Socks {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _end: tokio_util::task::AbortOnDropHandle<()>,
}

impl Socks {
    async fn start(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let (addr, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let noted = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, relay, Arc::clone(&noted)));
            }
        });
        Self { addr, asked, _end: tokio_util::task::AbortOnDropHandle::new(task) }
    }

    fn upstream(&self, password: &str) -> Upstream {
        format!("socks5://me:{password}@{}", self.addr).parse().unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(stream: TcpStream, relay: SocketAddr, asked: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let check = |user: String, password: String| user == "me" && password == "secret";
    let (protocol, _) = Socks5ServerProtocol::accept_password_auth(stream, check).await.ok()?;
    let (reply, _, target) = protocol.read_command().await.ok()?;
    asked.lock().unwrap().push(target.to_string());
    let known = matches!(&target, TargetAddr::Domain(name, _) if name == HIDDEN);
    if !known {
        reply.reply_error(&ReplyError::HostUnreachable).await.ok()?;
        return None;
    }
    let mut far = TcpStream::connect(relay).await.ok()?;
    let mut near = reply.reply_success(relay).await.ok()?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await.ok()?;
    Some(())
}

/// A relay under the name that only the proxy knows.
fn hidden(port: u16) -> RelayUrl {
    RelayUrl::parse(&format!("ws://{HIDDEN}:{port}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_only_the_proxy_reaches_carries_the_tunnel() {
    let (relay, service) = (TestRelay::start(), backends::echo().await);
    let socks = Socks::start(relay.addr).await;
    let upstream = Some(Arc::new(socks.upstream("secret")));
    let (keys, limits, url) = (Keys::generate(), Arc::new(Limits::default()), hidden(7777));
    let relays = [url.clone()];
    let mut acceptor = Acceptor::start_through(keys.clone(), &relays, Arc::clone(&limits), upstream.clone());
    soon("the exit's relay", acceptor.ready()).await;
    let services = Services { by_port: [(7, service.addr.to_string())].into(), default: None };
    let exit = Exit::new(services, Arc::clone(&limits));
    let serving =
        tokio::spawn(async move { exit.serve(&mut acceptor, &CancellationToken::new(), &TaskTracker::new()).await });

    let tunnel = Tunnel::new(Vec::new(), limits).through(upstream);
    let name = NostrName::new(keys.public_key(), [url]);
    let mut stream = soon("a stream", tunnel.open(Compartment::NONE, &Target::service(&name, 7), &[])).await.unwrap();
    let sent = pattern(1, 300_000);
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let mut back = vec![0; sent.len()];
    let (wrote, read) = tokio::join!(writer.write_all(&sent), soon("the echo", reader.read_exact(&mut back)));
    wrote.unwrap();
    read.unwrap();
    assert!(back == sent);
    // Websocket and NIP-11 document, of the exit and of the tunnel.
    let asked = socks.asked();
    assert_eq!(asked, vec![format!("{HIDDEN}:7777"); 4]);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_setting_counts_for_the_commands_and_its_password_stays_in_it() {
    let relay = TestRelay::start();
    let socks = Socks::start(relay.addr).await;
    let home = tempfile::tempdir().unwrap();
    let run = async |url: &str, extra: &[(&str, &str)]| {
        let relay = hidden(7777).to_string();
        let mut command = nws(home.path(), &["exits", "--wait", "2s", "-vv", "--relay", &relay]);
        command.env("NWS_RELAY_PROXY__URL", url).envs(extra.iter().copied());
        Child::start(command).feed(Vec::new()).await
    };
    let ended = run(&format!("socks5://me:secret@{}", socks.addr), &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("relay connected") && !ended.stderr.contains("secret"), "{}", ended.stderr);
    assert!(!socks.asked().is_empty());
    let wrong = run(&format!("socks5://me:wrongword@{}", socks.addr), &[]).await;
    assert!(
        wrong.stderr.contains("does not accept the user") && !wrong.stderr.contains("wrongword"),
        "{}",
        wrong.stderr
    );
    let invalid = run("http://me:secret@h:1", &[]).await;
    assert_eq!(invalid.code, Some(78));
    assert!(invalid.stderr.contains("relay_proxy.url") && !invalid.stderr.contains("secret"), "{}", invalid.stderr);
}
