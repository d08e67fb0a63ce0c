//! `nws name add`, `remove` and `list`: the address book from the command line. The file itself is `config/book.rs`.

use std::path::Path;

use serde_json::json;

use super::RunError;
use crate::config::book::{self, Added, BookError};
use crate::config::{Config, Settings};
use crate::name::{Alias, Aliases, NostrName};

/// What the user is told who has no place for an address book.
const NO_PLACE: &str = "there is no home directory to keep names in; set names_file in the configuration";

/// The book that names are kept in.
///
/// # Errors
///
/// There is no place for one.
pub fn place(settings: &Settings) -> Result<&Path, RunError> {
    settings.names_file.as_deref().ok_or_else(|| RunError::Usage(NO_PLACE.to_owned()))
}

/// Keeps a name, and says what it stands for.
///
/// # Errors
///
/// It stands for something else already, here or in the configuration, or the book cannot be changed.
pub fn add(settings: &Settings, alias: &Alias, name: &NostrName, replace: bool) -> Result<String, RunError> {
    let path = place(settings)?;
    let in_book = book::read(path)?;
    if let Some(kept) = settings.config.names.get(alias)
        && !in_book.contains_key(alias)
        && kept.name.public_key != name.public_key
    {
        let old = kept.name.npub();
        let reason = format!("{alias} stands for {old} in the configuration ([names]); change it there");
        return Err(RunError::Failed(reason));
    }
    let added = book::add(path, alias, name, replace)?;
    let what = match &added {
        Added::New => "kept".to_owned(),
        Added::Same => "was kept already".to_owned(),
        Added::Moved(_) => "kept, its relays are new".to_owned(),
        Added::Replaced(old) => format!("kept, in the place of {}", old.npub()),
    };
    Ok(format!("{}\n{what} in {}; a running proxy takes it on SIGHUP", shown(alias, name), path.display()))
}

/// Forgets a name, and says what it stood for.
///
/// # Errors
///
/// It is not in the book, or the book cannot be changed.
pub fn remove(settings: &Settings, alias: &Alias) -> Result<String, RunError> {
    let path = place(settings)?;
    let name = book::remove(path, alias)?;
    Ok(format!("{}\nforgotten in {}; a running proxy forgets it on SIGHUP", shown(alias, &name), path.display()))
}

/// All names, those of the configuration as well.
#[must_use]
pub fn list(config: &Config, as_json: bool) -> String {
    let Config { names, .. } = config;
    if as_json {
        let entry = |(alias, kept): (&Alias, &crate::name::Kept)| {
            let relays: Vec<&str> = kept.name.relays.iter().map(|relay| relay.as_str()).collect();
            (
                alias.as_str().to_owned(),
                json!({ "name": kept.name.to_string(), "npub": kept.name.npub(), "relays": relays }),
            )
        };
        let all: serde_json::Map<_, _> = names.iter().map(entry).collect();
        return format!("{:#}", serde_json::Value::Object(all));
    }
    if names.is_empty() {
        return "no names are kept; `nws name add LABEL NAME` keeps one".to_owned();
    }
    table(names)
}

fn table(names: &Aliases) -> String {
    let width = names.keys().map(|alias| alias.to_string().len()).max().unwrap_or(0);
    let line = |(alias, kept): (&Alias, &crate::name::Kept)| {
        let relays: Vec<&str> = kept.name.relays.iter().map(|relay| relay.as_str()).collect();
        format!("{:width$}  {}  {}", alias.to_string(), kept.name.npub(), relays.join(" ")).trim_end().to_owned()
    };
    names.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A name and all that it stands for: nobody is to trust what he has not seen.
fn shown(alias: &Alias, name: &NostrName) -> String {
    format!("{alias}\n{}", described(name))
}

/// The key and the relays of a name, and the name that they make.
#[must_use]
pub fn described(name: &NostrName) -> String {
    let relays: Vec<&str> = name.relays.iter().map(|relay| relay.as_str()).collect();
    let relays = if relays.is_empty() { "(none: those of the configuration)".to_owned() } else { relays.join(" ") };
    format!("  key     {}\n  relays  {relays}\n  name    {name}", name.npub())
}

impl From<BookError> for RunError {
    fn from(error: BookError) -> Self {
        match error {
            BookError::Config(error) => Self::Config(error),
            other => Self::Failed(other.to_string()),
        }
    }
}
