//! Secret keys that last, of an exit or of a proxy's identity: from the environment, or from a file that is made on first
//! start. It is in no error and in no
//! log line, and no flag takes it, since everyone on a machine can read command lines.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use nostr::nips::nip19::ToBech32;
use nostr::{Keys, SecretKey};

use crate::config::{Origin, PrivateKey};
use crate::private_file::{self, PrivateFileError};

/// Most bytes that are read of a key file: a key takes some 64.
const FILE_MAX: u64 = 4096;

/// Name of the key file in the state directory.
const FILE_NAME: &str = "exit.key";

/// Why there is no key to run with; the exit code is 78.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The environment holds something else.
    #[error("{origin}: {reason}")]
    Variable {
        /// The variable.
        origin: Origin,
        /// What is wrong.
        reason: NotAKey,
    },
    /// The file holds something else.
    #[error("key file {}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: NotAKey,
    },
    /// Others can read the file.
    #[error("key file {0}: its mode is {1:04o}, others can get at it; run: chmod 600 {0}", path.display(), mode)]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file can neither be read nor made.
    #[error("key file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A key was given where the path of its file belongs.
    #[error(
        "the key file is given as a secret key and not as a path; a key belongs into a file, never into a command \
             line or a configuration. Consider this key known to others"
    )]
    KeyForPath,
    /// There is no state directory to keep a key in.
    #[error("no home directory to keep the key in; name a file with --key-file")]
    NoHome,
}

/// What is wrong with a text that should be a secret key. It never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAKey {
    /// There is nothing.
    #[error("is empty; a secret key is 64 hex digits or nsec1…")]
    Empty,
    /// It is the public half.
    #[error("is a public key (npub); the secret one is needed, nsec1…")]
    Public,
    /// It is nothing that we know.
    #[error("is not a secret key; a secret key is 64 hex digits or nsec1…")]
    Other,
}

/// The exit's keys: from `private_key` if there is one, else from `file`, else from the state directory. A file that is
/// missing is made, with a new key.
///
/// # Errors
///
/// What was found is no key, or is open to others, or cannot be read or made.
pub fn load(private_key: Option<&PrivateKey>, file: Option<&Path>) -> Result<Keys, KeyError> {
    match (private_key, file) {
        (Some(secret), _) => {
            parse(secret.expose()).map_err(|reason| KeyError::Variable { origin: secret.origin().clone(), reason })
        }
        (None, Some(path)) => read_or_make(path),
        (None, None) => read_or_make(&default_path(std::env::var_os("STATE_DIRECTORY"))?),
    }
}

/// The keys of a proxy's identity, under the same rules. A file that is missing is made, with a new key.
///
/// # Errors
///
/// As [`load`].
pub fn load_identity(file: &Path) -> Result<Keys, KeyError> {
    read_or_make(file)
}

/// Where the key lies if nothing says otherwise.
fn default_path(state_directory: Option<OsString>) -> Result<PathBuf, KeyError> {
    state_directory_of(state_directory).map(|directory| directory.join(FILE_NAME)).ok_or(KeyError::NoHome)
}

/// Where this program keeps what must last: in the state directory that systemd made, or in the user's. `None` without
/// a home directory.
#[must_use]
pub fn state_directory() -> Option<PathBuf> {
    state_directory_of(std::env::var_os("STATE_DIRECTORY"))
}

fn state_directory_of(variable: Option<OsString>) -> Option<PathBuf> {
    // systemd.exec(5): several directories are separated by colons.
    if let Some(first) = variable.iter().flat_map(std::env::split_paths).find(|path| path.is_absolute()) {
        return Some(first);
    }
    let base = etcetera::choose_base_strategy().ok()?;
    Some(base.state_dir().unwrap_or_else(|| base.data_dir()).join("nws"))
}

/// Reads a secret key, in hex or bech32.
fn parse(text: &str) -> Result<Keys, NotAKey> {
    match text.trim() {
        "" => Err(NotAKey::Empty),
        text if text.starts_with("npub1") => Err(NotAKey::Public),
        text => SecretKey::parse(text).map(Keys::new).map_err(|_| NotAKey::Other),
    }
}

