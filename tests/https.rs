//! HTTPS to `.nostr` names, over a real relay and with rustls as the client: TLS that the exit ends with a certificate it
//! publishes, and TLS that the proxy ends with the authority of its machine.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nostr::Keys;
use nws::exit::{Exit, Services, Terminator};
use nws::limits::Limits;
use nws::name::NostrName;
use nws::pinned::Fingerprint;
use nws::proxy::{Interceptor, Listener, Optimistic, Router};
use nws::relay::Links;
use nws::tls::{Authority, Certificate, Kept, Published, Publisher, Source, search};
use nws::tunnel::{Acceptor, Tunnel};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use support::backends::{self, pattern, pattern_sha256};
use support::world::read_answer;
use support::{ANY_PORT, TestRelay, soon};

/// An exit, and the certificates that it publishes.
struct Site {
    name: NostrName,
    published: watch::Sender<Vec<CertificateDer<'static>>>,
    _end: DropGuard,
}

/// What an exit is started with.
struct Setup<'a> {
    relay: &'a TestRelay,
    keys: &'a Keys,
    services: &'a [(u16, SocketAddr)],
    /// The ports with TLS, and what the services speak.
    tls: &'a [u16],
    alpn: &'a [&'a str],
}

/// A certificate of this exit, kept in this directory.
fn kept(name: &NostrName, directory: &Path) -> Kept {
    let source = Source::Made { name: name.clone(), directory: directory.to_owned() };
    Kept::new(source, SystemTime::now()).unwrap()
}

