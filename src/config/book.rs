//! The address book: a file of its own for the names that `nws name` keeps, with a table `[names]` as the configuration
//! has one. It is edited in place: what else stands in it, comments above all, stays as it is; it changes whole or not at
//! all; and no name gets another key unless that is asked for.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml_edit::{DocumentMut, InlineTable, TableLike, Value, value};

use super::source::Layer;
use super::{ConfigError, Origin};
use crate::name::{Alias, Aliases, Kept, NostrName, text_of};

/// Mode of a directory that is made for the book.
const DIRECTORY_MODE: u32 = 0o700;

/// The file's content.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Content {
    names: Aliases,
}

/// Why a name is not kept or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BookError {
    /// The file is wrong already.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The name has another key.
    #[error("{alias} stands for {old} in {}; --replace gives it {new} instead", path.display())]
    OtherKey {
        /// The name.
        alias: Alias,
        /// The key that it stands for, as npub.
        old: String,
        /// The one that it was to stand for.
        new: String,
        /// The file.
        path: PathBuf,
    },
    /// There is no such name in the file.
    #[error("{alias} is not kept in {}", path.display())]
    Absent {
        /// The name.
        alias: Alias,
        /// The file.
        path: PathBuf,
    },
    /// The file is not of the form that can be edited.
    #[error("{}: names is no table; mend it by hand", .0.display())]
    NoTable(PathBuf),
    /// The file cannot be read or written.
    #[error("cannot change the address book {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What has become of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It is new.
    New,
    /// It was there already.
    Same,
    /// It has the same key, and other relays than these.
    Moved(NostrName),
    /// It had this key.
    Replaced(NostrName),
}

/// The names in a file, which may be missing.
///
/// # Errors
///
/// It cannot be read, or something in it is wrong.
pub fn read(path: &Path) -> Result<Aliases, ConfigError> {
    let Some(layer) = Layer::file(path, true)? else { return Ok(Aliases::new()) };
    let content: Result<Content, _> = figment::Figment::from(layer).extract();
    content
        .map(|content| content.names)
        .map_err(|error| ConfigError::from_figment(&error, Origin::File(path.to_owned())))
}

/// Keeps a name. With `replace` it may take the place of one with another key.
///
/// # Errors
///
/// The name has another key and is not to be replaced, or the file is wrong or cannot be written.
pub fn add(path: &Path, alias: &Alias, name: &NostrName, replace: bool) -> Result<Added, BookError> {
    edit(path, |document, known| {
        let before = known.get(alias);
        let old_key = before.map(|before| before.name.public_key).filter(|key| *key != name.public_key);
        if let (Some(_), Some(before), false) = (old_key, before, replace) {
            let (alias, old, new) = (alias.clone(), before.name.npub(), name.npub());
            return Err(BookError::OtherKey { alias, old, new, path: path.to_owned() });
        }
        let added = match before {
            None => Added::New,
            Some(before) if before.name == *name => return Ok(Added::Same),
            Some(before) if old_key.is_some() => Added::Replaced(before.name.clone()),
            Some(before) => Added::Moved(before.name.clone()),
        };
        // Also when only relays change, since a proxy may not have heard of the key yet.
        let replaces = old_key.or(before.and_then(|before| before.replaces));
        put(table(document, path)?, alias, &Kept { name: name.clone(), replaces });
        Ok(added)
    })
}

/// Forgets a name, and says what it stood for.
///
/// # Errors
///
/// It is not there, or the file is wrong or cannot be written.
pub fn remove(path: &Path, alias: &Alias) -> Result<NostrName, BookError> {
    edit(path, |document, known| {
        let Some(kept) = known.get(alias) else {
            return Err(BookError::Absent { alias: alias.clone(), path: path.to_owned() });
        };
        table(document, path)?.remove(alias.as_str());
        Ok(kept.name.clone())
    })
}

/// The table of names, made if there is none.
fn table<'a>(document: &'a mut DocumentMut, path: &Path) -> Result<&'a mut dyn TableLike, BookError> {
    let item = document.entry("names").or_insert_with(toml_edit::table);
    item.as_table_like_mut().ok_or_else(|| BookError::NoTable(path.to_owned()))
}

/// Writes an entry; of one that is there, the comment behind it stays.
fn put(table: &mut dyn TableLike, alias: &Alias, kept: &Kept) {
    let name = text_of(&kept.name);
    let mut new: Value = match &kept.replaces {
        None => name.into(),
        Some(key) => {
            let mut inline = InlineTable::new();
            inline.insert("name", name.into());
            inline.insert("replaces", NostrName::new(*key, []).npub().into());
            inline.into()
        }
    };
    // Not by `insert`, which would make the key anew as well, and lose the comment above it.
    match table.get_mut(alias.as_str()) {
        Some(item) => {
            if let Some(before) = item.as_value() {
                *new.decor_mut() = before.decor().clone();
            }
            *item = value(new);
        }
        None => {
            table.insert(alias.as_str(), value(new));
        }
    }
}

