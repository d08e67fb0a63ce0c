//! The proxy's side: one live subscription to announcements on its relays, and what is known from them. Nothing is
//! looked up when a client asks.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nostr::{Alphabet, Filter, Keys, Kind, PublicKey, RelayUrl, SingleLetterTag, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::announcement::{Announcement, KIND_ANNOUNCEMENT, is_deletion};
use crate::addresses::reserved;
use crate::destination::Host;
use crate::envelope::IncomingEvent;
use crate::limits::Limits;
use crate::name::NostrName;
use crate::relay::{Arrival, Attachment, Link, Notice, Subscription, Wanted};
use crate::stream::PathId;

/// How far back announcements are asked for, in seconds: as long as an exit may wait between two of them.
const LOOK_BACK: u64 = 60 * 60;

/// An exit stays known for so many seconds after its announcement has expired: the Go program's expire just when the
/// next one is made, which still has a way to go.
const GRACE: u64 = 15;

/// Events that wait to be judged at most; a full queue holds back the relay.
const ARRIVALS_MAX: usize = 64;

/// Stored announcements that are asked for at most, of each relay.
const STORED_MAX: usize = 500;

/// Deletions that are remembered at most, against announcements that come late from another relay.
const DELETED_MAX: usize = 4096;

/// An exit that announces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownExit {
    /// What it says.
    pub announcement: Announcement,
    /// The relays on which its announcement was seen.
    pub seen_on: Vec<RelayUrl>,
    /// Whether it was asked for by its key, and not found among strangers.
    pub is_asked_for: bool,
}

impl KnownExit {
    /// Where it is reached: the relays that it names, or else those where it was seen. A stranger may name relays in
    /// somebody's private network to make proxies knock there; such a relay is used only if the announcement came
    /// from it.
    #[must_use]
    pub fn target(&self) -> NostrName {
        let fit = |relay: &&RelayUrl| self.is_asked_for || self.seen_on.contains(relay) || !is_private(relay);
        let named: Vec<_> = self.announcement.relays.iter().filter(fit).cloned().collect();
        let relays = if named.is_empty() { self.seen_on.clone() } else { named };
        NostrName::new(self.announcement.exit, relays)
    }

    fn is_alive(&self, now: u64) -> bool {
        self.announcement.expires_at.saturating_add(GRACE) >= now
    }
}

/// Whether a relay's URL names a host that is not on the open internet, as far as can be told without asking anybody.
fn is_private(relay: &RelayUrl) -> bool {
    let url: &url::Url = relay.into();
    match Host::parse(url.host_str().unwrap_or_default()).canonical() {
        Host::Ip(ip) => reserved(ip).is_some(),
        Host::Name(name) => !name.contains('.'),
    }
}

/// How many events were dropped, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Drops {
    /// Announcements whose time was over.
    pub expired: u64,
    /// Those dated further ahead than clocks may differ (`limits.message_age`).
    pub future: u64,
    /// Those whose id or signature is wrong.
    pub forged: u64,
    /// Those of exits that nobody here asked about.
    pub unasked: u64,
    /// Those of new exits when `limits.known_exits` were known.
    pub overfull: u64,
}

/// The counters behind [`Drops`].
#[derive(Debug, Default)]
struct Counters {
    expired: AtomicU64,
    future: AtomicU64,
    forged: AtomicU64,
    unasked: AtomicU64,
    overfull: AtomicU64,
}

/// Which announcements to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interest {
    /// These exits alone, or all.
    exits: Option<Vec<PublicKey>>,
}

impl Interest {
    fn wanted(&self) -> Wanted {
        let announcements = Filter::new().kind(Kind::from(KIND_ANNOUNCEMENT)).limit(STORED_MAX);
        let kinds = SingleLetterTag::lowercase(Alphabet::K);
        let deletions =
            Filter::new().kind(Kind::EventDeletion).custom_tag(kinds, KIND_ANNOUNCEMENT.to_string()).limit(STORED_MAX);
        let of = |filter: Filter| match &self.exits {
            Some(exits) => filter.authors(exits.iter().copied()),
            None => filter,
        };
        Wanted::Kept { filters: vec![of(announcements), of(deletions)], look_back: LOOK_BACK }
    }

    fn covers(&self, exit: &PublicKey) -> bool {
        self.exits.as_ref().is_none_or(|exits| exits.contains(exit))
    }
}

