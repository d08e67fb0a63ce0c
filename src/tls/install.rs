//! The places where programs look for authorities that they trust: the system's store, and the NSS databases of Firefox
//! and Chromium. A root certificate is put there and taken out again by the tools that these places have for it.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustls::pki_types::CertificateDer;

use super::{authority, pem};

/// Where systems keep certificates that their owner adds, and what makes them heed it.
const SYSTEM_STORES: [(&str, &[&str]); 4] = [
    ("/usr/local/share/ca-certificates", &["update-ca-certificates"]),
    ("/etc/pki/ca-trust/source/anchors", &["update-ca-trust", "extract"]),
    ("/etc/ca-certificates/trust-source/anchors", &["update-ca-trust", "extract"]),
    ("/usr/share/pki/trust/anchors", &["update-ca-certificates"]),
];

/// Chromium's database, below the home directory; that of a snap is apart.
const CHROMIUM: [&str; 2] = [".pki/nssdb", "snap/chromium/current/.pki/nssdb"];

/// Where Firefox keeps its profiles, below the home directory.
const FIREFOX: [&str; 3] =
    [".mozilla/firefox", "snap/firefox/common/.mozilla/firefox", ".var/app/org.mozilla.firefox/.mozilla/firefox"];

/// The file of an NSS database in its present form.
const NSS_FILE: &str = "cert9.db";

/// What NSS is told: an authority for servers, and for nothing else.
const NSS_TRUST: &str = "C,,";

/// A place where authorities are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// The system's.
    System {
        /// Where certificates are put.
        directory: PathBuf,
        /// What makes the system heed it, with its arguments.
        update: &'static [&'static str],
    },
    /// A database of NSS, by its directory.
    Nss(PathBuf),
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { directory, .. } => write!(f, "system store ({})", directory.display()),
            Self::Nss(directory) => write!(f, "NSS database ({})", directory.display()),
        }
    }
}

/// The system's store, if it is one that is known here.
#[must_use]
pub fn system_store() -> Option<Store> {
    let found = SYSTEM_STORES.iter().find(|(directory, _)| Path::new(directory).is_dir());
    found.map(|(directory, update)| Store::System { directory: directory.into(), update })
}

/// The NSS databases of browsers below this home directory. Chromium's is among them even before its first start.
#[must_use]
pub fn nss_stores(home: &Path) -> Vec<Store> {
    let [usual, snap] = CHROMIUM.map(|path| home.join(path));
    let mut found = vec![usual];
    found.extend(Some(snap).filter(|path| path.join(NSS_FILE).exists()));
    for profiles in FIREFOX.map(|path| home.join(path)) {
        let entries = fs::read_dir(profiles).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
        let mut with_database: Vec<_> = entries.filter(|path| path.join(NSS_FILE).exists()).collect();
        with_database.sort();
        found.extend(with_database);
    }
    found.into_iter().map(Store::Nss).collect()
}

/// A root certificate, as stores know it.
#[derive(Debug)]
pub struct Root<'a> {
    certificate: &'a CertificateDer<'a>,
    title: String,
}

impl<'a> Root<'a> {
    /// This certificate.
    ///
    /// # Errors
    ///
    /// It has no name to be listed by.
    pub fn new(certificate: &'a CertificateDer<'a>) -> Result<Self, String> {
        Ok(Self { certificate, title: authority::title(certificate)? })
    }

    /// The name that stores list it by.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Its file in the system's store; the ending is what Debian wants.
    fn file(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.crt", self.title.replace(' ', "-")))
    }

    /// Puts it into a store, where it may be already.
    ///
    /// # Errors
    ///
    /// Why not, in words, with a way out.
    pub fn install(&self, store: &Store) -> Result<(), String> {
        match store {
            Store::System { directory, update } => {
                let path = self.file(directory);
                let text = pem::write(std::slice::from_ref(self.certificate));
                fs::write(&path, text).map_err(|error| system_failure(&path, &error))?;
                run(update[0], &update[1..]).map(drop)
            }
            Store::Nss(directory) => {
                if !directory.join(NSS_FILE).exists() {
                    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
                    made.map_err(|error| format!("{}: {error}", directory.display()))?;
                    certutil(directory, &["-N", "--empty-password"])?;
                }
                let file = tempfile::Builder::new().suffix(".pem").tempfile().map_err(|error| error.to_string())?;
                fs::write(file.path(), pem::write(std::slice::from_ref(self.certificate)))
                    .map_err(|error| error.to_string())?;
                let path = file.path().display().to_string();
                certutil(directory, &["-A", "-n", &self.title, "-t", NSS_TRUST, "-i", &path])
            }
        }
    }

