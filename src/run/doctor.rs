//! `nws doctor`: what stands between this machine and its relays and exits, one line for each part, with a hint where it
//! fails; and `nws check`, which looks at the configuration alone.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use nostr::RelayUrl;
use tokio::time::{Instant, timeout};

use super::RunError;
use super::progress::Progress;
use super::proxy::start_router;
use super::shutdown::Shutdown;
use crate::config::{Config, Settings};
use crate::destination::{Destination, Host, split_port};
use crate::limits::Limits;
use crate::name::NostrName;
use crate::relay::probe::{Probe, Step, probe};
use crate::tunnel::{Compartment, Target, Tunnel, Unopened};

/// Relays looked at most; a name may carry any number.
const RELAYS_MAX: usize = 16;

/// Relays looked at at once.
const AT_ONCE: usize = 4;

/// A difference of clocks that is worth a word, in seconds.
const CLOCK_NOTABLE: u64 = 10;

/// Where an exit is asked to connect if no port is named: an address that leads nowhere (RFC 5737), which every exit of
/// ours refuses at once.
const NOWHERE: Destination = Destination { host: Host::Ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))), port: 443 };

/// What has been found, and whether somebody still reads it.
struct Findings {
    progress: Progress,
    checks: usize,
    failed: usize,
}

impl Findings {
    /// Writes a line.
    fn line(&mut self, subject: &str, outcome: &Result<String, String>, hint: &str) {
        self.checks += 1;
        let mut text = match outcome {
            Ok(seen) => format!("ok    {subject}: {seen}"),
            Err(why) => format!("FAIL  {subject}: {why}"),
        };
        if outcome.is_err() {
            self.failed += 1;
            if !hint.is_empty() {
                let _ = write!(text, " ({hint})");
            }
        }
        // Whoever closed the terminal does not read it.
        self.progress.aside(|| {
            let _ = writeln!(io::stdout(), "{text}");
        });
    }
}

/// What `nws check` says of a configuration that has been read.
#[must_use]
pub fn checked(settings: &Settings) -> String {
    let files: Vec<_> = settings.files.iter().map(|path| path.display().to_string()).collect();
    match files.is_empty() {
        true => "the configuration is sound: no file, the defaults and the environment".to_owned(),
        false => format!("the configuration is sound: {}", files.join(", ")),
    }
}

/// Looks at everything up to the exit of this name, with a port if it is given as `NAME:PORT`.
///
/// # Errors
/// When something does not work, or the name is none.
pub async fn run(settings: Settings, name: Option<String>, shutdown: Shutdown) -> Result<(), RunError> {
    let examination = examine(settings, name);
    tokio::select! {
        outcome = examination => outcome,
        () = shutdown.requested() => Err(RunError::Failed("ended before everything was looked at".to_owned())),
    }
}

async fn examine(settings: Settings, name: Option<String>) -> Result<(), RunError> {
    let mut findings = Findings { progress: Progress::start("looking"), checks: 0, failed: 0 };
    findings.line("configuration", &Ok(checked(&settings)), "");
    let config = settings.config;
    let limits = Arc::new(config.limits.clone());
    let (tunnel, router, _) = start_router(&config, &limits, None)?;
    let exit = name.map(|name| {
        let (host, port) =
            split_port(&name).map_err(|_| RunError::Usage(format!("{name:?} has no number for its port")))?;
        let resolved = router.names().resolve(host).map_err(|error| RunError::Usage(error.to_string()))?;
        Ok::<_, RunError>((resolved, port))
    });
    let exit = exit.transpose()?;
    let relays = relays_of(&config, exit.as_ref().map(|(name, _)| name));
    if relays.is_empty() {
        let none = Err("none is configured".to_owned());
        findings.line("relays", &none, "give --relay URL, or set relays in the configuration");
    }
    let upstream = config.relay_proxy.upstream();
    let probes = relays.iter().map(|relay| {
        let (upstream, limits) = (upstream.clone(), Arc::clone(&limits));
        async move { (relay, probe(relay, upstream, &limits).await) }
    });
    let mut probes = stream::iter(probes.collect::<Vec<_>>()).buffered(AT_ONCE);
    let mut clocks = Vec::new();
    while let Some((relay, Probe { steps, clock_ahead })) = probes.next().await {
        for Step { what, outcome, hint, took } in &steps {
            let outcome = outcome.clone().map(|seen| format!("{seen}, {} ms", took.as_millis()));
            findings.line(&format!("{relay} {what}"), &outcome, hint);
        }
        clocks.extend(clock_ahead);
    }
    clock(&mut findings, clocks, &limits);
    if let Some((name, port)) = &exit {
        ask(&mut findings, &tunnel, name, *port, limits.open_timeout).await;
    }
    tunnel.close().await;
    let Findings { checks, failed, .. } = findings;
    if failed == 0 { Ok(()) } else { Err(RunError::Failed(format!("{failed} of {checks} checks failed"))) }
}

