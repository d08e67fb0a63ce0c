//! Names that people keep: the address book by the command line, a proxy that takes it anew on SIGHUP, and keys that come
//! without relays.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use nostr::{EventBuilder, Keys, Kind, RelayUrl, Tag, Timestamp};
use nws::directory::RelayLists;
use nws::limits::Limits;
use nws::name::NostrName;
use nws::proxy::connect::{BoxedIo, Connect, Destination, Host, Isolation};
use nws::proxy::{Optimistic, Router};
use nws::tunnel::Tunnel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

use support::backends::{self, Backend};
use support::client::Client;
use support::command::{Child, Ended, nws};
use support::shaper::Shaper;
use support::world::Setup;
use support::{TestRelay, soon};

/// A home with an address book.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn book(&self) -> PathBuf {
        self.0.path().join(".config/nws/names.toml")
    }

    fn nws(&self, args: &[&str]) -> Command {
        nws(self.0.path(), args)
    }

    async fn name(&self, args: &[&str]) -> Ended {
        Child::start(self.nws(&[&["name"], args].concat())).feed(Vec::new()).await
    }
}

/// An exit that is known by the one port that it serves.
struct TestExit {
    name: NostrName,
    keys: Keys,
    port: u16,
    _service: Backend,
    _end: DropGuard,
}

impl TestExit {
    async fn start(relay: &RelayUrl, port: u16) -> Self {
        let service = backends::http().await;
        let setup = Setup::new(std::slice::from_ref(relay), &[(port, service.addr)]);
        let end = CancellationToken::new();
        setup.start_exit(&end).await;
        let name = NostrName::new(setup.keys.public_key(), [relay.clone()]);
        Self { name, keys: setup.keys, port, _service: service, _end: end.drop_guard() }
    }
}