/// Reads the key file; if there is none, makes one.
fn read_or_make(path: &Path) -> Result<Keys, KeyError> {
    // Also one with a letter wrong: it would stand in an error, or become the name of a file.
    if path.to_str().is_some_and(|text| text.starts_with("nsec1") || parse(text).is_ok()) {
        return Err(KeyError::KeyForPath);
    }
    match read(path) {
        Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let keys = Keys::generate();
    match make(path, &keys) {
        Ok(()) => {
            tracing::info!(path = %path.display(), "made a new key; others know you by it, so keep a copy");
            Ok(keys)
        }
        // Another process was faster: its key is the one.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path),
        Err(source) => Err(KeyError::File { path: path.to_owned(), source }),
    }
}

fn read(path: &Path) -> Result<Keys, KeyError> {
    let bytes = private_file::read(path, FILE_MAX).map_err(|error| match error {
        PrivateFileError::Exposed { path, mode } => KeyError::Exposed { path, mode },
        PrivateFileError::Io { path, source } => KeyError::File { path, source },
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|_| NotAKey::Other);
    text.and_then(parse).map_err(|reason| KeyError::Content { path: path.to_owned(), reason })
}

/// Writes the key into a file of its own.
fn make(path: &Path, keys: &Keys) -> io::Result<()> {
    let Ok(nsec) = keys.secret_key().to_bech32();
    private_file::create(path, format!("{nsec}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HEX: &str = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa";
    const NSEC: &str = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5";

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_missing_file_is_made_for_its_owner_alone_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state").join("nws").join("exit.key");
        let made = load(None, Some(&path)).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("nsec1") && text.ends_with('\n') && text.lines().count() == 1);
        assert_eq!(load(None, Some(&path)).unwrap(), made);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_state_directory_of_a_service_comes_before_that_of_a_user() {
        assert_eq!(default_path(Some("/var/lib/nws:/var/lib/b".into())).unwrap(), Path::new("/var/lib/nws/exit.key"));
        for unset in [None, Some("".into())] {
            let path = default_path(unset);
            assert!(path.is_err() || path.is_ok_and(|path| path.ends_with("nws/exit.key")));
        }
    }

    #[test]
    fn many_that_start_at_once_agree_on_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| load(None, Some(&path)).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn both_spellings_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.key");
        for text in [HEX, NSEC, &format!("  {NSEC}\r\n")] {
            write(&path, text, 0o600);
            assert_eq!(load(None, Some(&path)).unwrap().secret_key().to_secret_hex(), HEX);
            assert_eq!(load(Some(&PrivateKey::new(text)), None).unwrap().secret_key().to_secret_hex(), HEX);
        }
    }

    #[test]
    fn the_environment_comes_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.key");
        load(Some(&PrivateKey::new(NSEC)), Some(&path)).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_others_can_get_at_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.key");
        for bad in [0o640, 0o604, 0o644, 0o620, 0o602] {
            write(&path, NSEC, bad);
            let error = load(None, Some(&path)).unwrap_err();
            assert!(matches!(error, KeyError::Exposed { .. }), "{error}");
            assert!(error.to_string().contains(&format!("{bad:04o}")) && error.to_string().contains("chmod 600"));
        }
        write(&path, NSEC, 0o400);
        assert!(load(None, Some(&path)).is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.key");
        let two = format!("{NSEC}\n{NSEC}");
        let npub = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
        for (text, reason) in [
            ("", NotAKey::Empty),
            (" \n", NotAKey::Empty),
            (npub, NotAKey::Public),
            (&NSEC[..40], NotAKey::Other),
            (&HEX[..63], NotAKey::Other),
            (&two, NotAKey::Other),
            (&"0".repeat(64), NotAKey::Other),
        ] {
            write(&path, text, 0o600);
            match load(None, Some(&path)).unwrap_err() {
                KeyError::Content { reason: found, .. } => assert_eq!(found, reason, "{text}"),
                error => panic!("{text}: {error}"),
            }
            let error = load(Some(&PrivateKey::new(text)), None).unwrap_err();
            assert!(error.to_string().starts_with("environment variable NWS_PRIVATE_KEY: "), "{error}");
            assert!(!format!("{error} {error:?}").contains("nsec1vl"), "{error}");
        }
        fs::write(&path, [0xff; 64]).unwrap();
        assert!(matches!(load(None, Some(&path)), Err(KeyError::Content { .. })));
        assert!(matches!(load(None, Some(directory.path())), Err(KeyError::Exposed { .. } | KeyError::File { .. })));
    }

    #[test]
    fn a_key_in_the_place_of_a_path_is_not_repeated() {
        for text in [NSEC, HEX, &NSEC[..50]] {
            let error = load(None, Some(Path::new(text))).unwrap_err();
            assert!(matches!(error, KeyError::KeyForPath));
            assert!(!format!("{error} {error:?}").contains(text));
        }
    }
}
