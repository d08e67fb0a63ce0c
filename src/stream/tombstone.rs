//! What is kept of streams that have ended: the last word, to be said again when the peer missed it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::Error;
use crate::message::{Message, Type};

/// How long a last word is kept: longer than a peer goes on sending.
const KEPT: Duration = Duration::from_secs(90);
/// Most last words kept by one session.
const KEPT_MAX: usize = 16_384;

/// How a stream ended.
#[derive(Debug, Clone)]
pub(super) enum LastWord {
    /// Everything had arrived: this acknowledgement.
    Acknowledged(u64),
    /// We reset it.
    Reset(Error),
    /// The peer reset it, and needs no answer.
    Silent,
}

impl LastWord {
    /// The message that says it.
    pub(super) fn message(&self, key: Uuid) -> Option<Message> {
        match self {
            Self::Acknowledged(ack) => Some(Message { ack: Some(*ack), ..Message::new(key, Type::Ack) }),
            Self::Reset(error) => Some(Message::reset(key, error)),
            Self::Silent => None,
        }
    }
}

/// The last words of a session's streams, bounded in number and time.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    words: HashMap<Uuid, LastWord>,
    order: VecDeque<(Instant, Uuid)>,
}

impl Tombstones {
    pub(super) fn bury(&mut self, now: Instant, key: Uuid, word: LastWord) {
        while self.order.front().is_some_and(|(at, _)| self.order.len() >= KEPT_MAX || *at + KEPT <= now) {
            if let Some((_, key)) = self.order.pop_front() {
                self.words.remove(&key);
            }
        }
        if self.words.insert(key, word).is_none() {
            self.order.push_back((now, key));
        }
    }

    pub(super) fn get(&self, key: &Uuid) -> Option<&LastWord> {
        self.words.get(key)
    }
}
