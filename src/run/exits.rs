//! `nws exits`: the public exits that announce themselves on the relays, as a table or as JSON.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use nostr::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::RunError;
use super::progress::Progress;
use super::shutdown::Shutdown;
use crate::config::Config;
use crate::destination::{Destination, Host};
use crate::directory::{Directory, Drops, KnownExit};
use crate::error::ErrorKind;
use crate::tunnel::{Compartment, Target, Tunnel, Unopened};

/// Where a probe asks to go: an address that leads nowhere (RFC 5737), and that every exit of ours refuses at once. An
/// old exit would try to connect, and say nothing.
const PROBE: Destination = Destination { host: Host::Ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))), port: 443 };

/// Longest wait for the answer to a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Probes under way at once.
const PROBES: usize = 16;

/// What is known of an exit.
#[derive(Debug, Serialize)]
struct Row {
    npub: String,
    name: Option<String>,
    contact: Option<String>,
    software: Option<String>,
    /// Where it is reached.
    relays: Vec<String>,
    /// Seconds since its announcement.
    age: u64,
    /// Version of streams that it speaks; none is an old peer.
    nws: Option<u32>,
    /// Ports that it connects to, as it says.
    ports: Option<Vec<String>>,
    /// Whether it answered, if it was asked and can be known.
    reachable: Option<bool>,
    /// How long the answer took.
    round_trip_ms: Option<u64>,
}

/// Everything that is found out.
#[derive(Debug, Serialize)]
struct Report {
    exits: Vec<Row>,
    /// Announcements that were not believed.
    dropped: Drops,
}

/// Listens for `wait`, asks the exits if that is wanted, and prints what there is.
///
/// # Errors
/// When nobody reads the answer.
pub async fn run(config: Config, wait: Duration, probe: bool, json: bool, shutdown: Shutdown) -> Result<(), RunError> {
    let limits = Arc::new(config.limits);
    let tunnel = Tunnel::new(config.relays.clone(), Arc::clone(&limits)).through(config.relay_proxy.upstream());
    let links: Vec<_> = config.relays.iter().map(|relay| tunnel.link(relay)).collect();
    let directory = Directory::start(&links, None, limits);
    let listing = async {
        tokio::time::sleep(wait).await;
        let mut exits = directory.all();
        exits.sort_by_key(|known| known.announcement.exit);
        let probes = exits.iter().map(|known| probed(&tunnel, known, probe));
        futures_util::StreamExt::collect::<Vec<_>>(futures_util::StreamExt::buffered(
            futures_util::stream::iter(probes.collect::<Vec<_>>()),
            PROBES,
        ))
        .await
    };
    let progress = Progress::start("listening for announcements");
    let exits = tokio::select! {
        exits = listing => exits,
        () = shutdown.requested() => return Ok(()),
    };
    drop(progress);
    let report = Report { exits, dropped: directory.drops() };
    let text = if json { serde_json::to_string_pretty(&report).unwrap_or_default() } else { table(&report) };
    tunnel.close().await;
    writeln!(io::stdout(), "{text}").map_err(|source| RunError::System { what: "cannot write the answer", source })
}

/// What is known of an exit, and whether it answers.
async fn probed(tunnel: &Tunnel, known: &KnownExit, probe: bool) -> Row {
    let target = known.target();
    let said = known.announcement.clone();
    let mut row = Row {
        npub: target.npub(),
        name: said.name,
        contact: said.contact,
        software: said.software,
        relays: target.relays.iter().map(ToString::to_string).collect(),
        age: Timestamp::now().as_secs().saturating_sub(said.created_at),
        nws: said.version,
        ports: said.ports.map(|ports| ports.texts().collect()),
        reachable: None,
        round_trip_ms: None,
    };
    if !probe {
        return row;
    }
    if said.version.is_some() {
        tunnel.expect_streams(&target.public_key);
    }
    let start = Instant::now();
    let probe = Target::beyond(&target, &PROBE);
    let answer = tokio::time::timeout(PROBE_TIMEOUT, tunnel.try_open(Compartment::NONE, &probe, None)).await;
    let answered = match answer {
        Ok(Ok(_)) => tunnel.speaks_streams(&target.public_key),
        Ok(Err(Unopened { error, answered })) => answered && error.kind() != ErrorKind::Timeout,
        Err(_) => false,
    };
    if answered {
        row.round_trip_ms = u64::try_from(start.elapsed().as_millis()).ok();
    }
    // An old exit says nothing, whether it is there or not.
    row.reachable = (answered || said.version.is_some()).then_some(answered);
    row
}

/// The report for people.
fn table(report: &Report) -> String {
    let head = ["NPUB", "NAME", "AGE", "ROUND TRIP", "PORTS", "REACHABLE", "RELAYS"].map(str::to_owned);
    let unknown = || "-".to_owned();
    let rows = report.exits.iter().map(|row| {
        [
            row.npub.clone(),
            row.name.clone().unwrap_or_else(unknown),
            format!("{} s", row.age),
            row.round_trip_ms.map_or_else(unknown, |time| format!("{time} ms")),
            row.ports.as_ref().map_or_else(unknown, |ports| ports.join(",")),
            row.reachable.map_or_else(unknown, |yes| if yes { "yes" } else { "no" }.to_owned()),
            row.relays.join(" "),
        ]
    });
    let lines: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..7).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    if report.exits.is_empty() {
        out = "no public exit announces itself on these relays\n".to_owned();
    }
    let Drops { expired, future, forged, unasked: _, overfull } = report.dropped;
    if expired + future + forged + overfull > 0 {
        let _ = writeln!(
            out,
            "left out: {expired} expired, {future} from the future, {forged} forged, {overfull} more than limits.known_exits"
        );
    }
    out.trim_end().to_owned()
}
