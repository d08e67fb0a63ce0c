//! `nws doctor` and `nws check`: what they say where everything works, and of each thing that does not; and the log in its
//! formats.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use nostr::Keys;
use nws::name::NostrName;

use support::backends;
use support::command::{Child, Ended, nws};
use support::faults::{Nip11, Refusal};
use support::shaper::Shaper;
use support::world::Setup;
use support::{TestRelay, soon};

async fn run(args: &[&str], variables: &[(&str, &str)]) -> Ended {
    let home = tempfile::tempdir().unwrap();
    let mut command = nws(home.path(), args);
    command.envs(variables.iter().copied());
    Child::start(command).feed(Vec::new()).await
}

/// The line about this, which must say so.
fn line<'a>(text: &'a str, subject: &str) -> &'a str {
    text.lines().find(|line| line.contains(subject)).unwrap_or_else(|| panic!("nothing about {subject}:\n{text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn where_everything_works_each_part_has_a_line_that_says_so() {
    let (relay, service) = (TestRelay::start(), backends::echo().await);
    let world = Setup::new(std::slice::from_ref(&relay.url), &[(7, service.addr)]).start().await;
    for (suffix, says) in [(":7", "accepts"), ("", "answers")] {
        let ended = run(&["doctor", &format!("{}{suffix}", world.name)], &[]).await;
        let text = ended.text();
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{text}");
        assert!(text.lines().all(|line| line.starts_with("ok    ")), "{text}");
        for subject in [
            "configuration: ",
            " TCP: ",
            " websocket: ",
            " NIP-11: messages up to ",
            "clock: agrees",
            "exit, round trip: ",
        ] {
            line(&text, subject);
        }
        assert!(line(&text, "round trip: an event of").contains(" came back after "), "{text}");
        assert!(line(&text, "ok    exit").contains(says), "{text}");
        assert!(line(&text, "exit, tongue").contains("reliable streams"), "{text}");
    }
    // The event is as large as the relay says that it takes.
    let text = run(&["doctor", "--relay", relay.url.as_str()], &[]).await.text();
    let size: usize =
        line(&text, "an event of").split("an event of ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((60_000..=131_072).contains(&size), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_has_its_line_and_a_hint() {
    let relay = TestRelay::start();
    let closed = backends::refused_port().addr;
    let page = backends::http().await;
    let refusing = Shaper::start(&relay.url, 1).await;
    refusing.change(|faults| faults.refuse = Some(Refusal { fraction: 1.0, message: "blocked: not here".into() }));
    let losing = Shaper::start(&relay.url, 2).await;
    losing.change(|faults| faults.to_relay.drop = 1.0);
    let silent = Shaper::start(&relay.url, 3).await;
    silent.change(|faults| faults.nip11 = Nip11::Absent);
    for (url, subject, says, hint) in [
        (format!("ws://{closed}"), " TCP", "refused", "is the relay running"),
        (format!("ws://{}", page.addr), " websocket", "200 OK", "something else than a relay"),
        ("ws://no-such-relay.invalid".to_owned(), " DNS", "", "is the name right"),
        (format!("wss://{}", relay.addr), " TLS", "", "certificate"),
        (refusing.url().to_string(), " round trip", "blocked: not here", "use another relay"),
        (losing.url().to_string(), " round trip", "did not come back", "use another relay"),
    ] {
        let ended = run(&["doctor", "--relay", &url], &[]).await;
        let text = ended.text();
        let line = line(&text, subject);
        assert!(line.starts_with("FAIL  ") && line.contains(says) && line.contains(hint), "{text}");
        assert_eq!(ended.code, Some(1), "{text}");
        assert!(ended.stderr.starts_with("nws: 1 of "), "{}", ended.stderr);
    }
    let ended = run(&["doctor", "--relay", silent.url().as_str()], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.text());
    assert!(line(&ended.text(), "NIP-11").contains("are assumed"), "{}", ended.text());
    let ended = run(&["doctor"], &[]).await;
    assert!(ended.code == Some(1) && line(&ended.text(), "relays").contains("--relay"), "{}", ended.text());
    let proxy = format!("socks5://{closed}");
    let ended = run(&["doctor", "--relay", "ws://a.invalid"], &[("NWS_RELAY_PROXY__URL", &proxy)]).await;
    assert!(line(&ended.text(), "ws://a.invalid proxy").contains("relay_proxy.url"), "{}", ended.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_is_not_there_or_refuses_is_told_apart() {
    let (relay, service) = (TestRelay::start(), backends::echo().await);
    let world = Setup::new(std::slice::from_ref(&relay.url), &[(7, service.addr)]).start().await;
    let ended = run(&["doctor", &format!("{}:99", world.name)], &[]).await;
    let text = ended.text();
    assert!(line(&text, "exit, port 99").starts_with("FAIL  exit, port 99: it refuses: "), "{text}");
    assert!(line(&text, "exit, round trip").starts_with("ok"), "{text}");
    let nobody = NostrName::new(Keys::generate().public_key(), [relay.url.clone()]);
    let ended = run(&["doctor", &nobody.to_string()], &[("NWS_LIMITS__OPEN_TIMEOUT", "3s")]).await;
    let text = ended.text();
    assert!(line(&text, " exit: ").contains("is it running"), "{text}");
    assert_eq!(ended.code, Some(1));
    let ended = run(&["doctor", "purse.nostr"], &[]).await;
    assert!(ended.code == Some(64) && ended.stderr.contains("nws name add"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_at_the_configuration_alone() {
    let ended = run(&["check"], &[]).await;
    assert_eq!(ended.code, Some(0));
    assert!(ended.text().contains("is sound") && ended.stderr.is_empty(), "{}", ended.stderr);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    assert!(run(&["check", "--config", path], &[]).await.text().contains(path));
    std::fs::write(file.path(), "[proxy]\nlissen = []").unwrap();
    let ended = run(&["check", "--config", path], &[]).await;
    assert!(ended.code == Some(78) && ended.stderr.contains("proxy.lissen"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_lines_for_people_or_json_and_its_levels_go_by_module() {
    let home = tempfile::tempdir().unwrap();
    let start = |variables: &[(&str, &str)]| {
        let mut command = nws(home.path(), &["relay", "--listen", "127.0.0.1:0"]);
        command.envs(variables.iter().copied());
        Child::start(command)
    };
    let mut relay = start(&[("NWS_LOG__FORMAT", "json")]);
    let said = relay.until_says("relay is listening").await;
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&json["level"], &json["target"]), (&"INFO".into(), &"nws::relay::server".into()), "{said}");
    assert!(json["url"].as_str().unwrap().starts_with("ws://127.0.0.1:"), "{said}");
    let mut relay = start(&[]);
    let said = relay.until_says("relay is listening").await;
    assert!(
        said.contains(" INFO nws::relay::server: relay is listening url=ws://") && !said.contains('\u{1b}'),
        "{said}"
    );
    // One module alone is heard.
    let mut relay = start(&[("NWS_LOG__FILTER", "error,nws::relay::server=info")]);
    relay.until_says("relay is listening").await;
    relay.signal("TERM");
    let ended = soon("the end", relay.end()).await;
    assert!(!ended.stderr.contains("nws::run"), "{}", ended.stderr);
}

/// What the command says where its standard error is the stream that systemd names.
async fn as_the_journal_reads_it(args: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stream = File::from(OwnedFd::from(writer.try_clone().unwrap())).metadata().unwrap();
    let mut command = nws(home.path(), args);
    command.env("JOURNAL_STREAM", format!("{}:{}", stream.dev(), stream.ino()));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    // It holds the end that is written to, until which nothing is read to its end.
    drop(command);
    let reading = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        reader.read_to_string(&mut said).map(|_| said)
    });
    let said = soon("the end of nws", reading).await.unwrap().unwrap();
    child.wait().unwrap();
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_told_the_priority_of_every_line() {
    let said = as_the_journal_reads_it(&["connect", "--alone", "--log", "info", "www.example:80"]).await;
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("<6> INFO nws::cli::start: nws starts "), "{said}");
    assert!(lines.last().unwrap().starts_with("<3>nws: "), "{said}");
    assert!(lines.iter().all(|line| line.as_bytes()[0] == b'<' && line.as_bytes()[2] == b'>'), "{said}");
    // A format that somebody has chosen stays what it is.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[log]\nformat = \"human\"").unwrap();
    let config = file.path().to_str().unwrap();
    let said =
        as_the_journal_reads_it(&["connect", "--alone", "--log", "info", "--config", config, "www.example:80"]).await;
    assert!(said.lines().next().unwrap().starts_with("20"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_visit_is_not_in_the_log_at_info() {
    let (relay, service) = (TestRelay::start(), backends::echo().await);
    let world = Setup::new(std::slice::from_ref(&relay.url), &[(7, service.addr)]).start().await;
    let to = format!("{}:7", world.name);
    let home = tempfile::tempdir().unwrap();
    let child = Child::start(nws(home.path(), &["connect", "--alone", "--log", "info", &to]));
    let ended = child.feed(b"hello".to_vec()).await;
    assert_eq!(ended.text(), "hello");
    assert!(ended.stderr.contains("nws starts") && !ended.stderr.contains(".nostr"), "{}", ended.stderr);
    assert!(!ended.stderr.contains(&world.name.npub()) && !ended.stderr.contains(&world.name.public_key.to_hex()));
}
