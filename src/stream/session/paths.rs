//! The paths of a session: relays that come, go, refuse and come back, and what that means for what is under way.

use std::time::{Duration, Instant};

use crate::message::Message;
use crate::stream::path::{Path, Sent};
use crate::stream::send::Flight;
use crate::stream::{PacketId, PathId};

use super::{OUT_OF_USE, PAUSE, PLAINTEXT_MIN, Phase, Refusal, Session};

impl Session {
    /// The relay is connected and subscribed to, and takes events with this much plaintext.
    pub fn path_up(&mut self, now: Instant, id: PathId, plaintext_max: usize) {
        let settings = &self.settings;
        let path =
            self.paths.entry(id).or_insert_with(|| Path::new(settings.path_window_max, settings.path_events_max));
        if path.up {
            // Connected anew, or served after all: what was refused or lost there goes out again.
            let sent = path.take_all();
            self.resend(id, sent);
        }
        let Some(path) = self.paths.get_mut(&id) else { return };
        path.up = true;
        path.plaintext_max = plaintext_max;
        path.put_in_use();
        self.trouble = None;
        self.repeat_openings(now, id);
        // A greeting on this very path: the peer learns that we are back there, and its answer tells us the same.
        // An old peer knows neither, and is told nothing.
        let mut streams = self.streams.iter_mut();
        let greeting = streams.find(|(_, stream)| matches!(stream.phase, Phase::Open) && !stream.is_old());
        if let Some((&key, stream)) = greeting {
            let message = Message { probe: true, ..stream.ack_message(now, key) };
            self.replies.push_back((Some(id), message));
        }
    }

    /// Whether any relay can be used at the moment.
    #[must_use]
    pub fn is_connected(&self, now: Instant) -> bool {
        self.paths.values().any(|path| path.is_usable(now))
    }

    /// Openings that wait go out on a path that can be used from now on.
    pub(super) fn repeat_openings(&mut self, now: Instant, id: PathId) {
        for (&key, stream) in &mut self.streams {
            if let Some(opening) = stream.opening_mut().filter(|opening| !opening.held) {
                self.opening_queue.push_back((key, id));
                opening.note_sent(now);
            }
        }
    }

    /// The relay's limit has become known.
    pub fn path_limit(&mut self, id: PathId, plaintext_max: usize) {
        if let Some(path) = self.paths.get_mut(&id) {
            path.plaintext_max = plaintext_max;
        }
    }

    /// The relay is gone, and what was under way there with it.
    pub fn path_down(&mut self, now: Instant, id: PathId, why: &str) {
        self.trouble = Some(why.to_owned());
        if let Some(path) = self.paths.get_mut(&id) {
            let sent = path.take_all();
            let rtt = path.rtt.clone();
            *path = Path::new(self.settings.path_window_max, self.settings.path_events_max);
            path.rtt = rtt;
            self.resend(id, sent);
        }
        self.old_path_down(now, id);
        self.opening_queue.retain(|&(_, path)| path != id);
        self.fail_openings_without_path(now);
    }

    /// The relay refused an event.
    pub fn refused(&mut self, now: Instant, id: PathId, packet: Option<PacketId>, refusal: Refusal) {
        if let Some(key) = packet.and_then(|packet| self.old_sent.remove(&(id, packet))) {
            self.old_refused(now, key, &refusal);
        }
        let Some(path) = self.paths.get_mut(&id) else { return };
        let absent = matches!(refusal, Refusal::Absent(_));
        match refusal {
            Refusal::RateLimited => {
                path.put_out_of_use(now, PAUSE);
                let sent = packet.and_then(|packet| Some((packet, path.take(packet)?)));
                if let Some((_, sent)) = &sent {
                    // One reaction for all that were under way together.
                    path.congestion.lost(now, sent.at);
                }
                self.resend(id, sent);
            }
            Refusal::Absent(why) | Refusal::NotServed(why) => {
                path.put_out_of_use(now, if absent { PAUSE } else { OUT_OF_USE });
                self.trouble = Some(why);
                let sent = path.take_all();
                self.resend(id, sent);
            }
            Refusal::TooLarge => {
                let sent = packet.and_then(|packet| Some((packet, path.take(packet)?)));
                // Half of what was refused: several that are under way together teach one lesson, not many.
                // A refused opening teaches nothing: it is short as it is, and repeated as it is.
                let refused = sent.as_ref().map_or(usize::MAX, |(_, sent)| sent.plaintext);
                path.plaintext_max = path.plaintext_max.min((refused / 2).max(PLAINTEXT_MIN));
                self.resend(id, sent);
            }
            Refusal::NotSent => {
                let sent = packet.and_then(|packet| Some((packet, path.take(packet)?)));
                self.resend(id, sent);
            }
            Refusal::Other => {}
        }
    }

    /// Chunks of events that did not arrive go out again.
    pub(super) fn resend(&mut self, path: PathId, events: impl IntoIterator<Item = (PacketId, Sent)>) {
        for (packet, sent) in events {
            for (key, start) in sent.chunks {
                if let Some(stream) = self.streams.get_mut(&key)
                    && stream.send.lose(start, path, packet)
                {
                    self.queue_data(key);
                }
            }
        }
    }

    /// The best guess at the time to the peer and back.
    pub(super) fn round_trip(&self) -> Duration {
        self.paths.values().filter_map(|path| path.rtt.measured()).min().unwrap_or(Duration::from_millis(100))
    }

    pub(super) fn forget_flights(&mut self, flights: Vec<Flight>) {
        for flight in flights {
            if let Some(path) = self.paths.get_mut(&flight.path) {
                path.forget_chunk(flight.packet);
            }
        }
    }
}
