//! The passing of time: acknowledgements that have waited, openings to repeat, losses, probes, stalls.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::message::Message;

use super::{OUT_OF_USE, PacketId, PathId, Phase, REPLIES_MAX, Session, Tongue};
use crate::stream::path::Sent;

/// An opening fails when no relay has been reachable for so long.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(10);

/// An idle stream is probed early by this part of its time, if another is probed then.
const EARLY_PROBES: u32 = 4;

impl Session {
    /// When [`Self::handle_timeout`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let streams = self.timers.first().map(|&(at, _)| at);
        let paths = self.paths.values().filter_map(|path| path.timeout()).min();
        [streams, paths, self.paced_until].into_iter().flatten().min()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let back: Vec<PathId> =
            self.paths.iter_mut().filter_map(|(&id, path)| path.end_of_pause(now).then_some(id)).collect();
        back.into_iter().for_each(|id| self.repeat_openings(now, id));
        self.detect_losses(now);
        self.probe_paths(now);
        // Each at most once, so that a deadline that stays behind can cost time but not stop everything.
        let due: Vec<Uuid> = self.timers.iter().take_while(|(at, _)| *at <= now).map(|&(_, key)| key).collect();
        let waiting = self.replies.len();
        due.into_iter().for_each(|key| self.on_deadline(now, key));
        if self.replies.iter().skip(waiting).any(|(_, message)| message.probe) {
            self.probe_company(now);
        }
    }

    /// Declares lost what a later event has overtaken for too long, and sends it again.
    pub(super) fn detect_losses(&mut self, now: Instant) {
        let ids: Vec<PathId> = self.paths.keys().copied().collect();
        for id in ids {
            let Some(path) = self.paths.get_mut(&id) else { continue };
            let lost = path.take_lost(now);
            self.lose(now, id, lost);
        }
    }

    /// Sends again what is lost on a path, and takes it for a sign of a full queue unless the peer refuses it.
    fn lose(&mut self, now: Instant, id: PathId, lost: Vec<(PacketId, Sent)>) {
        let mut latest = None;
        for (packet, sent) in &lost {
            let mut refused = true;
            for (key, start) in &sent.chunks {
                let Some(stream) = self.streams.get_mut(key) else { continue };
                if stream.send.is_head(*start, id, *packet) {
                    stream.doubt.note_lost(now, stream.send.base());
                }
                refused &= stream.doubt.is_there();
            }
            latest = latest.max((!refused).then_some(sent.at));
        }
        if let (Some(latest), Some(path)) = (latest, self.paths.get_mut(&id)) {
            path.congestion.lost(now, latest);
        }
        self.resend(id, lost);
    }

    fn probe_paths(&mut self, now: Instant) {
        let ids: Vec<PathId> = self.paths.keys().copied().collect();
        for id in ids {
            let Some(path) = self.paths.get_mut(&id) else { continue };
            let Some(probe) = path.take_probe(now) else { continue };
            let silent = path.is_silent();
            // The window may be full of what does not arrive, and one event less makes no room in it.
            let all = if path.probes_in_vain() { path.take_all() } else { Vec::new() };
            self.resend(id, [probe]);
            self.lose(now, id, all);
            let elsewhere =
                self.paths.iter().any(|(&other, path)| other != id && path.is_usable(now) && path.is_proven());
            if silent && elsewhere {
                // The peer is not there any more: what is under way goes over another relay.
                if let Some(path) = self.paths.get_mut(&id) {
                    path.put_out_of_use(now, OUT_OF_USE);
                    let rest = path.take_all();
                    self.resend(id, rest);
                }
            }
        }
    }

    fn on_deadline(&mut self, now: Instant, key: Uuid) {
        let Some(stream) = self.streams.get_mut(&key) else {
            self.timers.retain(|&(_, timer)| timer != key);
            return;
        };
        if stream.is_old() {
            self.on_old_deadline(now, key);
        } else if matches!(stream.phase, Phase::Opening(_)) {
            self.on_opening_deadline(now, key);
        } else if stream.is_stalled(now, &self.settings) {
            let error = Error::new(ErrorKind::Timeout, "the other side has not answered for too long");
            self.reset_stream(now, key, error, true);
            if self.streams.get(&key).is_some_and(|stream| !stream.is_held()) {
                self.remove(key);
            }
        } else {
            let (answers, tries) = (stream.is_ack_due(now), stream.doubt.try_again(now));
            if answers {
                self.owe_ack_now(now, key);
            }
            if tries {
                self.queue_data(key);
            }
            self.probe_stream(now, now, key);
        }
        self.arm(key);
    }

    /// Asks whether the peer still knows a stream, if that is due by `by`; true if so.
    fn probe_stream(&mut self, now: Instant, by: Instant, key: Uuid) -> bool {
        if let Some(stream) = self.streams.get_mut(&key)
            && matches!(stream.phase, Phase::Open)
            && !stream.is_old()
            && stream.take_probe(now, by, &self.settings)
        {
            let message = Message { probe: true, ..stream.ack_message(now, key) };
            self.reply(None, message);
            return true;
        }
        false
    }

    /// When one idle stream is probed, those whose turn comes soon go along: thousands of them share few events.
    fn probe_company(&mut self, now: Instant) {
        let by = now + self.settings.idle_probe_after / EARLY_PROBES;
        let soon: Vec<Uuid> = self.timers.iter().take_while(|(at, _)| *at <= by).map(|&(_, key)| key).collect();
        for key in soon {
            if self.replies.len() >= REPLIES_MAX / 2 {
                return;
            }
            if self.probe_stream(now, by, key) {
                self.arm(key);
            }
        }
    }

    fn on_opening_deadline(&mut self, now: Instant, key: Uuid) {
        let up: Vec<PathId> = self.paths.iter().filter(|(_, path)| path.is_usable(now)).map(|(&id, _)| id).collect();
        let best =
            up.iter().copied().filter(|id| self.paths[id].is_proven()).min_by_key(|id| self.paths[id].distance());
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let Phase::Opening(opening) = &mut stream.phase else { return };
        opening.held &= now < opening.next_at;
        let waited = now.saturating_duration_since(opening.since);
        let connected = self.paths.values().any(|path| path.up);
        if up.is_empty() && !connected {
            if waited >= UNREACHABLE_AFTER.min(self.settings.open_timeout) {
                self.fail_unreachable(now, key);
                return;
            }
            // The wait for an exit of ours starts anew when it has left again.
            (opening.left, opening.presume_at) = (None, None);
            // A path that comes up sends it at once.
            opening.next_at = (opening.since + UNREACHABLE_AFTER).max(now + Duration::from_secs(1));
            return;
        }
        if self.tongue == Tongue::Unknown && !opening.heard && opening.presume_at.is_some_and(|at| now >= at) {
            return self.presume_old(now);
        }
        // Known meanwhile, by another stream.
        opening.presume_at = opening.presume_at.filter(|&at| now < at);
        if now < opening.next_at && waited < self.settings.open_timeout {
            return;
        }
        if waited >= self.settings.open_timeout {
            let error = match (&self.trouble, opening.heard) {
                (Some(trouble), _) => format!("the exit did not answer; a relay said: {trouble}"),
                (None, true) => "the exit is there, but its service did not answer in time".to_owned(),
                (None, false) => "the exit did not answer: it is not running, or not on these relays".to_owned(),
            };
            if self.tongue == Tongue::Streams && !opening.heard {
                // Another program may stand there now; the next stream finds out anew.
                self.tongue = Tongue::Unknown;
            }
            self.reset_stream(now, key, Error::new(ErrorKind::Timeout, error), true);
            return;
        }
        let first = opening.attempts == 0;
        opening.note_sent(now);
        for id in up {
            // The best path is enough at first; paths where the peer has not been heard are tried beside it.
            let wanted = !first || best.is_none() || best == Some(id) || !self.paths[&id].is_proven();
            if wanted && (first || !self.opening_queue.contains(&(key, id))) {
                self.opening_queue.push_back((key, id));
            }
        }
    }

    /// Ends the openings that have waited long enough for a relay.
    pub(super) fn fail_openings_without_path(&mut self, now: Instant) {
        if self.paths.values().any(|path| path.is_usable(now)) {
            return;
        }
        let waiting: Vec<Uuid> = self
            .streams
            .iter()
            .filter(|(_, stream)| {
                matches!(&stream.phase, Phase::Opening(opening)
                    if now.saturating_duration_since(opening.since) >= UNREACHABLE_AFTER)
            })
            .map(|(&key, _)| key)
            .collect();
        waiting.into_iter().for_each(|key| self.fail_unreachable(now, key));
    }

    fn fail_unreachable(&mut self, now: Instant, key: Uuid) {
        let why = self.trouble.as_deref().unwrap_or("no relay answers");
        let error = Error::new(ErrorKind::NetworkUnreachable, format!("no relay can be reached: {why}"));
        self.reset_stream(now, key, error, true);
    }
}
