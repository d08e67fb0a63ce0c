//! The information file for scripts (`--info-file`): JSON that says which process is ready and where it is reached.
//! It appears whole or not at all, so whoever waits for it may read it at once.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nostr::RelayUrl;
use serde::{Deserialize, Serialize};

/// Mode of the file, less what the umask takes: it holds nothing secret, and scripts of other users read it.
const MODE: u32 = 0o644;

/// What a command tells about itself once it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The process.
    pub pid: u32,
    /// The addresses that are really bound, with the port that was chosen for port 0.
    pub listen: Vec<SocketAddr>,
    /// The exit's `.nostr` name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The exit's public key, as `npub1…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub npub: Option<String>,
    /// The relays that the exit listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relays: Option<Vec<RelayUrl>>,
}

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the information file {}: {source}", path.display())]
pub struct InfoError {
    path: PathBuf,
    source: io::Error,
}

impl Info {
    /// The information of this process, listening on these addresses.
    #[must_use]
    pub fn new(listen: Vec<SocketAddr>) -> Self {
        Self { pid: std::process::id(), listen, name: None, npub: None, relays: None }
    }

    /// Reads the file of a running command; `None` if there is none, or it is something else.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes the file under a passing name beside its place, then renames it.
    ///
    /// # Errors
    ///
    /// The directory is missing or cannot be written to.
    pub fn write(&self, path: &Path) -> Result<InfoFile, InfoError> {
        let content = self.try_write(path).map_err(|source| InfoError { path: path.to_owned(), source })?;
        Ok(InfoFile { path: path.to_owned(), content })
    }

    /// [`Info::write`], if a path is configured.
    ///
    /// # Errors
    ///
    /// As [`Info::write`].
    pub fn write_if(&self, path: Option<&Path>) -> Result<Option<InfoFile>, InfoError> {
        path.map(|path| self.write(path)).transpose()
    }

    fn try_write(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut content = serde_json::to_vec_pretty(self)?;
        content.push(b'\n');
        // A bare file name has the empty path for its parent.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".nws-info-")
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(directory)?;
        file.write_all(&content)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(content)
    }
}

/// A written information file; dropped, it takes the file away, so that a file means a process.
#[derive(Debug)]
#[must_use = "the file is removed when this is dropped"]
pub struct InfoFile {
    path: PathBuf,
    content: Vec<u8>,
}

impl Drop for InfoFile {
    fn drop(&mut self) {
        // A successor may have put its own file there already.
        if fs::read(&self.path).is_ok_and(|content| content == self.content)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "the information file stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_script_reads_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.json");
        let mut info = Info::new(vec!["[::1]:8882".parse().unwrap()]);
        info.name = Some("abc.nostr".into());
        info.relays = Some(vec![RelayUrl::parse("ws://127.0.0.1:7777").unwrap()]);
        let _file = info.write(&path).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "pid": std::process::id(),
                "listen": ["[::1]:8882"],
                "name": "abc.nostr",
                "relays": ["ws://127.0.0.1:7777"],
            })
        );
        assert_eq!(names(directory.path()), ["exit.json"]);
    }

    #[test]
    fn an_older_file_is_replaced_and_a_successors_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.json");
        fs::write(&path, "stale").unwrap();
        let first = Info::new(Vec::new()).write(&path).unwrap();
        let second = Info::new(vec!["127.0.0.1:1".parse().unwrap()]).write(&path).unwrap();
        drop(first);
        assert_eq!(names(directory.path()), ["proxy.json"]);
        drop(second);
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_directory_that_is_missing_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing").join("proxy.json");
        let error = Info::new(Vec::new()).write(&path).unwrap_err().to_string();
        assert!(error.contains("missing/proxy.json"), "{error}");
        assert!(Info::new(Vec::new()).write_if(None).unwrap().is_none());
    }
}
