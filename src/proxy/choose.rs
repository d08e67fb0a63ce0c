//! Which exit a stream to another host goes through: healthy ones first, by the time that they took to accept; the same
//! one for a host for a while; another one when it fails before any byte has flowed.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nostr::{PublicKey, Timestamp};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::exits::{ExitName, Exits};
use crate::destination::{Destination, Host};
use crate::directory::{Directory, KnownExit};
use crate::error::{Error, ErrorKind};
use crate::name::NostrName;
use crate::tunnel::{Compartment, Target, Tunnel, TunnelStream, Unopened};

/// How long a host stays with its exit after its last stream, for clients of one compartment: sites do not like visitors that change their address.
const STICKY: Duration = Duration::from_secs(600);

/// Hosts whose exit is remembered at most.
const STICKY_MAX: usize = 10_000;

/// How long an exit may take for its first sign of life while there is another one to try. One of ours answers at once,
/// even if its destination does not; a slow relay takes a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the first streams wait for an announcement of any exit that may be used.
const FINDING: Duration = Duration::from_secs(3);

/// Exits tried for one stream at most.
const ATTEMPTS_MAX: usize = 4;

/// How long an exit is avoided after a failure; doubled with each further one.
const AVOIDED: Duration = Duration::from_secs(30);

/// And at most for so long.
const AVOIDED_MAX: Duration = Duration::from_secs(600);

/// How long a measured time counts.
const MEASURED: Duration = Duration::from_secs(600);

/// Exits whose health is remembered at most.
const HEALTH_MAX: usize = 10_000;

/// What has been seen of an exit.
#[derive(Debug, Clone, Copy, Default)]
struct Health {
    /// Average time to accept, and when it was last measured.
    accepts_in: Option<(Duration, Instant)>,
    /// The last failure, also in seconds since 1970, and how many there were in a row.
    failed: Option<(Instant, u64, u32)>,
}

impl Health {
    fn measured(&self, now: Instant) -> Option<Duration> {
        self.accepts_in.filter(|(_, at)| now.saturating_duration_since(*at) < MEASURED).map(|(time, _)| time)
    }

    /// Whether it is avoided: for a while after a failure, and for as long as it has not said since then that it is
    /// there, if it is one that says so.
    fn is_avoided(&self, now: Instant, announced: Option<u64>) -> bool {
        self.failed.is_some_and(|(at, unix, count)| {
            let pause = AVOIDED.saturating_mul(1 << count.saturating_sub(1).min(8)).min(AVOIDED_MAX);
            now.saturating_duration_since(at) < pause || announced.is_some_and(|announced| announced <= unix)
        })
    }

    fn succeeded(&mut self, now: Instant, took: Duration) {
        let average = self.measured(now).map_or(took, |before| (before * 3 + took) / 4);
        *self = Self { accepts_in: Some((average, now)), failed: None };
    }

    fn failed(&mut self, now: Instant, unix: u64) {
        let before = self.failed.map_or(0, |(_, _, count)| count);
        self.failed = Some((now, unix, before.saturating_add(1)));
    }
}

#[derive(Debug, Default)]
struct State {
    health: HashMap<PublicKey, Health>,
    sticky: HashMap<(Compartment, Host), (PublicKey, Instant)>,
}

/// An exit that may be tried.
#[derive(Debug, Clone)]
struct Candidate {
    target: NostrName,
    known: Option<KnownExit>,
    /// Its place in the list of preference.
    place: usize,
    /// Whether it is a last resort: it failed lately, is not heard of, or says that it does not go there.
    is_doubtful: bool,
}

/// See the module.
pub struct Chooser {
    tunnel: Arc<Tunnel>,
    /// Exits that announce themselves, if there is a relay to hear of them.
    directory: Option<Arc<Directory>>,
    exits: Exits,
    exclude: Vec<ExitName>,
    state: Mutex<State>,
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chooser").field("exits", &self.exits).field("exclude", &self.exclude).finish_non_exhaustive()
    }
}

impl Chooser {
    /// Chooses among these exits.
    #[must_use]
    pub fn new(tunnel: Arc<Tunnel>, directory: Option<Arc<Directory>>, exits: Exits, exclude: Vec<ExitName>) -> Self {
        Self { tunnel, directory, exits, exclude, state: Mutex::default() }
    }

