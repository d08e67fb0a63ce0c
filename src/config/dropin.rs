//! The environment of the public Go program: `NOSTR_RELAYS`, `NOSTR_PRIVATE_KEY`, `BACKEND_HOST`, `PUBLIC`,
//! `PUBLIC_ADDRESS`, also from a `.env` file in the working directory. They fill what our own settings leave open, so
//! that whoever runs that program changes the binary and nothing else.
//!
//! Not a layer of [`Sources`]: flags, too, are stronger, and a command reads only what it has a use for, since these
//! names and that file may belong to some other program.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nostr::RelayUrl;

use super::address::Target;
use super::check::SHOWN;
use super::{ConfigError, Origin, PrivateKey, Settings, Sources, ValueError};
use crate::name::parse_relay;

/// Relays, separated by semicolons.
const RELAYS: &str = "NOSTR_RELAYS";

/// The exit's secret key, in hex or as `nsec1…`.
const PRIVATE_KEY: &str = "NOSTR_PRIVATE_KEY";

/// Where the exit's connections go.
const BACKEND_HOST: &str = "BACKEND_HOST";

/// Whether the exit serves other names than its own.
const PUBLIC: &str = "PUBLIC";

/// Where exits are to connect back to.
const PUBLIC_ADDRESS: &str = "PUBLIC_ADDRESS";

/// What parts the relays of a list.
const LIST_SEPARATOR: char = ';';

/// Length of a secret key in hex.
const KEY_HEX_LEN: usize = 64;

/// What the environment of the Go program has contributed to the settings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DropIn {
    /// Where the values come from that were taken into the settings, by name and never by value.
    pub taken: Vec<Origin>,
    /// A value of `PUBLIC` that says neither yes nor no, and so nothing: the variable may be some other program's.
    pub public_unclear: bool,
}

impl DropIn {
    /// Says in the log what was taken, and what has no effect.
    pub fn log(&self) {
        if !self.taken.is_empty() {
            let names: Vec<_> = self.taken.iter().map(ToString::to_string).collect();
            let from = names.join(", ");
            tracing::info!(%from, "settings left open are taken from the environment of the Go program");
        }
        if self.public_unclear {
            tracing::warn!("{PUBLIC} has no effect: write true for a public exit, or use --public");
        }
    }
}

/// Whether the Go program knows a variable of this name.
pub(super) fn is_known(name: &str) -> bool {
    [RELAYS, PRIVATE_KEY, BACKEND_HOST, PUBLIC, PUBLIC_ADDRESS].contains(&name)
}

impl Settings {
    /// Fills what files, our own variables and flags leave open for `nws proxy`.
    ///
    /// # Errors
    ///
    /// A value that is needed is impossible, or the `.env` file is malformed.
    pub fn fill_proxy(&mut self, sources: &Sources) -> Result<(), ConfigError> {
        let open = self.config.relays.is_empty();
        let variables = Variables::read(sources, open)?;
        self.fill_relays(&variables, open)?;
        if self.config.proxy.public_address.is_none()
            && let Some((value, origin)) = variables.get(PUBLIC_ADDRESS)?
        {
            if self.config.relay_proxy.url.is_some() {
                return Err(ConfigError::value(origin, "proxy.public_address", SHOWN));
            }
            self.config.proxy.public_address = Some(target(value, &origin)?);
            self.drop_in.taken.push(origin);
        }
        Ok(())
    }

    /// Fills what files, our own variables and flags leave open for `nws exit`. An exit that has services of its own
    /// gets no target beside them and does not become a public one: nobody asked it to offer that.
    ///
    /// # Errors
    ///
    /// A value that is needed is impossible, or the `.env` file is malformed.
    pub fn fill_exit(&mut self, sources: &Sources) -> Result<(), ConfigError> {
        let exit = &self.config.exit;
        let relays_open = self.config.exit_relays().is_empty();
        let target_open = exit.target.is_none() && exit.service.is_empty();
        let key_open = self.private_key.is_none() && exit.key_file.is_none();
        let variables = Variables::read(sources, relays_open || target_open || key_open)?;
        self.fill_relays(&variables, relays_open)?;
        if target_open && let Some((value, origin)) = variables.get(BACKEND_HOST)? {
            self.config.exit.target = Some(target(value, &origin)?);
            self.drop_in.taken.push(origin);
        }
        if key_open && let Some((value, origin)) = variables.get(PRIVATE_KEY)? {
            self.private_key = Some(PrivateKey::from_origin(value, origin.clone()));
            self.drop_in.taken.push(origin);
        }
        if let Some((value, origin)) = variables.get(PUBLIC)?
            && target_open
            && !self.config.exit.public.enabled
            && !is_one_of(&FALSE, value)
        {
            if is_one_of(&TRUE, value) {
                self.config.exit.public.enabled = true;
                self.drop_in.taken.push(origin);
            } else {
                self.drop_in.public_unclear = true;
            }
        }
        Ok(())
    }

    /// Fills the general relays, which both commands use when they have no others.
    fn fill_relays(&mut self, variables: &Variables<'_>, open: bool) -> Result<(), ConfigError> {
        if open && let Some((value, origin)) = variables.get(RELAYS)? {
            self.config.relays = relays(value, &origin)?;
            self.drop_in.taken.push(origin);
        }
        Ok(())
    }
}