/// What the handle and the task share.
#[derive(Debug)]
struct Shared {
    interest: Interest,
    limits: Arc<Limits>,
    known: Mutex<Known>,
    drops: Counters,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    exits: HashMap<PublicKey, (nostr::EventId, KnownExit)>,
    /// When an exit last took its announcements back: what it said before that is void, from whichever relay it comes.
    deleted: HashMap<PublicKey, u64>,
}

/// The exits that announce themselves; see the module. The subscription ends when this is dropped.
pub struct Directory {
    shared: Arc<Shared>,
    _end: DropGuard,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("interest", &self.shared.interest).finish_non_exhaustive()
    }
}

impl Directory {
    /// Subscribes on these relays, to the announcements of these exits or to all. Must be called inside a tokio
    /// runtime.
    #[must_use]
    pub fn start(links: &[Arc<Link>], exits: Option<Vec<PublicKey>>, limits: Arc<Limits>) -> Self {
        let (arrivals_tx, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let (notices_tx, notices) = mpsc::unbounded_channel();
        let interest = Interest { exits };
        let subscription = Subscription { wanted: interest.wanted(), arrivals: arrivals_tx };
        // A key for relays that want one; it says nothing of who we are.
        let keys = Keys::generate();
        let attach = |link: &Arc<Link>| link.attach(keys.clone(), notices_tx.clone(), Some(subscription.clone()));
        let attachments: Vec<_> = links.iter().map(attach).collect();
        let (changed, _) = watch::channel(0);
        let shared =
            Arc::new(Shared { interest, limits, known: Mutex::default(), drops: Counters::default(), changed });
        let end = CancellationToken::new();
        let task = follow(Arc::clone(&shared), attachments, arrivals, notices);
        tokio::spawn(end.clone().run_until_cancelled_owned(task));
        Self { shared, _end: end.drop_guard() }
    }

    /// An exit, if it announces itself.
    #[must_use]
    pub fn get(&self, exit: &PublicKey) -> Option<KnownExit> {
        let now = Timestamp::now().as_secs();
        self.shared.known().exits.get(exit).map(|(_, known)| known).filter(|known| known.is_alive(now)).cloned()
    }

    /// All exits that announce themselves.
    #[must_use]
    pub fn all(&self) -> Vec<KnownExit> {
        let now = Timestamp::now().as_secs();
        self.shared
            .known()
            .exits
            .values()
            .map(|(_, known)| known)
            .filter(|known| known.is_alive(now))
            .cloned()
            .collect()
    }

    /// What was dropped since the start.
    #[must_use]
    pub fn drops(&self) -> Drops {
        let Counters { expired, future, forged, unasked, overfull } = &self.shared.drops;
        let [expired, future, forged, unasked, overfull] =
            [expired, future, forged, unasked, overfull].map(|counter| counter.load(Ordering::Relaxed));
        Drops { expired, future, forged, unasked, overfull }
    }

    /// Changes whenever an exit comes to be known or is known no longer.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}

/// Takes in what the relays send.
async fn follow(
    shared: Arc<Shared>,
    attachments: Vec<Attachment>,
    mut arrivals: mpsc::Receiver<Arrival>,
    mut notices: mpsc::UnboundedReceiver<Notice>,
) {
    let urls: HashMap<PathId, RelayUrl> =
        attachments.iter().map(|attachment| (attachment.link().id(), attachment.link().url().clone())).collect();
    loop {
        tokio::select! {
            Some(arrival) = arrivals.recv() => {
                if let Some(url) = urls.get(&arrival.path) {
                    shared.take_in(&arrival.event, url, Timestamp::now().as_secs());
                }
            }
            Some(notice) = notices.recv() => {
                if let Notice::Down(_, why) = notice {
                    tracing::debug!(why, "no announcements from a relay for now");
                }
            }
            else => return,
        }
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges an event, and notes what it says.
    fn take_in(&self, event: &IncomingEvent, relay: &RelayUrl, now: u64) {
        let count = |counter: &AtomicU64, why: &str| {
            counter.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(exit = %event.author, %relay, why, "an announcement is dropped");
        };
        if !self.interest.covers(&event.author) {
            return count(&self.drops.unasked, "not asked for");
        }
        if event.created_at > now.saturating_add(self.limits.message_age.as_secs()) {
            return count(&self.drops.future, "from the future");
        }
        let id = nostr::EventId::from_byte_array(event.id);
        if let Some((known_id, known)) = self.known().exits.get_mut(&event.author)
            && *known_id == id
        {
            // Verified when it came from the first relay.
            if !known.seen_on.contains(relay) {
                known.seen_on.push(relay.clone());
            }
            return;
        }
        let deletes = is_deletion(event);
        if !deletes && event.kind != KIND_ANNOUNCEMENT {
            return count(&self.drops.unasked, "a deletion of something else");
        }
        let announcement = Announcement::read(event);
        if !deletes && announcement.expires_at <= now {
            return count(&self.drops.expired, "expired");
        }
        if event.verify().is_err() {
            return count(&self.drops.forged, "forged");
        }
        let mut known = self.known();
        if deletes {
            known.delete(event, now);
        } else if known.is_void(&announcement) {
            return;
        } else if self.interest.exits.is_none() && !known.has_room(&announcement, &self.limits, now) {
            drop(known);
            return count(&self.drops.overfull, "too many exits");
        } else {
            known.learn(id, announcement, relay, self.interest.exits.is_some());
        }
        drop(known);
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Known {
    fn delete(&mut self, event: &IncomingEvent, now: u64) {
        let until = event.created_at;
        if self.exits.get(&event.author).is_some_and(|(_, known)| known.announcement.created_at <= until) {
            self.exits.remove(&event.author);
        }
        if self.deleted.len() >= DELETED_MAX {
            // What lies further back than announcements are asked for cannot come any more.
            self.deleted.retain(|_, at| at.saturating_add(LOOK_BACK) >= now);
        }
        if self.deleted.len() < DELETED_MAX {
            let at = self.deleted.entry(event.author).or_default();
            *at = until.max(*at);
        }
    }

    /// Whether something newer is known of the exit.
    fn is_void(&self, announcement: &Announcement) -> bool {
        let known = self.exits.get(&announcement.exit);
        known.is_some_and(|(_, known)| known.announcement.created_at > announcement.created_at)
            || self.deleted.get(&announcement.exit).is_some_and(|at| *at >= announcement.created_at)
    }

    fn has_room(&mut self, announcement: &Announcement, limits: &Limits, now: u64) -> bool {
        if self.exits.len() < limits.known_exits || self.exits.contains_key(&announcement.exit) {
            return true;
        }
        self.exits.retain(|_, (_, known)| known.is_alive(now));
        self.exits.len() < limits.known_exits
    }

    fn learn(&mut self, id: nostr::EventId, announcement: Announcement, relay: &RelayUrl, is_asked_for: bool) {
        // One that names no relays is on all those where it was seen lately, in this announcement or the one before.
        let before = self.exits.remove(&announcement.exit).map(|(_, known)| known.seen_on).unwrap_or_default();
        let mut seen_on = vec![relay.clone()];
        if announcement.relays.is_empty() {
            seen_on.extend(before.into_iter().filter(|other| other != relay));
        }
        self.exits.insert(announcement.exit, (id, KnownExit { announcement, seen_on, is_asked_for }));
    }
}

#[cfg(test)]
mod tests {
    use nostr::{Event, JsonUtil};

    use super::*;
    use crate::directory::announcement::deletion;
    use crate::name::parse_relay;

    const NOW: u64 = 1_000_000;

    fn shared(exits: Option<Vec<PublicKey>>, limits: Limits) -> Shared {
        Shared {
            interest: Interest { exits },
            limits: Arc::new(limits),
            known: Mutex::default(),
            drops: Counters::default(),
            changed: watch::channel(0).0,
        }
    }

    fn directory(shared: Shared) -> Directory {
        Directory { shared: Arc::new(shared), _end: CancellationToken::new().drop_guard() }
    }

    fn announcement(keys: &Keys, created_at: u64, relays: &[&str]) -> Event {
        let relays = relays.iter().map(|url| parse_relay(url).unwrap()).collect();
        let said = Announcement {
            exit: keys.public_key(),
            created_at,
            expires_at: created_at + 30,
            relays,
            version: Some(1),
            ports: None,
            name: None,
            contact: None,
            software: None,
        };
        said.sign(keys).unwrap()
    }

    fn relay(url: &str) -> RelayUrl {
        parse_relay(url).unwrap()
    }

    fn take(shared: &Shared, event: &Event, from: &str) {
        shared.take_in(&IncomingEvent::parse(&event.as_json()).unwrap(), &relay(from), NOW);
    }

    fn entries(shared: &Shared) -> usize {
        shared.known().exits.len()
    }

    #[test]
    fn what_is_expired_future_or_forged_is_dropped_and_counted() {
        let shared = shared(None, Limits::default());
        let keys = Keys::generate();
        take(&shared, &announcement(&keys, NOW - 30, &[]), "ws://a");
        take(&shared, &announcement(&keys, NOW + 301, &[]), "ws://a");
        let mut forged = announcement(&keys, NOW, &[]);
        forged.content = "x".into();
        take(&shared, &forged, "ws://a");
        let mut forged = announcement(&keys, NOW, &[]);
        forged.sig = announcement(&keys, NOW, &["ws://b"]).sig;
        take(&shared, &forged, "ws://a");
        assert_eq!(entries(&shared), 0);
        for created_at in [NOW - 29, NOW + 300] {
            take(&shared, &announcement(&Keys::generate(), created_at, &[]), "ws://a");
        }
        assert_eq!(entries(&shared), 2);
        let drops = Drops { expired: 1, future: 1, forged: 2, ..Drops::default() };
        assert_eq!(directory(shared).drops(), drops);
    }

    #[test]
    fn the_newest_word_of_an_exit_counts_and_a_deletion_ends_it() {
        let shared = shared(None, Limits::default());
        let keys = Keys::generate();
        let newest = announcement(&keys, NOW, &["wss://new.example"]);
        take(&shared, &newest, "ws://a");
        take(&shared, &announcement(&keys, NOW - 5, &["wss://old.example"]), "ws://b");
        take(&shared, &newest, "ws://c");
        {
            let known = shared.known();
            let (_, exit) = &known.exits[&keys.public_key()];
            assert_eq!(exit.announcement.relays, [relay("wss://new.example")]);
            assert_eq!(exit.seen_on, [relay("ws://a"), relay("ws://c")]);
        }
        // Nobody else can end it.
        let other = Keys::generate();
        take(&shared, &deletion(&other, &newest, NOW).unwrap(), "ws://a");
        assert_eq!(entries(&shared), 1);
        take(&shared, &deletion(&keys, &newest, NOW).unwrap(), "ws://a");
        take(&shared, &newest, "ws://b");
        assert_eq!(entries(&shared), 0);
        take(&shared, &announcement(&keys, NOW + 1, &[]), "ws://a");
        assert_eq!(entries(&shared), 1);
    }

    #[test]
    fn a_bare_announcement_is_on_the_relays_where_it_is_seen() {
        let shared = shared(None, Limits::default());
        let keys = Keys::generate();
        take(&shared, &announcement(&keys, NOW, &[]), "ws://a");
        take(&shared, &announcement(&keys, NOW + 10, &[]), "ws://b");
        let known = shared.known();
        assert_eq!(known.exits[&keys.public_key()].1.target().relays, [relay("ws://b"), relay("ws://a")]);
    }

    #[test]
    fn relays_of_private_networks_count_only_where_they_say_so_themselves() {
        let keys = Keys::generate();
        let known_of = |asked: Option<Vec<PublicKey>>, relays: &[&str], from: &str| {
            let shared = shared(asked, Limits::default());
            take(&shared, &announcement(&keys, NOW, relays), from);
            let target = shared.known().exits[&keys.public_key()].1.target();
            target.relays.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let known = |relays: &[&str], from: &str| known_of(None, relays, from);
        let hostile = ["ws://127.0.0.1:22", "ws://192.168.1.1", "ws://router", "ws://[::1]:1", "wss://good.example"];
        assert_eq!(known(&hostile, "wss://seen.example"), ["wss://good.example"]);
        assert_eq!(known(&hostile[..2], "wss://seen.example"), ["wss://seen.example"]);
        assert_eq!(known(&["ws://127.0.0.1:7777"], "ws://127.0.0.1:7777"), ["ws://127.0.0.1:7777"]);
        // Whoever is asked for by name may be anywhere.
        assert_eq!(known_of(Some(vec![keys.public_key()]), &hostile[1..2], "wss://seen.example"), hostile[1..2]);
    }

    #[test]
    fn strangers_are_left_out_where_some_are_asked_for_and_bounded_where_all_are() {
        let keys = Keys::generate();
        let few = shared(Some(vec![keys.public_key()]), Limits::default());
        take(&few, &announcement(&keys, NOW, &[]), "ws://a");
        take(&few, &announcement(&Keys::generate(), NOW, &[]), "ws://a");
        assert_eq!((entries(&few), directory(few).drops().unasked), (1, 1));

        let full = shared(None, Limits { known_exits: 2, ..Limits::default() });
        for keys in [&keys, &Keys::generate(), &Keys::generate(), &keys] {
            take(&full, &announcement(keys, NOW, &[]), "ws://a");
        }
        assert_eq!((entries(&full), directory(full).drops().overfull), (2, 1));
    }
}