    /// Opens a stream to a host through this exit, or through one of those to choose among.
    ///
    /// # Errors
    /// When none is configured or known, or those that were tried failed: what the last one said that answered.
    pub async fn open(
        &self,
        compartment: Compartment,
        destination: &Destination,
        via: Option<&ExitName>,
    ) -> Result<TunnelStream, Error> {
        if via.is_none() && self.exits == Exits::default() {
            let way_out = "give the proxy --exit NPUB or set proxy.exit; nws exits lists exits that can be found";
            let reason =
                format!("{destination} is no .nostr name, and no exit for other names is configured: {way_out}");
            return Err(Error::new(ErrorKind::Denied, reason));
        }
        if via.is_none() {
            self.wait_for_one().await;
        }
        let candidates = self.candidates(compartment, destination, via);
        if candidates.is_empty() {
            let reason = format!("no exit that would take {destination} announces itself on the relays of this proxy");
            return Err(Error::new(ErrorKind::HostUnreachable, reason));
        }
        self.try_all(compartment, destination, &candidates).await
    }

    /// Opens a stream like [`Self::open`] and gives it out before the exit has answered, if it is the only one to choose
    /// and has accepted a stream to the same host and port within the last minute. Where there is another one, what is
    /// lost with the first must not be more than time: bytes that went along could not be sent again. The opening waits
    /// up to `hold` for the first bytes.
    ///
    /// # Errors
    /// When the session cannot take a stream.
    pub async fn open_eager(
        &self,
        compartment: Compartment,
        destination: &Destination,
        via: Option<&ExitName>,
        early: &[u8],
        hold: Duration,
    ) -> Result<Option<TunnelStream>, Error> {
        let candidates = self.candidates(compartment, destination, via);
        let [only] = &candidates[..] else { return Ok(None) };
        let target = Target::beyond(&only.target, destination);
        if only.is_doubtful || !self.tunnel.accepts_lately(compartment, &target) {
            return Ok(None);
        }
        self.state().stays(compartment, destination, only.target.public_key);
        self.tunnel.open_eager(compartment, &target, early, hold).await.map(Some)
    }

    /// Waits a little for the first announcement, if nothing else says where an exit is.
    async fn wait_for_one(&self) {
        let Some(directory) = &self.directory else { return };
        let mut changes = directory.changes();
        let found = || match &self.exits {
            Exits::Listed(list) => list.iter().any(|exit| {
                let healthy = self.state().health.get(&exit.0.public_key).is_some_and(|h| h.failed.is_none());
                healthy || !exit.0.relays.is_empty() || directory.get(&exit.0.public_key).is_some()
            }),
            Exits::Any => !directory.all().is_empty(),
        };
        let waiting = async {
            // The directory lives as long as we do.
            while !found() && changes.changed().await.is_ok() {}
        };
        if timeout(FINDING, waiting).await.is_err() {
            debug!("no exit has announced itself yet");
        }
    }

    /// The exits to try, in order.
    fn candidates(
        &self,
        compartment: Compartment,
        destination: &Destination,
        via: Option<&ExitName>,
    ) -> Vec<Candidate> {
        if let Some(exit) = via {
            return vec![self.candidate(0, exit)];
        }
        let mut candidates: Vec<Candidate> = match (&self.exits, &self.directory) {
            (Exits::Listed(list), _) => {
                list.iter().enumerate().map(|(place, exit)| self.candidate(place, exit)).collect()
            }
            (Exits::Any, Some(directory)) => {
                let takes = |known: &KnownExit| known.announcement.may_reach(destination.port);
                let known = directory.all().into_iter().filter(takes);
                known
                    .map(|known| Candidate { target: known.target(), known: Some(known), place: 0, is_doubtful: false })
                    .collect()
            }
            (Exits::Any, None) => Vec::new(),
        };
        candidates
            .retain(|candidate| !self.exclude.iter().any(|exit| exit.0.public_key == candidate.target.public_key));
        self.state().rank(&mut candidates, compartment, destination, Instant::now());
        candidates.truncate(ATTEMPTS_MAX);
        candidates
    }

    fn candidate(&self, place: usize, exit: &ExitName) -> Candidate {
        let known = self.directory.as_ref().and_then(|directory| directory.get(&exit.0.public_key));
        let target = match &known {
            Some(known) if exit.0.relays.is_empty() => known.target(),
            _ => exit.0.clone(),
        };
        Candidate { target, known, place, is_doubtful: false }
    }

