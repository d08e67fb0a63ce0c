//! `nws trust`: the authority of this machine made, and put into the stores of browsers and of the system, or taken out.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::RunError;
use crate::config::TrustConfig;
use crate::pinned::Fingerprint;
use crate::tls::TlsError;
use crate::tls::authority::{Authority, read_root, root_path, title};
use crate::tls::install::{Root, Store, nss_stores, system_store};

/// Which stores are meant.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    /// The system's.
    pub system: bool,
    /// Those of browsers, below the home directory.
    pub browsers: bool,
    /// Other NSS databases, by their directories.
    pub nss: Vec<PathBuf>,
}

/// Where the authority is kept.
///
/// # Errors
///
/// Nothing says so, and there is no home directory.
pub fn directory(config: &TrustConfig) -> Result<PathBuf, RunError> {
    let ours = || super::key::state_directory().map(|state| state.join("trust"));
    let none = || RunError::Usage("no home directory to keep the authority in; name one with --directory".to_owned());
    config.directory.clone().or_else(ours).ok_or_else(none)
}

/// Makes the authority and says what to do with it.
///
/// # Errors
///
/// There is one already, or it cannot be written.
pub fn init(directory: &Path) -> Result<(), RunError> {
    let made = Authority::init(directory, SystemTime::now())?;
    let name = title(made.root()).map_err(RunError::Failed)?;
    let path = root_path(directory);
    say(&format!(
        "Made {name:?}: {path}\n\
         SHA-256 {fingerprint}\n\
         It can vouch for names that end in .nostr and for nothing else. Its key stays in {directory}, for you alone.\n\
         \n\
         1. Have it trusted: `nws trust install` puts it into the stores that it finds. By hand:\n\
         \x20  system    sudo nws trust install --store system --directory {directory}\n\
         \x20  Chromium  certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n \"{name}\" -i {path}\n\
         \x20  Firefox   Settings, Privacy & Security, View Certificates, Authorities, Import: {path},\n\
         \x20            \"Trust this CA to identify websites\"\n\
         \x20  one curl  curl --cacert {path}\n\
         2. Have the proxy use it: `nws proxy --trust`, or proxy.trust.enabled = true in the configuration.\n\
         \n\
         `nws trust remove` takes it out of the stores again.",
        path = path.display(),
        directory = directory.display(),
        fingerprint = made.fingerprint(),
    ))
}

/// Puts the root certificate into the stores, and says what was done and what could not be.
///
/// # Errors
///
/// There is no authority, or no store took it.
pub fn install(directory: &Path, stores: &Stores) -> Result<(), RunError> {
    let mut taken = 0;
    let failed = each(directory, stores, |root, store| {
        root.install(store)?;
        taken += 1;
        Ok(format!("installed {:?}", root.title()))
    })?;
    if failed > 0 {
        return Err(RunError::Failed(format!("{taken} stores took it, {failed} did not")));
    }
    say("Programs that are running may have to be started again.")
}

/// Takes the root certificate out of the stores.
///
/// # Errors
///
/// There is no authority, or a store did not let go of it.
pub fn remove(directory: &Path, stores: &Stores) -> Result<(), RunError> {
    let failed = each(directory, stores, |root, store| {
        let was_there = root.remove(store)?;
        Ok(if was_there { format!("removed {:?}", root.title()) } else { "it was not there".to_owned() })
    })?;
    if failed > 0 {
        return Err(RunError::Failed(format!("{failed} stores still have it")));
    }
    say(&format!("The authority itself is in {}: delete it when nothing uses it any more.", directory.display()))
}

/// Does something with each store that is meant, and says how many failed.
fn each(
    directory: &Path,
    stores: &Stores,
    mut act: impl FnMut(&Root<'_>, &Store) -> Result<String, String>,
) -> Result<usize, RunError> {
    let certificate = read_root(directory)?;
    let root =
        Root::new(&certificate).map_err(|why| TlsError::content(root_path(directory).display().to_string(), why))?;
    say(&format!("SHA-256 {}", Fingerprint::of(&certificate)))?;
    let mut failed = 0;
    let mut meant: Vec<Store> = Vec::new();
    if stores.system {
        match system_store() {
            Some(store) => meant.push(store),
            None => {
                failed += 1;
                let way_out = "add the certificate with what the system has for it (macOS: security add-trusted-cert)";
                say(&format!("system store: none that is known here; {way_out}"))?;
            }
        }
    }
    if stores.browsers {
        match etcetera::home_dir() {
            Ok(home) => meant.extend(nss_stores(&home)),
            Err(_) => say("browsers: no home directory to find them in")?,
        }
    }
    meant.extend(stores.nss.iter().cloned().map(Store::Nss));
    for store in &meant {
        match act(&root, store) {
            Ok(done) => say(&format!("{store}: {done}"))?,
            Err(why) => {
                failed += 1;
                say(&format!("{store}: not done: {why}"))?;
            }
        }
    }
    Ok(failed)
}

fn say(text: &str) -> Result<(), RunError> {
    writeln!(io::stdout(), "{text}").map_err(|source| RunError::System { what: "cannot write the answer", source })
}