/// Reads a list of relays; a semicolon too many does no harm.
fn relays(value: &str, origin: &Origin) -> Result<Vec<RelayUrl>, ConfigError> {
    let mut out = Vec::new();
    for text in value.split(LIST_SEPARATOR).map(str::trim).filter(|text| !text.is_empty()) {
        let wrong = |reason: &str| ConfigError::value(origin.clone(), "relays", reason);
        not_a_key(text).map_err(wrong)?;
        let relay = parse_relay(text).map_err(|error| wrong(&error.to_string()))?;
        if !out.contains(&relay) {
            out.push(relay);
        }
    }
    Ok(out)
}

/// Reads the target; without a host, as `:3000`, the Go program connects to its own machine.
fn target(value: &str, origin: &Origin) -> Result<Target, ConfigError> {
    let wrong = |reason: &str| ConfigError::value(origin.clone(), "exit.target", reason);
    not_a_key(value).map_err(wrong)?;
    let local = value.starts_with(':').then(|| format!("localhost{value}"));
    local.as_deref().unwrap_or(value).parse().map_err(|error: ValueError| wrong(&error.to_string()))
}

/// The words for "no" that Go's `strconv.ParseBool` takes.
const FALSE: [&str; 6] = ["0", "f", "F", "false", "FALSE", "False"];

/// The words for "yes".
const TRUE: [&str; 6] = ["1", "t", "T", "true", "TRUE", "True"];

fn is_one_of(words: &[&str], value: &str) -> bool {
    words.contains(&value)
}

/// Refuses what has the form of a secret key, put in the place of another value by mistake: an error would repeat it,
/// and as the host of a relay it would stand in the exit's name.
fn not_a_key(text: &str) -> Result<(), &'static str> {
    let hex = text.len() >= KEY_HEX_LEN && text.bytes().take(KEY_HEX_LEN).all(|b| b.is_ascii_hexdigit());
    if hex || text.starts_with("nsec1") { Err("holds what may be a secret key") } else { Ok(()) }
}

/// The variables that there are, with those of the `.env` file behind those of the process.
struct Variables<'a> {
    sources: &'a Sources,
    file: Option<(&'a Path, BTreeMap<String, String>)>,
}

impl<'a> Variables<'a> {
    /// Reads the `.env` file, if it can matter. It may be any program's: where nothing is open it stops nobody.
    fn read(sources: &'a Sources, matters: bool) -> Result<Self, ConfigError> {
        let path = sources.dot_env.as_deref().filter(|_| matters);
        let file = path.map(|path| Ok((path, dot_env(path)?))).transpose()?;
        Ok(Self { sources, file })
    }

    /// The value of a variable, if it has one. An empty one in the process hides that of the file, as in the Go
    /// program, and says nothing itself.
    fn get(&self, name: &str) -> Result<Option<(&str, Origin)>, ConfigError> {
        let found = if let Some((_, value)) = self.sources.drop_in.iter().find(|(known, _)| known == name) {
            let value = value.to_str().ok_or_else(|| ConfigError::NotText(name.to_owned()))?;
            Some((value, Origin::Variable(name.to_owned())))
        } else {
            self.file.as_ref().and_then(|(path, values)| {
                let origin = Origin::DotEnv { path: path.to_path_buf(), variable: name.to_owned() };
                Some((values.get(name)?.as_str(), origin))
            })
        };
        Ok(found.map(|(value, origin)| (value.trim(), origin)).filter(|(value, _)| !value.is_empty()))
    }
}

/// Reads a `.env` file, which may be missing; of a name that stands there twice the last one counts. The environment of
/// the process stays as it is.
fn dot_env(path: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        // Some keep a directory of this name (virtual environments of Python).
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
            return Ok(BTreeMap::new());
        }
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    // dotenvy refuses a space at the end of a last line that has no line end.
    text.push('\n');
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines_read = Cell::new(0);
    let lines = Lines { rest: text.as_bytes(), read: &lines_read };
    let mut values = BTreeMap::new();
    for item in dotenvy::from_read_iter(lines) {
        let (name, value) = item.map_err(|error| malformed(path, &error, lines_read.get()))?;
        if is_known(&name) {
            values.insert(name, value);
        }
    }
    Ok(values)
}

/// The error of dotenvy without the line that it quotes, which may hold anybody's secret, but with its number.
fn malformed(path: &Path, error: &dotenvy::Error, lines_read: usize) -> ConfigError {
    let path: PathBuf = path.to_owned();
    match error {
        // Quotes may hold line ends: what is wrong begins as many lines before the last one that was read.
        dotenvy::Error::LineParse(text, _) => {
            let inside = text.strip_suffix('\n').unwrap_or(text).matches('\n').count();
            ConfigError::DotEnv { path, line: lines_read.saturating_sub(inside) }
        }
        _ => ConfigError::DotEnv { path, line: lines_read },
    }
}

/// A reader that gives out a line at a time and counts, since dotenvy does not say where it is.
struct Lines<'a> {
    rest: &'a [u8],
    read: &'a Cell<usize>,
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.rest.iter().position(|b| *b == b'\n').map_or(self.rest.len(), |end| end + 1);
        let (now, later) = self.rest.split_at(line.min(buffer.len()));
        buffer[..now.len()].copy_from_slice(now);
        self.rest = later;
        if now.ends_with(b"\n") {
            self.read.set(self.read.get() + 1);
        }
        Ok(now.len())
    }
}

#[cfg(test)]
mod tests;
