//! The certificate of an exit while it runs: made and kept in the state directory, or an operator's own; renewed before it
//! ends, and published before it is shown, so that no client that knows the published one is surprised.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::TlsError;
use super::certificate::{BACKDATED, Certificate, forms, seconds};
use crate::name::NostrName;
use crate::private_file::{self, PrivateFileError};

/// The next certificate is made so long before the one in use ends.
const RENEWED_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The next certificate is published for so long before it is shown: who keeps a copy of what was published has both.
const PUBLISHED_AHEAD: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// At the latest it is shown so long before the one in use ends.
const SHOWN_BEFORE: Duration = Duration::from_secs(24 * 60 * 60);

/// How often it is looked whether something is due, or whether an operator's files have changed.
const CHECKED_EVERY: Duration = Duration::from_secs(60 * 60);

/// An operator's new certificate is published for so long before it is shown.
const OWN_AHEAD: Duration = Duration::from_secs(60);

/// Most bytes that are read of a file: a chain takes some 10 KB.
const FILE_MAX: u64 = 256 * 1024;

/// Where the certificate comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// It is made for this name, and kept in this directory.
    Made {
        /// The name of the exit.
        name: NostrName,
        /// The directory; it is made, for its owner alone.
        directory: PathBuf,
    },
    /// It is the operator's.
    Own {
        /// File of the certificate, and behind it those that vouch for it.
        certificate: PathBuf,
        /// File of its key. Without one the certificate is published only: the service speaks TLS itself.
        key: Option<PathBuf>,
    },
}

/// What is shown and what is published at one time.
#[derive(Debug, Clone)]
struct State {
    shown: Option<Arc<Certificate>>,
    /// The one in use first.
    published: Vec<CertificateDer<'static>>,
}

impl Source {
    /// Whether there is a certificate that was made, and so may have been published.
    #[must_use]
    pub fn was_used(&self) -> bool {
        matches!(self, Self::Made { name, directory } if Made { name, directory }.path(".pem").exists())
    }

    /// What is to be shown and published now; makes and replaces certificates that are due.
    fn state(&self, now: SystemTime) -> Result<State, TlsError> {
        match self {
            Self::Made { name, directory } => Made { name, directory }.state(now),
            Self::Own { certificate, key } => own(certificate, key.as_deref()),
        }
    }
}

/// Reads the files of the operator.
fn own(certificate: &Path, key: Option<&Path>) -> Result<State, TlsError> {
    let failed = |source| TlsError::File(PrivateFileError::Io { path: certificate.to_owned(), source });
    let what = certificate.display().to_string();
    let mut chain = String::new();
    let file = fs::File::open(certificate).map_err(failed)?;
    file.take(FILE_MAX).read_to_string(&mut chain).map_err(failed)?;
    let Some(key) = key else {
        let leaf = super::pem::read(&chain, 1).map_err(|why| TlsError::content(what, why))?;
        return Ok(State { shown: None, published: leaf });
    };
    let secret = private_file::read(key, FILE_MAX)?;
    let shown = Arc::new(Certificate::own(&what, &chain, &key.display().to_string(), &secret)?);
    Ok(State { published: vec![shown.leaf().clone()], shown: Some(shown) })
}

/// A certificate of our own making, in two files: the one in use and, for a while, the next.
struct Made<'a> {
    name: &'a NostrName,
    directory: &'a Path,
}