impl Setup<'_> {
    fn name(&self) -> NostrName {
        NostrName::new(self.keys.public_key(), [self.relay.url.clone()])
    }

    /// Starts the exit; it shows this certificate, and publishes these.
    async fn start(&self, shown: &Kept, published: Vec<CertificateDer<'static>>) -> Site {
        let limits = Arc::new(Limits::default());
        let end = CancellationToken::new();
        let relays = [self.relay.url.clone()];
        let mut acceptor = Acceptor::start(self.keys.clone(), &relays, Arc::clone(&limits));
        soon("the exit's relay", acceptor.ready()).await;
        let by_port: BTreeMap<_, _> = self.services.iter().map(|(port, addr)| (*port, addr.to_string())).collect();
        let exit = Exit::new(Services { by_port, default: None }, limits);
        let alpn: Vec<_> = self.alpn.iter().map(ToString::to_string).collect();
        exit.set_terminator(Terminator::new(self.tls.iter().copied().collect(), shown.shown(), &alpn).unwrap());
        let (sender, receiver) = watch::channel(published);
        if !sender.borrow().is_empty() {
            let publisher = Publisher::new(self.keys.clone(), acceptor.links(), receiver);
            tokio::spawn(publisher.run(end.clone()));
        }
        let ending = end.clone();
        tokio::spawn(async move {
            exit.serve(&mut acceptor, &ending, &TaskTracker::new()).await;
            acceptor.close().await;
        });
        if !sender.borrow().is_empty() {
            self.until_published(&sender.borrow().clone()).await;
        }
        Site { name: self.name(), published: sender, _end: end.drop_guard() }
    }

    /// Waits until the relay has these certificates.
    async fn until_published(&self, certificates: &[CertificateDer<'static>]) {
        let links = Links::new(Arc::new(Limits::default()));
        let link = links.get(&self.relay.url);
        soon("the certificates on the relay", async {
            while find(std::slice::from_ref(&link), self.keys).await.is_none_or(|p| p.certificates != certificates) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

async fn find(links: &[Arc<nws::relay::Link>], keys: &Keys) -> Option<Published> {
    search(links, keys.public_key(), Duration::from_secs(30)).await.unwrap().certificates()
}

/// A proxy that ends TLS with this authority, or does not.
async fn proxy(authority: Option<Authority>) -> (SocketAddr, DropGuard) {
    let limits = Arc::new(Limits::default());
    let tunnel = Arc::new(Tunnel::new(Vec::new(), Arc::clone(&limits)));
    let mut router = Router::new(Arc::clone(&tunnel), Optimistic::default());
    if let Some(authority) = authority {
        router = router.with_interceptor(Interceptor::new(tunnel, authority, Arc::clone(&limits)));
    }
    let listener = Listener::bind(ANY_PORT).await.unwrap();
    let (address, end) = (listener.local_addr(), CancellationToken::new());
    tokio::spawn(listener.serve(router, limits, end.clone(), TaskTracker::new()));
    (address, end.drop_guard())
}

/// An authority of its own, and its certificate.
fn authority() -> (Authority, CertificateDer<'static>) {
    let home = tempfile::tempdir().unwrap();
    let made = Authority::init(home.path(), SystemTime::now()).unwrap();
    let root = made.root().clone();
    (made, root)
}

/// A connection through the proxy in SOCKS5.
async fn socks(proxy: SocketAddr, name: &NostrName, port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let host = name.to_string();
    let mut request = vec![5, 1, 0, 5, 1, 0, 3, u8::try_from(host.len()).unwrap()];
    request.extend_from_slice(host.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[3], 0, "the reply of the proxy");
    stream
}

type Secure = TlsStream<TcpStream>;

/// TLS through the proxy by a client that trusts these certificates, and looks at names and dates.
async fn secure(
    proxy: SocketAddr,
    name: &NostrName,
    trusted: &[CertificateDer<'static>],
    alpn: &[&str],
) -> std::io::Result<Secure> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let host = ServerName::try_from(name.to_string()).unwrap();
    let stream = socks(proxy, name, 443).await;
    soon("the TLS handshake", TlsConnector::from(Arc::new(config)).connect(host, stream)).await
}

fn protocol(stream: &Secure) -> Option<String> {
    stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
}

/// Fetches so many bytes and checks them.
async fn download(mut stream: Secure, len: usize) {
    let request = format!("GET /bytes/{len} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(soon("the download", read_answer(&mut stream)).await == pattern(len as u64, len));
}

/// The whole answer to a request for `/`.
async fn ask(mut stream: Secure) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    soon("the answer", stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_the_published_certificate_reaches_the_exits_tls_and_no_other() {
    let (relay, service, home) = (TestRelay::start(), backends::http().await, tempfile::tempdir().unwrap());
    let keys = Keys::generate();
    let services = [(80, service.addr), (443, service.addr)];
    let setup = Setup { relay: &relay, keys: &keys, services: &services, tls: &[443], alpn: &["http/1.1"] };
    let shown = kept(&setup.name(), home.path());
    let site = setup.start(&shown, shown.published().borrow().clone()).await;
    let (proxy, _end) = proxy(None).await;
    let links = Links::new(Arc::default());
    let found = find(&[links.get(&relay.url)], &keys).await.unwrap();
    let stream = secure(proxy, &site.name, &found.certificates, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(protocol(&stream).as_deref(), Some("http/1.1"));
    download(stream, 300_000).await;
    // A client that trusts nothing, or a certificate for the same names that is not the exit's, is not served.
    let other = Certificate::make(&site.name, SystemTime::now()).unwrap();
    for trusted in [&[][..], &[other.leaf().clone()]] {
        let error = secure(proxy, &site.name, trusted, &[]).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    // The same service without TLS is still there.
    let mut plain = socks(proxy, &site.name, 80).await;
    plain.write_all(b"GET /bytes/9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(read_answer(&mut plain).await == pattern(9, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_local_authority_a_service_without_tls_is_https() {
    let (relay, service, home) = (TestRelay::start(), backends::http().await, tempfile::tempdir().unwrap());
    let keys = Keys::generate();
    let setup = Setup { relay: &relay, keys: &keys, services: &[(80, service.addr)], tls: &[], alpn: &[] };
    let site = setup.start(&kept(&setup.name(), home.path()), Vec::new()).await;
    let (authority, root) = authority();
    let (proxy, _end) = proxy(Some(authority)).await;
    let roots = [root];
    let stream = secure(proxy, &site.name, &roots, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(protocol(&stream).as_deref(), Some("http/1.1"));
    download(stream, 2_000_000).await;
    let mut upload = secure(proxy, &site.name, &roots, &[]).await.unwrap();
    assert_eq!(protocol(&upload), None);
    let head = "POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n";
    upload.write_all(head.as_bytes()).await.unwrap();
    upload.write_all(&pattern(7, 1_000_000)).await.unwrap();
    upload.flush().await.unwrap();
    let sum = soon("the sum", read_answer(&mut upload)).await;
    assert_eq!(String::from_utf8_lossy(&sum).trim(), pattern_sha256(7, 1_000_000));
    // An upgrade, as WebSockets begin.
    let mut upgraded = secure(proxy, &site.name, &roots, &["http/1.1"]).await.unwrap();
    upgraded
        .write_all(b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon("the head", upgraded.read_u8()).await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    upgraded.write_all(b"\x00not http\xff").await.unwrap();
    let mut echoed = [0; 10];
    soon("the echo", upgraded.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"\x00not http\xff");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_local_authority_an_exits_own_tls_is_pinned_and_its_protocol_passes() {
    let (relay, service, home) = (TestRelay::start(), backends::echo().await, tempfile::tempdir().unwrap());
    let keys = Keys::generate();
    let services = [(443, service.addr)];
    let setup = Setup { relay: &relay, keys: &keys, services: &services, tls: &[443], alpn: &["h2", "http/1.1"] };
    let shown = kept(&setup.name(), home.path());
    let site = setup.start(&shown, shown.published().borrow().clone()).await;
    let (authority, root) = authority();
    let (proxy, _end) = proxy(Some(authority)).await;
    for (offered, chosen) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        let mut stream = secure(proxy, &site.name, std::slice::from_ref(&root), offered).await.unwrap();
        assert_eq!(protocol(&stream).as_deref(), chosen);
        let said = pattern(3, 100_000);
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let mut echoed = vec![0; said.len()];
        let (read, written) = tokio::join!(soon("the echo", reader.read_exact(&mut echoed)), async {
            writer.write_all(&said).await?;
            writer.flush().await
        });
        read.unwrap();
        written.unwrap();
        assert!(echoed == said);
        // An end of direction arrives as one.
        writer.shutdown().await.unwrap();
        assert_eq!(soon("the end", reader.read(&mut echoed)).await.unwrap(), 0);
    }
    // Without the authority it is the exit's certificate that clients see.
    let (untouched, _end) = self::proxy(None).await;
    assert!(secure(untouched, &site.name, std::slice::from_ref(&root), &[]).await.is_err());
    assert!(secure(untouched, &site.name, &shown.published().borrow().clone(), &[]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_the_published_one_is_a_page_with_both_fingerprints() {
    let (relay, service) = (TestRelay::start(), backends::http().await);
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let keys = Keys::generate();
    let services = [(443, service.addr)];
    let setup = Setup { relay: &relay, keys: &keys, services: &services, tls: &[443], alpn: &["http/1.1"] };
    let [shown, published] = [0, 1].map(|index| kept(&setup.name(), homes[index].path()));
    let site = setup.start(&shown, published.published().borrow().clone()).await;
    let (authority, root) = authority();
    let (proxy, _end) = proxy(Some(authority)).await;
    let stream = secure(proxy, &site.name, std::slice::from_ref(&root), &["h2", "http/1.1"]).await.unwrap();
    let answer = ask(stream).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nnws-error: certificate\r\n"), "{answer}");
    for kept in [&shown, &published] {
        let fingerprint = Fingerprint::of(&kept.published().borrow()[0]).to_string();
        assert!(answer.contains(&fingerprint), "{fingerprint} in {answer}");
    }
    assert!(!answer.contains("<a "), "nothing to click through");
    // Once the exit publishes what it shows, nobody has to do anything.
    let now = shown.published().borrow().clone();
    site.published.send_replace(now.clone());
    setup.until_published(&now).await;
    soon("the page of before to be forgotten", async {
        loop {
            let stream = secure(proxy, &site.name, std::slice::from_ref(&root), &["http/1.1"]).await.unwrap();
            if !ask(stream).await.starts_with("HTTP/1.1 502") {
                return;
            }
        }
    })
    .await;
    let stream = secure(proxy, &site.name, std::slice::from_ref(&root), &["http/1.1"]).await.unwrap();
    download(stream, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_taken_by_a_proxy_that_knows_the_old_one() {
    let (relay, service) = (TestRelay::start(), backends::http().await);
    let home = tempfile::tempdir().unwrap();
    let keys = Keys::generate();
    let services = [(443, service.addr)];
    let setup = Setup { relay: &relay, keys: &keys, services: &services, tls: &[443], alpn: &["http/1.1"] };
    let old = kept(&setup.name(), &home.path().join("old"));
    let (authority, root) = authority();
    let (proxy, _end) = proxy(Some(authority)).await;
    {
        let site = setup.start(&old, old.published().borrow().clone()).await;
        download(secure(proxy, &site.name, std::slice::from_ref(&root), &[]).await.unwrap(), 1_000).await;
    }
    let new = kept(&setup.name(), &home.path().join("new"));
    assert_ne!(*new.published().borrow(), *old.published().borrow());
    let site = setup.start(&new, new.published().borrow().clone()).await;
    let stream = secure(proxy, &site.name, std::slice::from_ref(&root), &[]).await.unwrap();
    download(stream, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_is_a_page_and_what_is_no_tls_passes() {
    let (relay, service, home) = (TestRelay::start(), backends::banner().await, tempfile::tempdir().unwrap());
    let keys = Keys::generate();
    let services = [(443, service.addr)];
    let setup = Setup { relay: &relay, keys: &keys, services: &services, tls: &[], alpn: &[] };
    let site = setup.start(&kept(&setup.name(), home.path()), Vec::new()).await;
    let (authority, root) = authority();
    let (proxy, _end) = proxy(Some(authority)).await;
    let answer = ask(secure(proxy, &site.name, std::slice::from_ref(&root), &["http/1.1"]).await.unwrap()).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("published no TLS certificate") && answer.contains("port 80"), "{answer}");
    let mut plain = socks(proxy, &site.name, 443).await;
    plain.write_all(b"knock").await.unwrap();
    plain.shutdown().await.unwrap();
    let mut heard = Vec::new();
    soon("the greeting and the echo", plain.read_to_end(&mut heard)).await.unwrap();
    assert!(heard.starts_with(backends::BANNER) && heard.ends_with(b"knock"), "{}", String::from_utf8_lossy(&heard));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_takes_its_certificate_back_is_reached_without_tls() {
    let (relay, service, home) = (TestRelay::start(), backends::http().await, tempfile::tempdir().unwrap());
    let keys = Keys::generate();
    let (authority, root) = authority();
    let (proxy, _end) = proxy(Some(authority)).await;
    let services = [(80, service.addr), (443, service.addr)];
    let (with, without) = (&services[..], &services[..1]);
    let setup = |services, tls| Setup { relay: &relay, keys: &keys, services, tls, alpn: &["http/1.1"] };
    let shown = kept(&setup(with, &[443]).name(), home.path());
    {
        let site = setup(with, &[443]).start(&shown, shown.published().borrow().clone()).await;
        download(secure(proxy, &site.name, std::slice::from_ref(&root), &[]).await.unwrap(), 1_000).await;
        site.published.send_replace(Vec::new());
        let links = Links::new(Arc::default());
        let link = [links.get(&relay.url)];
        soon("the empty event", async { while find(&link, &keys).await.is_some() {} }).await;
    }
    let site = setup(without, &[]).start(&shown, Vec::new()).await;
    download(secure(proxy, &site.name, std::slice::from_ref(&root), &[]).await.unwrap(), 1_000).await;
}