/// Reads the file, has it changed, and puts the outcome in its place, all under a lock that other edits wait for.
fn edit<T>(
    path: &Path,
    change: impl FnOnce(&mut DocumentMut, &Aliases) -> Result<T, BookError>,
) -> Result<T, BookError> {
    let failed = |source| BookError::File { path: path.to_owned(), source };
    // The file may be a link into a directory that is kept elsewhere.
    let path_behind = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = path_behind.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(failed)?;
    let lock = File::open(directory).map_err(failed)?;
    lock.lock().map_err(failed)?;
    let known = read(path)?;
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text.map_err(failed)?,
    };
    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| ConfigError::syntax(path.to_owned(), &error.to_string()))?;
    let outcome = change(&mut document, &known)?;
    let new = document.to_string();
    if new == text {
        return Ok(outcome);
    }
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".nws-names-").tempfile_in(directory)?;
        if let Ok(old) = fs::metadata(&path_behind) {
            file.as_file().set_permissions(old.permissions())?;
        }
        file.write_all(new.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path_behind).map_err(|error| error.error)?;
        lock.sync_all()
    };
    write().map_err(failed)?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use nostr::Keys;

    use super::*;

    fn name() -> NostrName {
        NostrName::new(Keys::generate().public_key(), [])
    }

    fn alias(text: &str) -> Alias {
        text.parse().unwrap()
    }

    fn book() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nws").join("names.toml");
        (directory, path)
    }

    #[test]
    fn names_are_kept_and_forgotten_in_a_file_that_appears_by_itself() {
        let (_directory, path) = book();
        let (wallet, shop) = (name(), name());
        assert!(read(&path).unwrap().is_empty());
        assert_eq!(add(&path, &alias("wallet"), &wallet, false).unwrap(), Added::New);
        assert_eq!(add(&path, &alias("shop"), &shop, false).unwrap(), Added::New);
        assert_eq!(add(&path, &alias("shop"), &shop, false).unwrap(), Added::Same);
        let known = read(&path).unwrap();
        assert_eq!((&known[&alias("wallet")].name, &known[&alias("shop")].name), (&wallet, &shop));
        assert_eq!(remove(&path, &alias("wallet")).unwrap(), wallet);
        assert!(matches!(remove(&path, &alias("wallet")), Err(BookError::Absent { .. })));
        assert_eq!(read(&path).unwrap().len(), 1);
    }

    #[test]
    fn a_name_gets_another_key_only_when_that_is_asked_for_and_the_file_says_so() {
        let (_directory, path) = book();
        let (old, new) = (name(), name());
        add(&path, &alias("wallet"), &old, false).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let error = add(&path, &alias("wallet"), &new, false).unwrap_err().to_string();
        assert!(error.contains(&old.npub()) && error.contains(&new.npub()) && error.contains("--replace"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(add(&path, &alias("wallet"), &new, true).unwrap(), Added::Replaced(old.clone()));
        let kept = read(&path).unwrap()[&alias("wallet")].clone();
        assert_eq!((&kept.name, kept.replaces), (&new, Some(old.public_key)));
        // Other relays are no other key.
        let moved = NostrName::new(new.public_key, [crate::name::parse_relay("wss://a.example").unwrap()]);
        assert_eq!(add(&path, &alias("wallet"), &moved, false).unwrap(), Added::Moved(new));
        assert_eq!(read(&path).unwrap()[&alias("wallet")], Kept { name: moved, replaces: Some(old.public_key) });
    }

    #[test]
    fn comments_order_and_mode_stay_and_a_link_stays_a_link() {
        let (directory, link) = book();
        let real = directory.path().join("real.toml");
        let (first, second, third) = (name(), name(), name());
        let text = format!(
            "# mine\n[names]\n# the shop\nshop = \"{}\" # round the corner\nwallet = '{}'\n\n# the end\n",
            first.npub(),
            second.npub()
        );
        fs::write(&real, &text).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        fs::create_dir(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        add(&link, &alias("shop"), &third, true).unwrap();
        let now = fs::read_to_string(&real).unwrap();
        let replaced = format!("{{ name = \"{}\", replaces = \"{}\" }}", third.npub(), first.npub());
        assert_eq!(now, text.replace(&format!("\"{}\"", first.npub()), &replaced));
        remove(&link, &alias("wallet")).unwrap();
        let now = fs::read_to_string(&real).unwrap();
        assert!(now.contains("# round the corner") && now.contains("# the end") && !now.contains("wallet"), "{now}");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing is left behind");
    }

    #[test]
    fn a_file_that_is_wrong_is_named_and_left_alone() {
        let (directory, _) = book();
        let path = directory.path().join("names.toml");
        for (text, why) in [
            ("[names", "not valid TOML"),
            ("[names]\nwallet = 'x'", "names.wallet"),
            ("[names]\nWallet = 'x'", "lower-case"),
            ("[nams]\n", "unknown key"),
            ("names = 7", "names"),
        ] {
            fs::write(&path, text).unwrap();
            let error = add(&path, &alias("shop"), &name(), false).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("names.toml"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