impl Made<'_> {
    fn path(&self, ending: &str) -> PathBuf {
        // Several exits of one user have a certificate each.
        self.directory.join(format!("{}{ending}", self.name.npub()))
    }

    fn state(&self, now: SystemTime) -> Result<State, TlsError> {
        let (path, next_path) = (self.path(".pem"), self.path(".next.pem"));
        let current = self.read(&path, now)?;
        let next = self.read(&next_path, now)?;
        let promote = |next| {
            fs::rename(&next_path, &path).map_err(|source| PrivateFileError::Io { path: next_path.clone(), source })?;
            tracing::info!("the next TLS certificate is in use from now on");
            Ok::<_, TlsError>(next)
        };
        let (shown, next) = match (current, next) {
            (Some(current), next) => {
                let ends = current.facts().not_after;
                let ahead = |before: Duration| ends - whole(before);
                match next {
                    Some(next) if self.is_due(&next, ahead(SHOWN_BEFORE), now) => (promote(next)?, None),
                    None if seconds(now) >= ahead(RENEWED_BEFORE) => {
                        tracing::info!("a new TLS certificate is published, and will be used in a week");
                        (current, Some(self.make(&next_path, now)?))
                    }
                    next => (current, next),
                }
            }
            (None, Some(next)) => (promote(next)?, None),
            (None, None) => {
                tracing::info!("made a new TLS certificate");
                (self.make(&path, now)?, None)
            }
        };
        let published = std::iter::once(&shown).chain(next.as_ref()).map(|one| one.leaf().clone()).collect();
        Ok(State { shown: Some(Arc::new(shown)), published })
    }

    /// Whether the next certificate was published for long enough, or has to do.
    fn is_due(&self, next: &Certificate, at_the_latest: i64, now: SystemTime) -> bool {
        let published = next.facts().not_before + whole(BACKDATED);
        seconds(now) >= (published + whole(PUBLISHED_AHEAD)).min(at_the_latest)
    }

    /// The certificate of a file, if it can still be used: relays that have changed make another name.
    fn read(&self, path: &Path, now: SystemTime) -> Result<Option<Certificate>, TlsError> {
        let bytes = match private_file::read(path, FILE_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let certificate = Certificate::read(&path.display().to_string(), &String::from_utf8_lossy(&bytes))?;
        let facts = certificate.facts();
        let fits = forms(self.name).iter().all(|form| facts.names.contains(form)) && facts.is_valid_at(seconds(now));
        Ok(fits.then_some(certificate))
    }

    fn make(&self, path: &Path, now: SystemTime) -> Result<Certificate, TlsError> {
        let certificate = Certificate::make(self.name, now)?;
        let text = certificate.text().unwrap_or_default();
        private_file::replace(path, text.as_bytes())
            .map_err(|source| PrivateFileError::Io { path: path.to_owned(), source })?;
        Ok(certificate)
    }
}

fn whole(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// What TLS servers take the certificate from, whichever it is at the time.
#[derive(Debug)]
pub struct Shown(RwLock<Option<Arc<CertifiedKey>>>);

impl Shown {
    fn set(&self, certified: Option<Arc<CertifiedKey>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Kept {
    source: Source,
    state: State,
    shown: Arc<Shown>,
    published: watch::Sender<Vec<CertificateDer<'static>>>,
}

impl Kept {
    /// Reads or makes the certificate.
    ///
    /// # Errors
    ///
    /// Files cannot be read or written, or hold something else.
    pub fn new(source: Source, now: SystemTime) -> Result<Self, TlsError> {
        let state = source.state(now)?;
        let shown = Arc::new(Shown(RwLock::new(certified(&state)?)));
        let (published, _) = watch::channel(state.published.clone());
        Ok(Self { source, state, shown, published })
    }

    /// The certificate in use, if it is known with its key.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.state.shown.as_deref()
    }

    /// What TLS servers take it from.
    #[must_use]
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown)
    }

    /// What is to be published, the one in use first.
    #[must_use]
    pub fn published(&self) -> watch::Receiver<Vec<CertificateDer<'static>>> {
        self.published.subscribe()
    }

    /// Keeps it up; never ends.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(CHECKED_EVERY).await;
            if let Err(error) = self.check(SystemTime::now()).await {
                // What is in use goes on; the next check may find it mended.
                tracing::error!(%error, "the TLS certificate cannot be renewed");
            }
        }
    }

    /// Does what is due.
    async fn check(&mut self, now: SystemTime) -> Result<(), TlsError> {
        let state = self.source.state(now)?;
        let next = certified(&state)?;
        let before = self.published.borrow().clone();
        if !state.published.first().is_some_and(|first| before.contains(first)) {
            // Nobody knows it yet.
            let mut both = state.published.clone();
            both.extend(before);
            self.published.send_replace(both);
            tokio::time::sleep(OWN_AHEAD).await;
        }
        self.shown.set(next);
        let published = &state.published;
        self.published.send_if_modified(|old| {
            let differs = old != published;
            old.clone_from(published);
            differs
        });
        self.state = state;
        Ok(())
    }
}

