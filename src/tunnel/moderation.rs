//! How soon short events follow one another. Each costs a signature, a passage through the relay and a look-up at the other
//! end, whatever is in it; where many streams have a little to say, what comes within a moment travels in one event, as
//! network cards moderate their interrupts. Long events are not held up, and neither are the first few after a rest: a
//! client that waits for each answer before it asks again sees nothing of it.

use std::time::{Duration, Instant};

/// Time between two short events of a session that has many to send.
const SPACING: Duration = Duration::from_millis(2);
/// So many may leave at once after a rest.
const BURST: u32 = 16;

/// The generic cell rate algorithm (ITU-T I.371) over short events.
#[derive(Debug, Default)]
pub(super) struct Moderation {
    /// When those that have left would have, at the spacing.
    level: Option<Instant>,
}

impl Moderation {
    /// When the next short event may leave, if not now.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        let until = self.level?.checked_sub(SPACING * (BURST - 1))?;
        (until > now).then_some(until)
    }

    /// A short event leaves.
    pub(super) fn note(&mut self, now: Instant) {
        self.level = Some(self.level.map_or(now, |level| level.max(now)) + SPACING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_leave_at_once_and_many_at_their_spacing() {
        let (mut moderation, start) = (Moderation::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(moderation.until(start), None);
            moderation.note(start);
        }
        assert_eq!(moderation.until(start), Some(start + SPACING));
        let mut now = start;
        let mut sent = 0;
        while now < start + Duration::from_secs(1) {
            if moderation.until(now).is_none() {
                moderation.note(now);
                sent += 1;
            }
            now += Duration::from_micros(100);
        }
        assert!((490..=501).contains(&sent), "{sent}");
        assert_eq!(moderation.until(now + SPACING * BURST), None, "a rest gives the burst back");
    }
}