    async fn try_all(
        &self,
        compartment: Compartment,
        destination: &Destination,
        candidates: &[Candidate],
    ) -> Result<TunnelStream, Error> {
        // What the last exit said that answered, or else why the first one did not.
        let (mut answer, mut failure) = (None, None);
        for (index, candidate) in candidates.iter().enumerate() {
            let key = candidate.target.public_key;
            if answer.is_some() && candidate.is_doubtful {
                // An answer in hand is better than a long wait for none.
                continue;
            }
            // An old exit that is public says that it is there; whatever else is silent is not there.
            if candidate.known.as_ref().is_none_or(|known| known.announcement.speaks_streams()) {
                self.tunnel.expect_streams(&key);
            }
            let patience = (answer.is_some() || index + 1 < candidates.len()).then_some(PATIENCE);
            let start = Instant::now();
            match self.tunnel.try_open(compartment, &Target::beyond(&candidate.target, destination), patience).await {
                Ok(stream) => {
                    self.state().succeeded(compartment, destination, key, start.elapsed());
                    return Ok(stream);
                }
                Err(Unopened { error, answered: true }) => {
                    debug!(exit = %key, code = error.kind().code(), "an exit refused");
                    if is_final(error.kind()) {
                        return Err(error);
                    }
                    answer = Some(error);
                }
                Err(Unopened { error, answered: false }) => {
                    debug!(exit = %key, %error, "an exit does not answer");
                    self.state().failed(key);
                    failure.get_or_insert(error);
                }
            }
        }
        Err(answer.or(failure).unwrap_or_else(|| Error::new(ErrorKind::HostUnreachable, "there is no exit to try")))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an exit's answer is about the destination, so that another exit would say the same.
const fn is_final(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Refused | ErrorKind::HostUnreachable | ErrorKind::Timeout)
}

impl State {
    /// Sorts: what is likely to work first, then the quickest, then the preferred one; ahead of them all the exit that
    /// the host had before, unless it fails.
    fn rank(&self, candidates: &mut [Candidate], compartment: Compartment, destination: &Destination, now: Instant) {
        let fresh = |(_, at): &&(PublicKey, Instant)| now.saturating_duration_since(*at) < STICKY;
        let place = (compartment, destination.host.clone());
        let before = self.sticky.get(&place).filter(fresh).map(|(key, _)| *key);
        let doubts = |candidate: &Candidate| {
            let health = self.health.get(&candidate.target.public_key).copied().unwrap_or_default();
            let announcement = candidate.known.as_ref().map(|known| &known.announcement);
            let avoided = health.is_avoided(now, announcement.map(|said| said.created_at));
            let closed = announcement.is_some_and(|said| !said.may_reach(destination.port));
            // Nothing tells that it is there.
            let lost = announcement.is_none() && candidate.target.relays.is_empty() && health.measured(now).is_none();
            (avoided, closed, lost)
        };
        for candidate in &mut *candidates {
            candidate.is_doubtful = doubts(candidate) != (false, false, false);
        }
        candidates.sort_by_key(|candidate| {
            let key = candidate.target.public_key;
            let measured = self.health.get(&key).and_then(|health| health.measured(now));
            let old = candidate.known.as_ref().is_some_and(|known| !known.announcement.speaks_streams());
            let had_before = Reverse(before == Some(key));
            (doubts(candidate), had_before, old, measured.unwrap_or(Duration::MAX), candidate.place)
        });
    }

    fn succeeded(&mut self, compartment: Compartment, destination: &Destination, key: PublicKey, took: Duration) {
        let now = Instant::now();
        if let Some(health) = self.health_mut(key) {
            health.succeeded(now, took);
        }
        self.stays(compartment, destination, key);
    }

    /// The host had this exit now.
    fn stays(&mut self, compartment: Compartment, destination: &Destination, key: PublicKey) {
        let now = Instant::now();
        if self.sticky.len() >= STICKY_MAX {
            self.sticky.retain(|_, (_, at)| now.saturating_duration_since(*at) < STICKY);
        }
        let place = (compartment, destination.host.clone());
        if self.sticky.len() < STICKY_MAX || self.sticky.contains_key(&place) {
            self.sticky.insert(place, (key, now));
        }
    }

    fn failed(&mut self, key: PublicKey) {
        if let Some(health) = self.health_mut(key) {
            health.failed(Instant::now(), Timestamp::now().as_secs());
        }
    }

    fn health_mut(&mut self, key: PublicKey) -> Option<&mut Health> {
        if self.health.len() >= HEALTH_MAX && !self.health.contains_key(&key) {
            return None;
        }
        Some(self.health.entry(key).or_default())
    }
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;
    use crate::directory::Announcement;

    const SOON: Duration = Duration::from_secs(1);
    const ONE: Compartment = Compartment::NONE;

    fn destination(host: &str) -> Destination {
        Destination { host: Host::parse(host), port: 443 }
    }

