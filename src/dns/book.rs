//! Which address stands for which name. Addresses are handed out from a range, the one that was used the longest time ago
//! again when there are no others, and remembered in a file, so that what programs keep still holds after a restart.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long an address stays with its name after it was last told or connected to: much longer than programs keep an
/// answer, or one of them would reach another name than it has asked for.
const HOLD: Duration = Duration::from_secs(600);

/// How long a change waits for others before the file is written.
const WRITE_AFTER: Duration = Duration::from_secs(1);

/// Most bytes that are read of the file: more than the largest book has.
const FILE_MAX: u64 = 64 * 1024 * 1024;

/// Mode of the directory of the file: it tells which names were visited.
const DIRECTORY_MODE: u32 = 0o700;

/// The file of the book cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the file of addresses {}: {source}", path.display())]
pub struct BookError {
    path: PathBuf,
    source: io::Error,
}

/// A line of the file; they stand in the order of their use, the oldest first.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    address: Ipv4Addr,
    name: String,
    /// Seconds since 1970.
    used: u64,
}

#[derive(Debug)]
struct Entry {
    name: String,
    used: u64,
    /// Its place in the order of use.
    place: u64,
}

#[derive(Debug, Default)]
struct Pages {
    addresses: HashMap<String, Ipv4Addr>,
    entries: HashMap<Ipv4Addr, Entry>,
    /// The order of use.
    order: BTreeMap<u64, Ipv4Addr>,
    /// The last place in it.
    last: u64,
    /// Where the search for a free address goes on.
    next: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Book {
    pool: Ipv4Net,
    max: usize,
    pages: Mutex<Pages>,
    changed: Notify,
}

impl Book {
    /// An empty book for this range, with so many names at most.
    #[must_use]
    pub fn new(pool: Ipv4Net, max: usize) -> Self {
        // A crash may forget what was told last. Where the search begins is left to chance, so that such an address, which
        // some program may still know, is not at once another name's.
        let pages = Pages { next: fastrand::u32(..), ..Pages::default() };
        let max = max.min(pool.hosts().count());
        Self { pool, max, pages: Mutex::new(pages), changed: Notify::new() }
    }