/// The relays that matter: those of the name, of the configuration and of the exit here, each once.
fn relays_of(config: &Config, name: Option<&NostrName>) -> Vec<RelayUrl> {
    let named = name.into_iter().flat_map(|name| &name.relays);
    let mut relays: Vec<RelayUrl> = Vec::new();
    for relay in named.chain(&config.relays).chain(&config.exit.relays) {
        if !relays.contains(relay) && relays.len() < RELAYS_MAX {
            relays.push(relay.clone());
        }
    }
    relays
}

/// Judges our clock by those of the relays: the one in the middle, since a relay's own may be wrong.
fn clock(findings: &mut Findings, mut ahead: Vec<i64>, limits: &Limits) {
    ahead.sort_unstable();
    let Some(&ahead) = ahead.get(ahead.len() / 2) else {
        return findings.line("clock", &Ok("unknown, no relay tells the time".to_owned()), "");
    };
    let (seconds, most) = (ahead.unsigned_abs(), limits.message_age.as_secs());
    let way = if ahead > 0 { "behind" } else { "ahead of" };
    let outcome = match seconds {
        _ if seconds > most => Err(format!("{seconds} s {way} the relays; exits take up to {most} s")),
        _ if seconds > CLOCK_NOTABLE => Ok(format!("{seconds} s {way} the relays, which is still taken")),
        _ => Ok("agrees with the relays".to_owned()),
    };
    findings.line("clock", &outcome, "set the clock of this machine, as with NTP");
}

/// Asks the exit for a stream, and once more over the session that then stands.
async fn ask(findings: &mut Findings, tunnel: &Tunnel, name: &NostrName, port: Option<u16>, limit: Duration) {
    let destination = match port {
        Some(port) => Destination { host: Host::Name(name.to_string()), port },
        None => NOWHERE,
    };
    let subject = port.map_or_else(|| "exit".to_owned(), |port| format!("exit, port {port}"));
    let (outcome, answered) = once(tunnel, name, &destination, port.is_some(), limit).await;
    let hint = if answered {
        "what listens behind the exit, and who may connect, is up to its owner"
    } else {
        "is it running, on the relays of its name, and is its clock right?"
    };
    findings.line(&subject, &outcome, hint);
    if !answered {
        return;
    }
    // Old peers neither accept nor refuse aloud.
    findings.line("exit, tongue", &Ok("reliable streams".to_owned()), "");
    let start = Instant::now();
    let (_, answered) = once(tunnel, name, &destination, port.is_some(), limit).await;
    let outcome =
        if answered { Ok(format!("{} ms", start.elapsed().as_millis())) } else { Err("no answer".to_owned()) };
    findings.line("exit, round trip", &outcome, "the relays or the exit lose events");
}

/// One stream: what came of it, and whether the exit has said anything.
async fn once(
    tunnel: &Tunnel,
    name: &NostrName,
    destination: &Destination,
    has_port: bool,
    limit: Duration,
) -> (Result<String, String>, bool) {
    let start = Instant::now();
    let opened = timeout(limit, tunnel.try_open(Compartment::NONE, &Target::beyond(name, destination), None)).await;
    let time = format!("after {} ms", start.elapsed().as_millis());
    match opened {
        Ok(Ok(_)) if tunnel.speaks_streams(&name.public_key) => (Ok(format!("accepts, {time}")), true),
        Ok(Ok(_)) => (Err("it says nothing: not running, or an old peer, which never does".to_owned()), false),
        Ok(Err(Unopened { answered: true, error })) if has_port => (Err(format!("it refuses: {error}")), true),
        Ok(Err(Unopened { answered: true, .. })) => {
            (Ok(format!("answers, {time}; NAME:PORT asks whether it accepts")), true)
        }
        Ok(Err(Unopened { answered: false, error })) => (Err(error.to_string()), false),
        Err(_) => (Err(format!("no answer within {} s", limit.as_secs_f32())), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_in_the_middle_judges_ours() {
        let limits = Limits::default();
        for (ahead, failed) in [
            (&[][..], 0),
            (&[0], 0),
            (&[-300, 299], 0),
            (&[301], 1),
            (&[-301], 1),
            // A single relay whose clock is wrong does no harm.
            (&[100_000, 0, 1], 0),
            (&[100_000, 100_001, 1], 1),
        ] {
            let mut findings = Findings { progress: Progress::start("testing"), checks: 0, failed: 0 };
            clock(&mut findings, ahead.to_vec(), &limits);
            assert_eq!((findings.checks, findings.failed), (1, failed), "{ahead:?}");
        }
    }
}