    /// Takes it out of a store; says whether it was there.
    ///
    /// # Errors
    ///
    /// Why not, in words, with a way out.
    pub fn remove(&self, store: &Store) -> Result<bool, String> {
        match store {
            Store::System { directory, update } => {
                let path = self.file(directory);
                match fs::remove_file(&path) {
                    Ok(()) => run(update[0], &update[1..]).map(|()| true),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                    Err(error) => Err(system_failure(&path, &error)),
                }
            }
            Store::Nss(directory) => {
                if !directory.join(NSS_FILE).exists() {
                    return Ok(false);
                }
                let mut was_there = false;
                // It may have been put in more than once.
                while has(directory, &self.title)? {
                    certutil(directory, &["-D", "-n", &self.title])?;
                    was_there = true;
                }
                Ok(was_there)
            }
        }
    }
}

fn system_failure(path: &Path, error: &io::Error) -> String {
    let way_out = match error.kind() {
        io::ErrorKind::PermissionDenied => "; run the same as root, with --store system and --directory",
        _ => "",
    };
    format!("{}: {error}{way_out}", path.display())
}

/// Whether a database lists a certificate.
fn has(directory: &Path, title: &str) -> Result<bool, String> {
    let output = command(directory, &["-L", "-n", title]).output().map_err(|error| no_tool("certutil", &error))?;
    Ok(output.status.success())
}

fn command(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("certutil");
    command.arg("-d").arg(format!("sql:{}", directory.display())).args(args).stdin(Stdio::null());
    command
}

fn certutil(directory: &Path, args: &[&str]) -> Result<(), String> {
    outcome("certutil", &mut command(directory, args))
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    outcome(program, Command::new(program).args(args).stdin(Stdio::null()))
}

fn outcome(program: &str, command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| no_tool(program, &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} failed: {}", said.lines().last().unwrap_or("it does not say why")))
}

fn no_tool(program: &str, error: &io::Error) -> String {
    match (error.kind(), program) {
        (io::ErrorKind::NotFound, "certutil") => "certutil is missing; install it (Debian: libnss3-tools, Fedora: \
            nss-tools, Arch: nss), or import the certificate in the browser's settings"
            .to_owned(),
        _ => format!("{program}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_found_by_their_databases() {
        let home = tempfile::tempdir().unwrap();
        let database = |path: &str| {
            let path = home.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(NSS_FILE), "").unwrap();
            Store::Nss(path)
        };
        let chromium = Store::Nss(home.path().join(".pki/nssdb"));
        assert_eq!(nss_stores(home.path()), std::slice::from_ref(&chromium), "also before its first start");
        let firefox = [".mozilla/firefox/a.default", ".mozilla/firefox/b.work"].map(database);
        fs::create_dir_all(home.path().join(".mozilla/firefox/Crash Reports")).unwrap();
        let snap = database("snap/chromium/current/.pki/nssdb");
        let found = nss_stores(home.path());
        assert_eq!(found, [chromium, snap, firefox[0].clone(), firefox[1].clone()]);
    }

    #[test]
    fn a_store_that_cannot_be_written_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let made = super::super::Authority::init(directory.path(), std::time::SystemTime::now()).unwrap();
        let root = Root::new(made.root()).unwrap();
        let gone = Store::System { directory: directory.path().join("gone"), update: &["true"] };
        assert!(root.install(&gone).unwrap_err().contains("gone/nws-local-authority-"));
        assert_eq!(root.remove(&gone), Ok(false));
        let here = Store::System { directory: directory.path().to_owned(), update: &["true"] };
        assert_eq!((root.install(&here), root.remove(&here), root.remove(&here)), (Ok(()), Ok(true), Ok(false)));
        let failing = Store::System { directory: directory.path().to_owned(), update: &["false"] };
        assert!(root.install(&failing).unwrap_err().contains("false failed"));
        assert_eq!(root.remove(&Store::Nss(directory.path().join("none"))), Ok(false));
    }
}