fn certified(state: &State) -> Result<Option<Arc<CertifiedKey>>, TlsError> {
    Ok(state.shown.as_ref().map(|shown| shown.certified()).transpose()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use nostr::Keys;

    use super::*;
    use crate::name::parse_relay;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn made(relay: &str, keys: &Keys, directory: &Path) -> Source {
        let name = NostrName::new(keys.public_key(), [parse_relay(relay).unwrap()]);
        Source::Made { name, directory: directory.to_owned() }
    }

    fn leaf(state: &State) -> CertificateDer<'static> {
        state.shown.as_ref().unwrap().leaf().clone()
    }

    #[test]
    fn a_certificate_is_kept_for_its_owner_alone_and_found_again() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("tls");
        let (keys, now) = (Keys::generate(), SystemTime::now());
        let source = made("ws://a", &keys, &directory);
        assert!(!source.was_used());
        let first = source.state(now).unwrap();
        assert!(source.was_used());
        assert_eq!(leaf(&source.state(now + 300 * DAY).unwrap()), leaf(&first));
        let files: Vec<_> = fs::read_dir(&directory).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // Another exit, or another name of the same, has another one.
        assert_ne!(leaf(&made("ws://a", &Keys::generate(), &directory).state(now).unwrap()), leaf(&first));
        assert_ne!(leaf(&made("ws://b", &keys, &directory).state(now).unwrap()), leaf(&first));
        fs::set_permissions(files[0].path(), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(source.state(now).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn the_next_certificate_is_published_for_a_week_before_it_is_shown() {
        let home = tempfile::tempdir().unwrap();
        let source = made("ws://a", &Keys::generate(), home.path());
        let start = SystemTime::now();
        let at = |days: u32| source.state(start + days * DAY).unwrap();
        let first = leaf(&at(0));
        assert_eq!(at(334).published, std::slice::from_ref(&first));
        let both = at(336).published;
        assert_eq!((both.len(), &both[0]), (2, &first));
        assert_eq!(at(342).published, both);
        let last = at(344);
        assert_eq!((leaf(&last), last.published), (both[1].clone(), vec![both[1].clone()]));
        assert_eq!(leaf(&at(600)), both[1]);
    }

    #[test]
    fn an_exit_that_slept_too_long_shows_a_new_certificate_at_once() {
        let home = tempfile::tempdir().unwrap();
        let source = made("ws://a", &Keys::generate(), home.path());
        let start = SystemTime::now();
        let first = leaf(&source.state(start).unwrap());
        let late = source.state(start + Duration::from_secs(86_400 * 364 + 43_200)).unwrap();
        assert_eq!((leaf(&late), late.published.len()), (first.clone(), 2), "half a day is left");
        let later = source.state(start + Duration::from_secs(86_400 * 364 + 50_000)).unwrap();
        assert_eq!(leaf(&later), late.published[1], "an hour later");
        assert_eq!(leaf(&source.state(start + 366 * DAY).unwrap()), late.published[1]);
        assert!(!late.published.contains(&leaf(&source.state(start + 800 * DAY).unwrap())));
    }

    #[tokio::test(start_paused = true)]
    async fn an_operators_new_certificate_is_published_before_it_is_shown() {
        let home = tempfile::tempdir().unwrap();
        let files = [home.path().join("c.pem"), home.path().join("k.pem")];
        let now = SystemTime::now();
        let write = || {
            let made = Certificate::make(&NostrName::new(Keys::generate().public_key(), []), now).unwrap();
            files.iter().for_each(|path| private_file::replace(path, made.text().unwrap().as_bytes()).unwrap());
            made.leaf().clone()
        };
        let [certificate, key] = files.clone();
        let first = write();
        let mut kept = Kept::new(Source::Own { certificate: certificate.clone(), key: Some(key) }, now).unwrap();
        let mut published = kept.published();
        let shown = kept.shown();
        let shown_now = move || shown.0.read().unwrap().as_ref().unwrap().cert[0].clone();
        assert_eq!((shown_now(), published.borrow_and_update().clone()), (first.clone(), vec![first.clone()]));
        kept.check(now).await.unwrap();
        assert!(!published.has_changed().unwrap(), "nothing is new");
        let second = write();
        let checking = tokio::spawn(async move {
            kept.check(now).await.unwrap();
            kept
        });
        published.changed().await.unwrap();
        assert_eq!(*published.borrow_and_update(), [second.clone(), first.clone()]);
        assert_eq!(shown_now(), first);
        let mut kept = checking.await.unwrap();
        assert_eq!((shown_now(), published.borrow_and_update().clone()), (second.clone(), vec![second.clone()]));
        // What is wrong with a file leaves everything as it was.
        fs::write(&certificate, "nothing").unwrap();
        assert!(kept.check(now).await.unwrap_err().to_string().contains("c.pem"));
        assert_eq!(shown_now(), second);
        let only = Kept::new(Source::Own { certificate: files[1].clone(), key: None }, now).unwrap();
        assert!(only.certificate().is_none() && *only.published().borrow() == [second]);
    }
}