/// Asks a proxy for a page of a host; the status of the answer and the error that it names.
async fn ask(proxy: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let request = format!("GET http://{host}/request HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon("an answer", stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_kept_listed_and_forgotten_and_never_changed_in_silence() {
    let home = Home::new();
    let (first, second) =
        (NostrName::new(Keys::generate().public_key(), []), NostrName::new(Keys::generate().public_key(), []));
    let added = home.name(&["add", "wallet", &first.npub()]).await;
    assert_eq!(added.code, Some(0), "{}", added.stderr);
    assert!(added.text().contains(&first.npub()), "it is shown what is kept: {}", added.text());
    let text = fs::read_to_string(home.book()).unwrap();
    let refused = home.name(&["add", "wallet", &second.npub()]).await;
    assert_eq!(refused.code, Some(1));
    for words in [&first.npub(), &second.npub(), "--replace", "names.toml"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert_eq!(fs::read_to_string(home.book()).unwrap(), text);
    assert_eq!(home.name(&["add", "wallet", &second.npub(), "--replace"]).await.code, Some(0));
    let listed: serde_json::Value = serde_json::from_slice(&home.name(&["list", "--json"]).await.stdout).unwrap();
    assert_eq!(listed["wallet"]["npub"], second.npub());
    assert!(home.name(&["list"]).await.text().starts_with("wallet.nostr  npub1"));
    assert_eq!(home.name(&["remove", "wallet.nostr"]).await.code, Some(0));
    let absent = home.name(&["remove", "wallet"]).await;
    assert!(absent.code == Some(1) && absent.stderr.contains("wallet.nostr is not kept"), "{}", absent.stderr);
    for (label, why) in [("Wallet", "lower-case"), (&first.npub()[..], "looks like a key"), ("a.b", "lower-case")] {
        let wrong = home.name(&["add", label, &first.npub()]).await;
        assert!(wrong.code == Some(64) && wrong.stderr.contains(why), "{}", wrong.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_book_and_configuration_must_not_mean_two_keys() {
    let home = Home::new();
    let (first, second) =
        (NostrName::new(Keys::generate().public_key(), []), NostrName::new(Keys::generate().public_key(), []));
    home.name(&["add", "wallet", &first.npub()]).await;
    let variable = format!("{{wallet=\"{}\"}}", second.npub());
    let mut command = home.nws(&["name", "list"]);
    command.env("NWS_NAMES", &variable);
    let refused = Child::start(command).feed(Vec::new()).await;
    assert_eq!(refused.code, Some(78));
    assert!(refused.stderr.contains("names.wallet") && refused.stderr.contains(&second.npub()), "{}", refused.stderr);
    let mut command = home.nws(&["name", "add", "shop", &first.npub()]);
    command.env("NWS_NAMES", format!("{{shop=\"{}\"}}", second.npub()));
    let refused = Child::start(command).feed(Vec::new()).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("in the configuration"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_proxy_takes_the_book_anew_on_sighup_but_no_key_that_nobody_asked_for() {
    let relay = TestRelay::start();
    let (one, two) = (TestExit::start(&relay.url, 80).await, TestExit::start(&relay.url, 81).await);
    let home = Home::new();
    home.name(&["add", "shop", &one.name.to_string()]).await;
    let info = home.0.path().join("proxy.json");
    let mut proxy =
        Child::start(home.nws(&["proxy", "--listen", "127.0.0.1:0", "--info-file", info.to_str().unwrap()]));
    proxy.until_says("the proxy listens").await;
    while !info.exists() {
        tokio::task::yield_now().await;
    }
    let told: serde_json::Value = serde_json::from_slice(&fs::read(&info).unwrap()).unwrap();
    let address = told["listen"][0].as_str().unwrap().to_owned();
    let reaches = async |host: &str, exit: &TestExit| {
        let answer = ask(&address, &format!("{host}:{}", exit.port)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    };
    reaches("shop.nostr", &one).await;
    reaches("SHOP.nostr", &one).await;
    let unknown = ask(&address, "wallet.nostr").await;
    assert!(unknown.starts_with("HTTP/1.1 502") && unknown.contains("nws name add"), "{unknown}");

    // Another program writes the book.
    let text = format!("[names]\nshop = \"{}\"\nwallet = \"{}\"\n", one.name, two.name);
    fs::write(home.book(), &text).unwrap();
    proxy.signal("HUP");
    proxy.until_says("read again").await;
    reaches("wallet.nostr", &two).await;

    // And gives a name another key.
    fs::write(home.book(), text.replace(&one.name.to_string(), &two.name.to_string())).unwrap();
    proxy.signal("HUP");
    let warned = proxy.until_says("another key").await;
    assert!(
        warned.contains(&one.name.npub()) && warned.contains(&two.name.npub()) && warned.contains("WARN"),
        "{warned}"
    );
    proxy.until_says("read again").await;
    reaches("shop.nostr", &one).await;

    // A book that is broken changes nothing.
    fs::write(home.book(), "[names").unwrap();
    proxy.signal("HUP");
    proxy.until_says("the configuration is wrong").await;
    reaches("wallet.nostr", &two).await;

    // What is asked for is done.
    fs::write(home.book(), &text).unwrap();
    home.name(&["add", "shop", &two.name.to_string(), "--replace"]).await;
    home.name(&["remove", "wallet"]).await;
    proxy.signal("HUP");
    proxy.until_says("read again").await;
    reaches("shop.nostr", &two).await;
    assert!(ask(&address, "wallet.nostr").await.starts_with("HTTP/1.1 502"));
}

/// A proxy's route that knows these relays, and looks lists up on those.
fn router(relays: &[&TestRelay], lookup: &[&TestRelay]) -> Router {
    let urls = |relays: &[&TestRelay]| relays.iter().map(|relay| relay.url.clone()).collect::<Vec<_>>();
    router_at(urls(relays), urls(lookup), Optimistic::Never)
}

fn router_at(relays: Vec<RelayUrl>, lookup: Vec<RelayUrl>, optimistic: Optimistic) -> Router {
    let limits = Arc::new(Limits::default());
    let tunnel = Arc::new(Tunnel::new(relays, Arc::clone(&limits)));
    let lists = RelayLists::new(Arc::clone(&tunnel), lookup, limits);
    Router::new(tunnel, optimistic).with_relay_lists(Arc::new(lists))
}

async fn open(router: &Router, exit: &TestExit) -> Result<BoxedIo, nws::Error> {
    let destination = Destination { host: Host::Name(exit.name.npub()), port: exit.port };
    let connect = Connect {
        destination,
        early_data: "GET /request HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(),
        eager: false,
        isolation: Isolation::default(),
    };
    soon("an answer of the route", router.clone().oneshot(connect)).await
}

async fn works(router: &Router, exit: &TestExit) {
    let mut stream = open(router, exit).await.unwrap_or_else(|error| panic!("{error}"));
    let mut answer = String::new();
    soon("the page", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(answer.matches("GET /request").count(), 1, "{answer}");
}

/// Publishes a relay list, as another client of its owner would.
async fn publish(on: &TestRelay, keys: &Keys, at: u64, tags: &[&[&str]], forge: bool) {
    let tags = tags.iter().map(|tag| Tag::parse(tag.iter().copied()).unwrap());
    let at = Timestamp::from_secs(Timestamp::now().as_secs() - at);
    let mut event =
        EventBuilder::new(Kind::from(10_002), "").tags(tags).custom_created_at(at).sign_with_keys(keys).unwrap();
    if forge {
        event.content = "forged".into();
    }
    let mut client = Client::connect(&on.url).await;
    client.publish(&event).await;
    assert_eq!(client.next_ok().await.0, !forge);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_alone_is_found_by_its_relay_list_where_the_configuration_does_not_lead_to_it() {
    let (home, known, index) = (TestRelay::start(), TestRelay::start(), TestRelay::start());
    let exit = TestExit::start(&home.url, 80).await;
    let there = home.url.to_string();
    // Where it writes is not where it listens, and older lists do not count.
    publish(&index, &exit.keys, 100, &[&["r", "ws://127.0.0.1:1"]], false).await;
    publish(&index, &exit.keys, 50, &[&["r", "ws://127.0.0.1:1", "write"], &["r", &there, "read"], &["x"]], false)
        .await;
    for (relays, lookup) in [(&[][..], &[&index][..]), (&[&known], &[&index]), (&[&known, &index], &[&known, &index])] {
        let router = router(relays, lookup);
        works(&router, &exit).await;
        works(&router, &exit).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relays_of_the_configuration_come_first_and_lists_are_not_needed_for_them() {
    let relay = TestRelay::start();
    let exit = TestExit::start(&relay.url, 80).await;
    publish(&relay, &exit.keys, 0, &[&["r", "ws://127.0.0.1:1"]], false).await;
    works(&router(&[&relay], &[&relay]), &exit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_a_list_is_told_to_be_one() {
    let (home, index) = (TestRelay::start(), TestRelay::start());
    let exit = TestExit::start(&home.url, 80).await;
    // Nobody listens where it only writes.
    publish(&index, &exit.keys, 0, &[&["r", home.url.as_str(), "write"]], false).await;
    let error = open(&router(&[], &[&index]), &exit).await.err().unwrap();
    assert!(error.reason().contains("kind 10002"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_alone_costs_no_more_than_its_whole_name_once_its_exit_has_accepted() {
    let (home, index) = (TestRelay::start(), TestRelay::start());
    let exit = TestExit::start(&home.url, 80).await;
    let between = Shaper::start(&home.url, 1).await;
    publish(&index, &exit.keys, 0, &[&["r", between.url().as_str()]], false).await;
    for configured in [vec![], vec![between.url()]] {
        let router = router_at(configured, vec![index.url.clone()], Optimistic::Auto);
        works(&router, &exit).await;
        // Given out while the exit cannot even be asked.
        between.change(|faults| faults.stall(true));
        let mut stream = open(&router, &exit).await.unwrap_or_else(|error| panic!("{error}"));
        between.change(|faults| faults.stall(false));
        let mut answer = String::new();
        soon("the page", stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.matches("GET /request").count() == 1, "{answer}");
    }
}

/// A domain that gives out keys over HTTPS, and the file of the authority that vouches for it.
async fn domain(document: String, home: &std::path::Path) -> (std::net::SocketAddr, PathBuf) {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let path = home.join("authority.pem");
    fs::write(&path, certified.cert.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("localhost:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
            let answer = if request.starts_with(b"GET /.well-known/nostr.json?name=") {
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}", document.len())
            } else {
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()
            };
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_is_asked_for_a_key_which_is_shown_before_it_is_kept() {
    let home = Home::new();
    let name = NostrName::new(Keys::generate().public_key(), [RelayUrl::parse("wss://relay.example").unwrap()]);
    let hex = name.public_key.to_hex();
    let document = format!(r#"{{"names":{{"alice":"{hex}"}},"relays":{{"{hex}":["wss://relay.example"]}}}}"#);
    let (address, authority) = domain(document, home.0.path()).await;
    let find = async |args: &[&str], authority: Option<&std::path::Path>| {
        let mut command = home.nws(&[&["name", "find"], args].concat());
        command.env_remove("SSL_CERT_DIR");
        if let Some(authority) = authority {
            command.env("SSL_CERT_FILE", authority);
        }
        Child::start(command).feed(Vec::new()).await
    };
    let at = |user: &str| format!("{user}@localhost:{}", address.port());
    let found = find(&[&at("alice")], Some(&authority)).await;
    assert_eq!(found.code, Some(0), "{}", found.stderr);
    for part in [name.npub(), name.to_string(), "wss://relay.example".to_owned()] {
        assert!(found.text().contains(&part), "{}", found.text());
    }
    assert!(!home.book().exists(), "nothing is kept without being asked for");
    let asked = find(&[&at("alice"), "--add", "alice"], Some(&authority)).await;
    assert!(asked.code == Some(1) && asked.text().contains(&name.npub()), "{}", asked.stderr);
    assert!(asked.stderr.contains("--yes") && !home.book().exists(), "{}", asked.stderr);
    let kept = find(&[&at("alice"), "--add", "alice", "--yes"], Some(&authority)).await;
    assert_eq!(kept.code, Some(0), "{}", kept.stderr);
    assert!(home.name(&["list"]).await.text().contains(&name.npub()));
    let unknown = find(&[&at("bob")], Some(&authority)).await;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("knows no \"bob\""), "{}", unknown.stderr);
    // Nobody may speak for the domain whom no authority vouches for.
    let stranger = find(&[&at("alice")], None).await;
    assert!(stranger.code == Some(1) && stranger.stderr.contains("certificate"), "{}", stranger.stderr);
    // A kept name has a QR code.
    let code = home.name(&["qr", "alice.nostr"]).await;
    assert!(code.text().ends_with(&format!("http://{name}/\n")) && code.text().contains('█'), "{}", code.text());
}
