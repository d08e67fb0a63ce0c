//! Finding the certificates of an exit on its relays, once. Whoever wants them again soon keeps them (`proxy`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use nostr::{Keys, PublicKey, Timestamp};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Published;
use crate::envelope::IncomingEvent;
use crate::error::{Error, ErrorKind};
use crate::relay::{Arrival, Link, Notice, Subscription, Wanted};

/// How far back is asked, in seconds: certificates are kept for as long as relays like, ours end after a year.
const LOOK_BACK: u64 = 10 * 365 * 24 * 60 * 60;

/// Events that wait to be judged at most; a full queue holds back the relay.
const ARRIVALS_MAX: usize = 16;

/// Events that are judged at most, of all relays: each costs a signature check, and a relay may send what it likes.
const JUDGED_MAX: usize = 64;

/// Once one relay has told all it knows, the others have so much longer.
const LATE: Duration = Duration::from_millis(750);

/// A certificate dated further ahead than this is not believed, in seconds: it would outlive its successors.
const AHEAD_MAX: u64 = 60 * 60;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The newest word of the exit, if there is any; it may be that it has no certificate any more.
    pub published: Option<Published>,
    /// Why events were not believed, each reason once.
    pub disbelieved: Vec<String>,
}

/// Asks these relays for the certificates of an exit, for at most `limit`; all that tell are heard, and the newest counts.
///
/// # Errors
/// No relay could be asked.
pub async fn search(links: &[Arc<Link>], exit: PublicKey, limit: Duration) -> Result<Found, Error> {
    let (arrivals_tx, mut arrivals) = mpsc::channel(ARRIVALS_MAX);
    let (notices_tx, mut notices) = mpsc::unbounded_channel();
    let wanted = Wanted::Kept { filters: vec![Published::filter(&exit)], look_back: LOOK_BACK };
    let subscription = Subscription { wanted, arrivals: arrivals_tx };
    // A key for relays that want one; it says nothing of who we are.
    let keys = Keys::generate();
    let attach = |link: &Arc<Link>| link.attach(keys.clone(), notices_tx.clone(), Some(subscription.clone()));
    let attachments: Vec<_> = links.iter().map(attach).collect();
    let (mut up, mut told, mut failed) = (HashSet::new(), HashSet::new(), HashSet::new());
    let (mut found, mut why, mut judged) = (Found::default(), None, 0);
    let mut deadline = Instant::now() + limit;
    while told.union(&failed).count() < attachments.len() && judged < JUDGED_MAX {
        tokio::select! {
            biased;
            Some(Arrival { event, .. }) = arrivals.recv() => {
                judged += 1;
                found.judge(&event, &exit);
            }
            Some(notice) = notices.recv() => match notice {
                Notice::Up(path, _) => {
                    up.insert(path);
                    failed.remove(&path);
                }
                Notice::Stored(path) => {
                    told.insert(path);
                    deadline = deadline.min(Instant::now() + LATE);
                }
                Notice::Down(path, reason) => {
                    failed.insert(path);
                    why = Some(reason);
                }
                _ => {}
            },
            () = sleep_until(deadline) => break,
        }
    }
    // What came just before the last relay said that it was all.
    while let Ok(Arrival { event, .. }) = arrivals.try_recv() {
        found.judge(&event, &exit);
    }
    if found.published.is_none() && told.is_empty() && up.is_subset(&failed) {
        let why = why.unwrap_or_else(|| "none of them answers".to_owned());
        return Err(Error::new(
            ErrorKind::NetworkUnreachable,
            format!("no relay could be asked for the certificate: {why}"),
        ));
    }
    Ok(found)
}

impl Found {
    /// The newest certificates, if there are any.
    #[must_use]
    pub fn certificates(self) -> Option<Published> {
        self.published.filter(|published| !published.certificates.is_empty())
    }

    fn judge(&mut self, event: &IncomingEvent, exit: &PublicKey) {
        match Published::read(event, exit) {
            Ok(new) if new.created_at > Timestamp::now().as_secs() + AHEAD_MAX => {
                self.disbelieve("it is from the future".to_owned());
            }
            Ok(new) => {
                if self.published.as_ref().is_none_or(|known| known.created_at < new.created_at) {
                    self.published = Some(new);
                }
            }
            Err(reason) => self.disbelieve(reason),
        }
    }

    fn disbelieve(&mut self, why: String) {
        tracing::debug!(%why, "an event that should hold a certificate is not believed");
        if !self.disbelieved.contains(&why) {
            self.disbelieved.push(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use nostr::JsonUtil;
    use rustls::pki_types::CertificateDer;

    use super::*;

    #[test]
    fn the_newest_word_of_the_exit_counts_and_no_other() {
        let (keys, other) = (Keys::generate(), Keys::generate());
        let exit = keys.public_key();
        let now = Timestamp::now().as_secs();
        let event = |created_at: u64, signer: &Keys| {
            let certificates = vec![CertificateDer::from(created_at.to_be_bytes().to_vec())];
            let said = Published { exit: signer.public_key(), created_at, certificates };
            IncomingEvent::parse(&said.sign(signer).unwrap().as_json()).unwrap()
        };
        let mut found = Found::default();
        for (created_at, signer) in
            [(now - 10, &keys), (now - 5, &keys), (now - 20, &keys), (now, &other), (now + 2 * AHEAD_MAX, &keys)]
        {
            found.judge(&event(created_at, signer), &exit);
        }
        assert_eq!(found.published.unwrap().created_at, now - 5);
        assert_eq!(found.disbelieved.len(), 2, "{:?}", found.disbelieved);
    }
}
