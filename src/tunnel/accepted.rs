//! Which services of an exit have accepted a stream lately, and the openings that are still to tell: the ground for
//! telling a client of success before the exit has answered. One for each session, so it ends with it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::Error;

/// How long an acceptance is taken as a sign for the next one: longer than a page needs for its parts, too short for a
/// service that was stopped to fool many.
const LATELY: Duration = Duration::from_secs(60);
/// Services remembered at most; an exit rarely has more than a few.
const SERVICES_MAX: usize = 1024;

/// Host and port as they stand in a `CONNECT`.
pub(super) type Service = (String, u16);

/// An opening that the exit has not answered.
#[derive(Debug)]
struct Pending {
    service: Service,
    /// Whether somebody uses the stream already, as if it were open.
    eager: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    lately: HashMap<Service, Instant>,
    pending: HashMap<Uuid, Pending>,
}

impl Accepted {
    /// Whether the service has accepted a stream lately, and refused none since.
    pub(super) fn is_lately(&self, now: Instant, service: &Service) -> bool {
        self.lately.get(service).is_some_and(|at| now.saturating_duration_since(*at) < LATELY)
    }

    /// The outcome of this opening is to be noted.
    pub(super) fn await_outcome(&mut self, key: Uuid, service: Service, eager: bool) {
        self.pending.insert(key, Pending { service, eager });
    }

    /// Whether the outcome of this opening is awaited.
    pub(super) fn awaits(&self, key: Uuid) -> bool {
        self.pending.contains_key(&key)
    }

    /// The exit has accepted. What only looks like an acceptance, of a peer that cannot say it, teaches nothing.
    pub(super) fn note_open(&mut self, now: Instant, key: Uuid, said_so: bool) {
        let Some(Pending { service, .. }) = self.pending.remove(&key) else { return };
        if !said_so {
            return;
        }
        if self.lately.len() >= SERVICES_MAX {
            self.lately.retain(|_, at| now.saturating_duration_since(*at) < LATELY);
        }
        if self.lately.len() < SERVICES_MAX {
            self.lately.insert(service, now);
        }
    }

    /// The opening has failed.
    pub(super) fn note_failure(&mut self, key: Uuid, error: &Error) {
        if self.forget(key) {
            // Whoever waited for the answer says so itself.
            error.log("could not open a stream");
        }
    }

    /// Whoever wanted the stream has left before the exit answered, perhaps because it does not. True if the stream was
    /// in use.
    pub(super) fn forget(&mut self, key: Uuid) -> bool {
        let Some(Pending { service, eager }) = self.pending.remove(&key) else { return false };
        self.lately.remove(&service);
        eager
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn service(port: u16) -> Service {
        ("x.nostr".to_owned(), port)
    }

    fn open(accepted: &mut Accepted, now: Instant, key: Uuid, port: u16) {
        accepted.await_outcome(key, service(port), false);
        accepted.note_open(now, key, true);
    }

    #[test]
    fn an_acceptance_counts_for_a_minute_and_for_its_own_port() {
        let (mut accepted, now) = (Accepted::default(), Instant::now());
        accepted.await_outcome(A, service(80), false);
        assert!(!accepted.is_lately(now, &service(80)), "it has not answered");
        accepted.note_open(now, A, true);
        assert!(accepted.is_lately(now + LATELY - Duration::from_millis(1), &service(80)));
        assert!(!accepted.is_lately(now + LATELY, &service(80)));
        assert!(!accepted.is_lately(now, &service(81)));
    }

    #[test]
    fn a_failure_and_a_client_that_gives_up_end_the_trust_in_that_service_alone() {
        let (mut accepted, now) = (Accepted::default(), Instant::now());
        for end in [0, 1] {
            open(&mut accepted, now, A, 80);
            open(&mut accepted, now, A, 81);
            accepted.await_outcome(B, service(80), true);
            match end {
                0 => accepted.note_failure(B, &Error::new(ErrorKind::Refused, "not running")),
                _ => assert!(accepted.forget(B)),
            }
            assert!(!accepted.is_lately(now, &service(80)));
            assert!(accepted.is_lately(now, &service(81)));
        }
    }

    #[test]
    fn a_stream_that_only_counts_as_open_is_no_acceptance() {
        let (mut accepted, now) = (Accepted::default(), Instant::now());
        accepted.await_outcome(A, service(80), false);
        accepted.note_open(now, A, false);
        assert!(!accepted.is_lately(now, &service(80)));
        assert!(!accepted.awaits(A));
    }

    #[test]
    fn the_memory_is_bounded() {
        let (mut accepted, now) = (Accepted::default(), Instant::now());
        for port in 0..2000 {
            open(&mut accepted, now, A, port);
        }
        assert_eq!(accepted.lately.len(), SERVICES_MAX);
        open(&mut accepted, now + LATELY, A, 3000);
        assert_eq!(accepted.lately.len(), 1, "what is too old to count makes room");
    }
}