    fn exit(place: usize, announced: Option<u64>) -> Candidate {
        let key = Keys::generate().public_key();
        let target = NostrName::new(key, []);
        let announcement = |created_at| Announcement {
            exit: key,
            created_at,
            expires_at: created_at + 30,
            relays: Vec::new(),
            version: Some(1),
            ports: None,
            name: None,
            contact: None,
            software: None,
        };
        let known = |at| KnownExit { announcement: announcement(at), seen_on: Vec::new(), is_asked_for: true };
        Candidate { target, known: announced.map(known), place, is_doubtful: false }
    }

    fn order(state: &State, exits: &[Candidate], host: &str) -> Vec<usize> {
        let mut candidates = exits.to_vec();
        candidates.reverse();
        state.rank(&mut candidates, ONE, &destination(host), Instant::now());
        candidates.iter().map(|candidate| candidate.place).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn preference_decides_until_something_is_measured_and_then_time_does() {
        let exits = [exit(0, Some(1)), exit(1, Some(1)), exit(2, Some(1))];
        let mut state = State::default();
        assert_eq!(order(&state, &exits, "a.example"), [0, 1, 2]);
        state.succeeded(ONE, &destination("b.example"), exits[2].target.public_key, SOON);
        assert_eq!(order(&state, &exits, "a.example"), [2, 0, 1]);
        state.succeeded(ONE, &destination("c.example"), exits[1].target.public_key, SOON / 2);
        assert_eq!(order(&state, &exits, "a.example"), [1, 2, 0]);
        tokio::time::advance(MEASURED).await;
        assert_eq!(order(&state, &exits, "a.example"), [0, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_stays_with_its_exit_for_ten_minutes() {
        let exits = [exit(0, Some(1)), exit(1, Some(1))];
        let mut state = State::default();
        state.succeeded(ONE, &destination("a.example"), exits[1].target.public_key, SOON);
        state.succeeded(ONE, &destination("b.example"), exits[0].target.public_key, SOON / 4);
        assert_eq!(order(&state, &exits, "a.example"), [1, 0]);
        assert_eq!(order(&state, &exits, "c.example"), [0, 1]);
        tokio::time::advance(STICKY - SOON).await;
        assert_eq!(order(&state, &exits, "a.example"), [1, 0]);
        tokio::time::advance(SOON).await;
        assert_eq!(order(&state, &exits, "a.example"), [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_host_has_which_exit_is_known_to_one_compartment_only() {
        let exits = [exit(0, Some(1)), exit(1, Some(1))];
        let mut state = State::default();
        state.succeeded(Compartment::of(&"another"), &destination("a.example"), exits[1].target.public_key, SOON);
        state.succeeded(ONE, &destination("b.example"), exits[0].target.public_key, SOON / 4);
        assert_eq!(order(&state, &exits, "a.example"), [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exit_that_fails_comes_last_until_it_says_that_it_is_back() {
        let now = Timestamp::now().as_secs();
        let mut exits = [exit(0, Some(now - 5)), exit(1, Some(now))];
        let mut state = State::default();
        state.succeeded(ONE, &destination("a.example"), exits[0].target.public_key, SOON);
        state.failed(exits[0].target.public_key);
        assert_eq!(order(&state, &exits, "a.example"), [1, 0]);
        tokio::time::advance(AVOIDED).await;
        assert_eq!(order(&state, &exits, "a.example"), [1, 0], "its announcement is from before");
        exits[0].known.as_mut().unwrap().announcement.created_at = now + 60;
        assert_eq!(order(&state, &exits, "a.example"), [0, 1]);
        // A second failure in a row counts double.
        state.failed(exits[0].target.public_key);
        exits[0].known.as_mut().unwrap().announcement.created_at = now + 600;
        tokio::time::advance(AVOIDED).await;
        assert_eq!(order(&state, &exits, "a.example"), [1, 0]);
        tokio::time::advance(AVOIDED).await;
        assert_eq!(order(&state, &exits, "a.example"), [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn exits_that_are_not_heard_of_or_close_the_port_come_behind() {
        let mut exits = [exit(0, None), exit(1, Some(1)), exit(2, Some(1)), exit(3, Some(1))];
        exits[1].known.as_mut().unwrap().announcement.ports = Some(crate::pattern::Ports::parse(["80"]).unwrap());
        exits[2].known.as_mut().unwrap().announcement.version = None;
        assert_eq!(order(&State::default(), &exits, "a.example"), [3, 2, 0, 1]);
    }
}
