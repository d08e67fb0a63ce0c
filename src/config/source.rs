//! Where the configuration comes from: layers of files and environment variables, each over the one before it, and a
//! name for the place of every mistake.
//!
//! Built-in defaults, `/etc/nws/nws.toml`, the user's `nws/nws.toml`, `--config`, `NWS_…`; flags come on top, in the
//! command line. A later layer replaces single values and whole lists; tables (`[exit.service]`) are joined.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::check::check;
use super::dropin::{self, DropIn};
use super::{Config, ConfigError, Origin, book};

/// The configuration file of the machine.
pub const SYSTEM_FILE: &str = "/etc/nws/nws.toml";

/// The variable that holds the exit's secret key, in hex or as `nsec1…`.
pub const PRIVATE_KEY_VARIABLE: &str = "NWS_PRIVATE_KEY";

/// What the names of all our variables begin with.
const PREFIX: &str = "NWS_";

/// What separates sections and keys in the name of a variable; one underscore is part of many keys.
const SEPARATOR: &str = "__";

/// The file beside us that holds variables, as the Go program reads it.
const DOT_ENV: &str = ".env";

/// A secret key as it was given, not yet parsed. Neither `Debug` nor an error shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey {
    secret: String,
    origin: Origin,
}

impl PrivateKey {
    /// Takes the secret of `NWS_PRIVATE_KEY` into custody.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self::from_origin(secret, Origin::Variable(PRIVATE_KEY_VARIABLE.to_owned()))
    }

    /// Takes a secret from some other place into custody.
    pub(super) fn from_origin(secret: impl Into<String>, origin: Origin) -> Self {
        Self { secret: secret.into(), origin }
    }

    /// Where it is from, for an error that must not show the secret.
    #[must_use]
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The secret itself, to be parsed and not to be shown.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// What all sources together say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// The configuration, checked.
    pub config: Config,
    /// The exit's secret key, if the environment holds it.
    pub private_key: Option<PrivateKey>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// Where the address book is, if there is a place for one.
    pub names_file: Option<PathBuf>,
    /// What the environment of the Go program has added, once a command has asked for it.
    pub drop_in: DropIn,
}

/// The sources of the configuration, from the weakest to the strongest. They can be read again, for a reload.
#[derive(Clone, Default)]
pub struct Sources {
    optional: Vec<PathBuf>,
    required: Option<PathBuf>,
    names_file: Option<PathBuf>,
    variables: Vec<(String, OsString)>,
    /// Variables of the Go program, which are not ours and weaker than everything that is.
    pub(super) drop_in: Vec<(String, OsString)>,
    /// The file with variables of the Go program, weaker still.
    pub(super) dot_env: Option<PathBuf>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values of variables stay out: one of them is the secret key.
        let names: Vec<_> = self.variables.iter().chain(&self.drop_in).map(|(name, _)| name).collect();
        f.debug_struct("Sources")
            .field("optional", &self.optional)
            .field("required", &self.required)
            .field("names_file", &self.names_file)
            .field("variables", &names)
            .field("dot_env", &self.dot_env)
            .finish()
    }
}

impl Sources {
    /// No source at all: the built-in defaults.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The sources of this process: the machine's file, the user's, the environment, and `.env` where we are.
    #[must_use]
    pub fn of_process() -> Self {
        // Absolute, for errors; without a working directory there is none to read either.
        let dot_env = std::path::absolute(DOT_ENV).unwrap_or_else(|_| DOT_ENV.into());
        let sources = Self::none().optional_file(SYSTEM_FILE).variables(std::env::vars_os()).dot_env_file(dot_env);
        // A service without a home directory has no file of its own, which is no mistake.
        match etcetera::choose_base_strategy() {
            Ok(base) => {
                let own = base.config_dir().join("nws");
                sources.optional_file(own.join("nws.toml")).names_file(own.join("names.toml"))
            }
            Err(_) => sources,
        }
    }

