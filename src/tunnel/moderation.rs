//! How soon short events follow one another. Each costs a signature, a passage through the relay and a look-up at the other
//! end, whatever is in it; where many streams have a little to say, what comes within a moment travels in one event, as
//! network cards moderate their interrupts. Long events are not held up, and a client that waits for each answer before it
//! asks again sees nothing of it: an answer takes longer than the pause after one message.

use std::time::{Duration, Instant};

/// Pause after a short event, for each message in it: the more there is to share, the more is worth waiting for.
const PER_MESSAGE: Duration = Duration::from_micros(250);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Moderation {
    /// When the next short event may leave.
    next: Option<Instant>,
    /// The same, if one was held back when that was asked last.
    held: Option<Instant>,
    /// Whether nothing waits any more.
    lifted: bool,
}

impl Moderation {
    /// Whether a short event has to wait.
    pub(super) fn holds(&mut self, now: Instant) -> bool {
        self.held = self.next.filter(|next| *next > now && !self.lifted);
        self.held.is_some()
    }

    /// When what was held back may leave: also when that is over by now, or nobody would come back for it.
    pub(super) const fn wakes_at(&self) -> Option<Instant> {
        self.held
    }

    /// From now on nothing waits: the session ends, and there is no later.
    pub(super) const fn lift(&mut self) {
        self.lifted = true;
    }

    /// A short event leaves with so many messages.
    pub(super) fn note(&mut self, now: Instant, messages: usize) {
        let pause = PER_MESSAGE.saturating_mul(u32::try_from(messages).unwrap_or(u32::MAX)).min(PAUSE_MAX);
        self.next = Some(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_with_what_there_is_to_share_up_to_a_bound() {
        let (mut moderation, now) = (Moderation::default(), Instant::now());
        assert!(!moderation.holds(now));
        for (messages, pause) in [(1, PER_MESSAGE), (3, PER_MESSAGE * 3), (1_000, PAUSE_MAX), (usize::MAX, PAUSE_MAX)] {
            moderation.note(now, messages);
            assert!(moderation.holds(now));
            assert_eq!(moderation.wakes_at(), Some(now + pause));
            assert!(!moderation.holds(now + pause));
            assert_eq!(moderation.wakes_at(), None);
        }
        moderation.lift();
        moderation.note(now, 1_000);
        assert!(!moderation.holds(now), "the last words of a session do not wait");
    }
}
