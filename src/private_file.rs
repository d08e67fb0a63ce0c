//! Files with secrets of ours: readable by nobody but their owner, whole or not there at all. What is in them is not
//! known here.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Mode of a directory that is made for such a file.
const DIRECTORY_MODE: u32 = 0o700;

/// Bits that such a file must not have: anything for the group or for others.
const FORBIDDEN_MODE: u32 = 0o077;

/// Why a file with a secret cannot be used. What is in it is in no error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateFileError {
    /// Others can read or write the file.
    #[error("{}: its mode is {mode:04o}, others can get at it; run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file can neither be read nor written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl PrivateFileError {
    /// Whether there is just no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file that only its owner can get at, `max` bytes of it at most.
///
/// # Errors
///
/// Others can get at it, or it cannot be read.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>, PrivateFileError> {
    let failed = |source| PrivateFileError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // The mode of what was opened, which cannot be changed for another file meanwhile.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & FORBIDDEN_MODE != 0 {
        return Err(PrivateFileError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Makes a file with mode 0600, and its directory with 0700. It appears whole, and never in the place of another.
///
/// # Errors
///
/// There is one already (`AlreadyExists`), or it cannot be written.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = beside(path, bytes)?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    sync_directory(path)
}

/// Makes such a file, or puts it in the place of the one there is.
///
/// # Errors
///
/// It cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = beside(path, bytes)?;
    file.persist(path).map_err(|error| error.error)?;
    sync_directory(path)
}

/// A written file beside its place.
fn beside(path: &Path, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let directory = directory_of(path);
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
    // tempfile creates with mode 0600.
    let mut file = tempfile::Builder::new().prefix(".nws-key-").tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// What hangs on such files should survive a loss of power, too.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory_of(path))?.sync_all()
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