    /// Adds a file that may be missing.
    #[must_use]
    pub fn optional_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.optional.push(path.into());
        self
    }

    /// Adds the file that the user asked for, stronger than the others; it must exist.
    #[must_use]
    pub fn required_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.required = Some(path.into());
        self
    }

    /// Sets the place of the address book where the configuration names none; the file may be missing.
    #[must_use]
    pub fn names_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.names_file = Some(path.into());
        self
    }

    /// Sets the file that may hold variables of the Go program; it may be missing.
    #[must_use]
    pub fn dot_env_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.dot_env = Some(path.into());
        self
    }

    /// Adds those of these environment variables that are ours, and those of the Go program.
    #[must_use]
    pub fn variables<N: Into<OsString>, V: Into<OsString>>(mut self, all: impl IntoIterator<Item = (N, V)>) -> Self {
        for (name, value) in all {
            match name.into().into_string() {
                Ok(name) if name.starts_with(PREFIX) => self.variables.push((name, value.into())),
                Ok(name) if dropin::is_known(&name) => self.drop_in.push((name, value.into())),
                _ => {}
            }
        }
        self.variables.sort();
        self
    }

    /// Reads every source of ours and checks what they say together. What they leave open, a command may fill from the
    /// environment of the Go program: [`Settings::fill_proxy`], [`Settings::fill_exit`].
    ///
    /// # Errors
    ///
    /// The first mistake, with its place.
    pub fn load(&self) -> Result<Settings, ConfigError> {
        let mut figment = Figment::new();
        let mut files = Vec::new();
        for path in &self.optional {
            if let Some(layer) = Layer::file(path, true)? {
                files.push(path.clone());
                figment = figment.merge(layer);
            }
        }
        if let Some(path) = &self.required
            && let Some(layer) = Layer::file(path, false)?
        {
            files.push(path.clone());
            figment = figment.merge(layer);
        }
        let mut private_key = None;
        for (name, value) in &self.variables {
            let value = value.to_str().ok_or_else(|| ConfigError::NotText(name.clone()))?;
            if name == PRIVATE_KEY_VARIABLE {
                private_key = Some(PrivateKey::new(value));
            } else {
                figment = figment.merge(Layer::variable(name, value)?);
            }
        }
        let mut config: Config = figment.extract().map_err(|error| {
            let origin = error.metadata.as_ref().map_or(Origin::Default, origin);
            ConfigError::from_figment(&error, origin)
        })?;
        check(&config).map_err(|finding| {
            let set = finding.keys.iter().find_map(|key| Some((*key, origin(figment.find_metadata(key)?))));
            let (key, origin) = set.unwrap_or((finding.keys[0], Origin::Default));
            ConfigError::value(origin, key, &finding.reason)
        })?;
        let names_file = config.names_file.clone().or_else(|| self.names_file.clone());
        if let Some(path) = &names_file {
            files.extend(path.exists().then(|| path.clone()));
            for (alias, kept) in book::read(path)? {
                let key = kept.name.public_key;
                if let Some(other) = config.names.insert(alias.clone(), kept)
                    && other.name.public_key != key
                {
                    let reason = format!("the configuration says {}; remove one of both", other.name.npub());
                    return Err(ConfigError::value(
                        Origin::File(path.clone()),
                        format!("names.{}", alias.as_str()),
                        &reason,
                    ));
                }
            }
        }
        Ok(Settings { config, private_key, files, names_file, drop_in: DropIn::default() })
    }
}

/// One layer as figment takes it: values, and where they are from.
pub(super) struct Layer {
    metadata: Metadata,
    values: Dict,
}

impl Layer {
    /// A file, or nothing if it is missing and may be. figment's own reader of files would search the parent
    /// directories, and take an unreadable file for a missing one.
    pub(super) fn file(path: &Path, may_be_missing: bool) -> Result<Option<Self>, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let values = <Toml as Format>::from_str(&text)
            .map_err(|error| ConfigError::syntax(path.to_owned(), &error.to_string()))?;
        Ok(Some(Self { metadata: Metadata::from("file", path), values }))
    }

    /// A variable: `NWS_PROXY__LISTEN` sets `proxy.listen`, its value in figment's syntax for variables.
    fn variable(name: &str, value: &str) -> Result<Self, ConfigError> {
        let key = name[PREFIX.len()..].to_ascii_lowercase();
        let mut parts: Vec<&str> = key.split(SEPARATOR).collect();
        if parts.iter().any(|part| part.is_empty()) {
            let reason = format!("no key has this name; sections and keys are separated by {SEPARATOR}");
            return Err(ConfigError::value(Origin::Variable(name.to_owned()), parts.join("."), &reason));
        }
        let last = parts.pop().unwrap_or_default();
        let Ok(value) = value.parse::<Value>();
        let innermost = Dict::from([(last.to_owned(), value)]);
        let values =
            parts.into_iter().rev().fold(innermost, |inner, part| Dict::from([(part.to_owned(), Value::from(inner))]));
        Ok(Self { metadata: Metadata::from("variable", name), values })
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// The place that a layer stands for.
fn origin(metadata: &Metadata) -> Origin {
    match &metadata.source {
        Some(Source::File(path)) => Origin::File(path.clone()),
        Some(Source::Custom(name)) => Origin::Variable(name.clone()),
        _ => Origin::Default,
    }
}