    /// The book that was kept in a file. What does not fit into the range any more is left out; a file that makes no sense
    /// is as good as none, and the log says so.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be read.
    pub fn open(pool: Ipv4Net, max: usize, path: &Path) -> Result<Self, BookError> {
        let book = Self::new(pool, max);
        let text = match std::fs::File::open(path) {
            Ok(file) => {
                let mut text = String::new();
                let read = io::Read::read_to_string(&mut io::Read::take(file, FILE_MAX), &mut text);
                read.map_err(|source| BookError { path: path.to_owned(), source })?;
                text
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(book),
            Err(source) => return Err(BookError { path: path.to_owned(), source }),
        };
        match serde_json::from_str::<Vec<Line>>(&text) {
            Ok(lines) => {
                let mut pages = book.pages();
                // The newest, if there are more than there may be.
                for line in lines.iter().skip(lines.len().saturating_sub(book.max)) {
                    if book.has(line.address) && !pages.addresses.contains_key(&line.name) {
                        pages.enter(line.address, &line.name, line.used);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the file of addresses makes no sense; all are new")
            }
        }
        Ok(book)
    }

    /// Whether an address is one of the range, whoever's it is.
    #[must_use]
    pub fn has(&self, address: Ipv4Addr) -> bool {
        self.pool.contains(&address) && address != self.pool.network() && address != self.pool.broadcast()
    }

    /// The address of a name, which is in its one form (lower case, no dot at its end); a new one if it has none yet.
    /// `None` when all are in use.
    #[must_use]
    pub fn address_of(&self, name: &str) -> Option<Ipv4Addr> {
        self.address_at(name, now())
    }

    /// The name of an address, if it stands for one.
    #[must_use]
    pub fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        let mut pages = self.pages();
        pages.touch(address, now());
        pages.entries.get(&address).map(|entry| entry.name.clone())
    }

    fn address_at(&self, name: &str, now: u64) -> Option<Ipv4Addr> {
        let mut pages = self.pages();
        if let Some(&address) = pages.addresses.get(name) {
            pages.touch(address, now);
            return Some(address);
        }
        let address = if pages.entries.len() < self.max {
            self.free(&mut pages)?
        } else {
            pages.forget_oldest(now.saturating_sub(HOLD.as_secs()))?
        };
        pages.enter(address, name, now);
        self.changed.notify_one();
        Some(address)
    }

    /// The next address that stands for nothing.
    fn free(&self, pages: &mut Pages) -> Option<Ipv4Addr> {
        let (first, count) =
            (u32::from(self.pool.network()), u32::try_from(1_u64 << (32 - self.pool.prefix_len())).ok()?);
        (0..count).find_map(|_| {
            pages.next = pages.next.wrapping_add(1);
            let address = Ipv4Addr::from(first + pages.next % count);
            (self.has(address) && !pages.entries.contains_key(&address)).then_some(address)
        })
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Every step leaves them whole, so a panic elsewhere does not spoil them.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the file up to date until `end`.
    pub async fn keep(self: Arc<Self>, path: PathBuf, end: CancellationToken) {
        let mut failed = false;
        loop {
            tokio::select! {
                () = end.cancelled() => break,
                () = self.changed.notified() => {}
            }
            let _ = tokio::time::timeout(WRITE_AFTER, end.cancelled()).await;
            match self.write(&path) {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    tracing::warn!(%error, "addresses will be others after a restart");
                    failed = true;
                }
                Err(_) => {}
            }
        }
        // The order of use, which alone does not make it write, is kept, too.
        if let Err(error) = self.write(&path) {
            tracing::warn!(%error, "addresses will be others after a restart");
        }
    }

    /// Writes the file: it appears whole, under its name, readable by its owner alone.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or written to.
    pub fn write(&self, path: &Path) -> Result<(), BookError> {
        let lines: Vec<Line> = {
            let pages = self.pages();
            let entry = |address: &Ipv4Addr| pages.entries.get(address).map(|entry| (*address, entry));
            let line =
                |(address, entry): (Ipv4Addr, &Entry)| Line { address, name: entry.name.clone(), used: entry.used };
            pages.order.values().filter_map(entry).map(line).collect()
        };
        let write = || {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
            let mut file = tempfile::Builder::new().prefix(".nws-addresses-").tempfile_in(directory)?;
            file.write_all(&serde_json::to_vec(&lines)?)?;
            file.persist(path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|source| BookError { path: path.to_owned(), source })
    }
}

impl Pages {
    fn enter(&mut self, address: Ipv4Addr, name: &str, used: u64) {
        self.last += 1;
        self.order.insert(self.last, address);
        self.addresses.insert(name.to_owned(), address);
        self.entries.insert(address, Entry { name: name.to_owned(), used, place: self.last });
    }

    fn touch(&mut self, address: Ipv4Addr, now: u64) {
        if let Some(entry) = self.entries.get_mut(&address) {
            self.last += 1;
            self.order.remove(&entry.place);
            self.order.insert(self.last, address);
            (entry.place, entry.used) = (self.last, now);
        }
    }

    /// Forgets what was used the longest time ago, if that is before `before`, and gives its address.
    fn forget_oldest(&mut self, before: u64) -> Option<Ipv4Addr> {
        let (&place, &address) = self.order.first_key_value()?;
        let entry = self.entries.get(&address).filter(|entry| entry.used <= before)?;
        self.addresses.remove(&entry.name);
        self.entries.remove(&address);
        self.order.remove(&place);
        Some(address)
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some time, in seconds since 1970.
    const START: u64 = 1_800_000_000;

    fn pool(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_keeps_its_address_and_each_has_its_own() {
        let book = Book::new(pool("198.19.0.0/16"), 1000);
        let addresses: Vec<_> = (0..1000).map(|n| book.address_of(&format!("{n}.nostr")).unwrap()).collect();
        assert_eq!(addresses.iter().collect::<std::collections::HashSet<_>>().len(), 1000);
        for (n, address) in addresses.iter().enumerate() {
            assert!(book.has(*address), "{address}");
            assert_eq!(book.address_of(&format!("{n}.nostr")), Some(*address));
            assert_eq!(book.name_of(*address), Some(format!("{n}.nostr")));
        }
        assert_eq!(book.name_of("198.19.0.0".parse().unwrap()), None);
    }

    #[test]
    fn the_address_used_the_longest_time_ago_is_handed_out_again_and_never_a_fresh_one() {
        // Six addresses, without those of the network and of its broadcast.
        let book = Book::new(pool("198.19.0.0/29"), 100);
        let addresses: Vec<_> = (0..6).map(|n| book.address_at(&format!("{n}.nostr"), START + n).unwrap()).collect();
        let hold = START + HOLD.as_secs();
        assert_eq!(book.address_at("late.nostr", hold - 1), None);
        assert_eq!(book.address_at("0.nostr", hold), Some(addresses[0]));
        assert_eq!(book.address_at("late.nostr", hold), None);
        assert_eq!(book.address_at("late.nostr", hold + 1), Some(addresses[1]));
        assert_eq!(book.name_of(addresses[1]), Some("late.nostr".to_owned()));
        assert_eq!(book.address_at("1.nostr", hold + 2), Some(addresses[2]));
    }

    #[test]
    fn no_more_names_are_kept_than_allowed() {
        let book = Book::new(pool("198.19.0.0/16"), 2);
        assert!(book.address_at("a.nostr", START).is_some() && book.address_at("b.nostr", START).is_some());
        assert_eq!(book.address_at("c.nostr", START + 1), None);
        assert!(book.address_at("c.nostr", START + HOLD.as_secs()).is_some());
        assert_eq!(book.pages().entries.len(), 2);
        assert_eq!(book.pages().order.len(), 2);
    }

    #[test]
    fn what_was_told_holds_after_a_restart_in_the_order_of_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state").join("addresses.json");
        let range = pool("198.19.0.0/16");
        let book = Book::open(range, 3, &path).unwrap();
        let [a, b, c] = ["a.nostr", "b.nostr", "c.nostr"].map(|name| book.address_of(name).unwrap());
        assert_eq!(book.address_of("a.nostr"), Some(a));
        book.write(&path).unwrap();
        let book = Book::open(range, 3, &path).unwrap();
        assert_eq!(["c.nostr", "b.nostr", "a.nostr"].map(|name| book.address_of(name).unwrap()), [c, b, a]);
        let fewer = Book::open(range, 2, &path).unwrap();
        assert_eq!((fewer.name_of(b), fewer.name_of(a)), (None, Some("a.nostr".to_owned())));
        let elsewhere = Book::open(pool("10.0.0.0/24"), 3, &path).unwrap();
        assert_eq!(elsewhere.name_of(a), None);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Book::open(range, 3, &path).unwrap().name_of(a), None);
        assert!(Book::open(range, 3, directory.path()).is_err());
    }
}
