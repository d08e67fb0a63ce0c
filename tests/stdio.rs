//! `nws connect` and `nws forward` as processes, over a real relay: bytes, ends of direction, failures, exit codes.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::net::SocketAddr;
use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use support::backends::{self, BANNER, Backend, pattern, sha256_hex};
use support::command::{Child, nws};
use support::world::{Setup, World};
use support::{TestRelay, soon};

/// A relay, an exit and a proxy before these services, and a directory to be at home in.
struct Stage {
    _relay: TestRelay,
    world: World,
    home: tempfile::TempDir,
}

impl Stage {
    async fn new(services: &[(u16, SocketAddr)]) -> Self {
        let relay = TestRelay::start();
        let world = Setup::new(std::slice::from_ref(&relay.url), services).start().await;
        Self { _relay: relay, world, home: tempfile::tempdir().unwrap() }
    }

    /// `nws` with these arguments.
    fn nws(&self, args: &[&str]) -> Command {
        nws(self.home.path(), args)
    }

    /// `nws connect` to a port of the exit.
    fn connect(&self, port: u16, flags: &[&str]) -> Child {
        let to = format!("{}:{port}", self.world.name);
        Child::start(self.nws(&[&["connect", &to][..], flags].concat()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_passes_both_ways_by_itself_and_through_a_proxy() {
    let echo = backends::echo().await;
    let stage = Stage::new(&[(7, echo.addr)]).await;
    let proxy = stage.world.proxy.to_string();
    let mut sent: Vec<u8> = (0..=255).collect();
    sent.extend(pattern(1, 3_000_000));
    for flags in [&["--alone"][..], &["--via", &proxy], &[]] {
        let output = stage.connect(7, flags).feed(sent.clone()).await;
        assert_eq!(output.code, Some(0), "{flags:?}: {}", output.stderr);
        assert!(output.stdout == sent, "{flags:?}: {} bytes came back", output.stdout.len());
        assert_eq!(output.stderr, "", "{flags:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_runs_is_found_and_used() {
    let echo = backends::echo().await;
    let stage = Stage::new(&[(7, echo.addr)]).await;
    let mut command = stage.nws(&["connect", &format!("{}:7", stage.world.name)]);
    command.env("NWS_PROXY__LISTEN", format!(r#"["{}"]"#, stage.world.proxy));
    let mut child = Child::start(command);
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdin.write_all(b"x").await.unwrap();
    let mut back = [0];
    soon("the echo", stdout.read_exact(&mut back)).await.unwrap();
    assert!(!stage.world.tracker.is_empty(), "the proxy has a client");
    drop(stdin);
    assert!(child.wait().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_input_is_passed_on_and_the_answer_still_heard() {
    let service = backends::half_close().await;
    let stage = Stage::new(&[(7, service.addr)]).await;
    let proxy = stage.world.proxy.to_string();
    for flags in [&["--alone"][..], &["--via", &proxy]] {
        for size in [0, 1, 300_000] {
            let sent = pattern(2, size);
            let output = stage.connect(7, flags).feed(sent.clone()).await;
            assert_eq!(output.code, Some(0), "{}", output.stderr);
            assert_eq!(output.text(), format!("{size} {}\n", sha256_hex(&sent)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_output_sees_its_end_while_the_input_is_open() {
    // The service says its piece and ends its direction; it reads on.
    let service = backends::http().await;
    let stage = Stage::new(&[(80, service.addr)]).await;
    let mut child = stage.connect(80, &["--alone"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"GET /close/70000 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    soon("the end of the output", child.stdout.take().unwrap().read_to_end(&mut answer)).await.unwrap();
    assert!(answer.ends_with(&pattern(70_000, 70_000)));
    assert!(child.runs(), "the input is open, so it goes on");
    drop(stdin);
    child.wait().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_without_a_word_when_nobody_reads_its_output_any_more() {
    let service = backends::banner().await;
    let stage = Stage::new(&[(25, service.addr)]).await;
    let proxy = stage.world.proxy.to_string();
    for flags in [&["--alone"][..], &["--via", &proxy]] {
        let mut child = stage.connect(25, flags);
        let stdin = child.stdin.take().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut banner = vec![0; BANNER.len()];
        soon("the banner", stdout.read_exact(&mut banner)).await.unwrap();
        assert_eq!(banner, BANNER);
        // Neither side says anything more, and the input stays open.
        drop(stdout);
        let output = child.end().await;
        assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{flags:?}");
        drop(stdin);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_names_the_destination_and_the_reason_and_ends_with_one() {
    let refused = backends::refused_port();
    let stage = Stage::new(&[(81, refused.addr)]).await;
    let proxy = stage.world.proxy.to_string();
    let closed = backends::refused_port().addr.to_string();
    for (port, flags, reason) in [
        (81, &["--alone"][..], "not running"),
        (99, &["--alone"], "99"),
        (81, &["--via", &proxy], "refused"),
        (99, &["--via", &proxy], "not allowed"),
        (81, &["--via", &closed], "cannot reach the proxy"),
    ] {
        let output = stage.connect(port, flags).feed(b"hello".to_vec()).await;
        let said = &output.stderr;
        assert_eq!(output.code, Some(1), "{said}");
        assert!(output.stdout.is_empty());
        assert!(said.starts_with(&format!("nws: {}:{port}: ", stage.world.name)), "{said}");
        assert!(said.to_lowercase().contains(reason) && said.lines().count() == 1, "{said}");
    }
    for (args, reason) in [
        (&["connect", "wallet.nostr"][..], "has no port"),
        (&["connect", "wallet.nostr:22", "22"], "has a port already"),
        (&["connect", "wallet.nostr", "0"], "0 is not in"),
    ] {
        let output = Child::start(stage.nws(args)).feed(Vec::new()).await;
        assert_eq!(output.code, Some(64), "{args:?}");
        assert!(output.stderr.contains(reason), "{}", output.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_in_the_middle_is_a_failure() {
    let service = backends::banner().await;
    let relay = TestRelay::start();
    let setup = Setup::new(std::slice::from_ref(&relay.url), &[(25, service.addr)]);
    let end = CancellationToken::new();
    setup.start_exit(&end).await;
    let world = setup.start_proxy(CancellationToken::new()).await;
    let stage = Stage { _relay: relay, world, home: tempfile::tempdir().unwrap() };
    let mut child = stage.connect(25, &["--alone"]);
    let _stdin = child.stdin.take();
    let mut banner = vec![0; BANNER.len()];
    soon("the banner", child.stdout.as_mut().unwrap().read_exact(&mut banner)).await.unwrap();
    // The exit ends, and resets what it has.
    end.cancel();
    let output = child.end().await;
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains(&stage.world.name.to_string()), "{}", output.stderr);
}

/// Starts `nws forward` of a free port and waits until it is ready.
async fn forward(stage: &Stage, port: u16, flags: &[&str]) -> (Child, SocketAddr) {
    let to = format!("0={}:{port}", stage.world.name);
    let mut child = Child::start(stage.nws(&[&["forward", &to][..], flags].concat()));
    let line = child.line().await;
    let address = line.split(" -> ").next().unwrap().parse().unwrap();
    (child, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_port_leads_to_its_destination() {
    let (service, refused): (Backend, _) = (backends::half_close().await, backends::refused_port());
    let stage = Stage::new(&[(5432, service.addr), (81, refused.addr)]).await;
    let proxy = stage.world.proxy.to_string();
    for flags in [&["--alone"][..], &["--via", &proxy]] {
        let (_child, address) = forward(&stage, 5432, flags).await;
        assert!(address.ip().is_loopback());
        // The first contact: on a busy machine the exit may answer too late to be told from an old one at once.
        let mut first = TcpStream::connect(address).await.unwrap();
        first.shutdown().await.unwrap();
        let _ = soon("its end", first.read_to_end(&mut Vec::new())).await;
        for size in [0, 500_000] {
            let sent = pattern(3, size);
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
            assert_eq!(answer, format!("{size} {}\n", sha256_hex(&sent)));
        }
        let (_child, address) = forward(&stage, 81, flags).await;
        // It may come before the connecting has been looked at.
        let attempt = async { TcpStream::connect(address).await?.read(&mut [0]).await };
        let broken = soon("the reset", attempt).await.unwrap_err();
        assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
    }
}
