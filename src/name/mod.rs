//! `.nostr` names: to and from a public key and its relays (NIP-74 "Domain", protocol.md section 1). What is read:
//!
//! * `<relay>[.<relay>…].<key>.nostr`, every label base32 with the extended hex alphabet (RFC 4648 section 7), without
//!   padding; how relay URLs lie in labels, and are split over several, is told in `label.rs`;
//! * `<key>.nostr`: the relays come from the configuration;
//! * `npub1…` and `nprofile1…` (NIP-19), bare or with `.nostr` appended, also as the key label behind relay labels.
//!
//! Any letter case is read, and one trailing dot; what is written is lower case, without the dot. Nothing here asks a
//! name server or a relay: a name holds its own answer.

mod alias;
mod error;
mod label;

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use nostr::nips::nip19::{Nip19Profile, ToBech32};
use nostr::{FromBech32, PublicKey, RelayUrl};

pub use alias::{Alias, AliasError, Aliases, Kept, parse_name_or_key, text_of};
pub use error::{Fault, NameError};
pub use label::parse_relay;

/// Most characters of a name that DNS carries (RFC 1035 section 2.3.4, without the length bytes and the root), and
/// more or less of what SOCKS5 carries (255, RFC 1928 section 5).
pub const DNS_NAME_MAX: usize = 253;

/// Most characters of one label (RFC 1035 section 2.3.4).
pub const DNS_LABEL_MAX: usize = 63;

/// What every name ends with.
const SUFFIX: &str = ".nostr";

/// How the NIP-19 forms of a key begin.
const BECH32_PREFIXES: [&str; 2] = ["npub1", "nprofile1"];

/// Characters of a 32-byte key in base32. No NIP-19 form is so short, so the length tells a key label that happens
/// to begin with `npub1` from an npub.
const KEY_LABEL_LEN: usize = 52;

/// An exit's public key and the relays to reach it on.
///
/// Made by [`NostrName::new`] or by parsing, its relays are distinct and in the canonical form of a name: no root
/// slash, no fragment, no user and password.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NostrName {
    /// The key that messages are encrypted to; a point of the curve when it came from a name.
    pub public_key: PublicKey,
    /// The relays in the order of the name; empty when the name does not say, and then the configuration does.
    pub relays: Vec<RelayUrl>,
}

impl NostrName {
    /// The name of this key on these relays. Repeated relays are dropped, the first of each stays in its place; a
    /// fragment and a user with password are dropped as well: a name is public, and neither is part of a websocket
    /// URL (RFC 6455 section 3).
    pub fn new(public_key: PublicKey, relays: impl IntoIterator<Item = RelayUrl>) -> Self {
        let mut seen = HashSet::new();
        let relays =
            relays.into_iter().map(|relay| label::canonical(&relay)).filter(|relay| seen.insert(relay.clone()));
        Self { public_key, relays: relays.collect() }
    }

    /// The key as NIP-19 `npub1…`.
    #[must_use]
    pub fn npub(&self) -> String {
        let Ok(npub) = self.public_key.to_bech32();
        npub
    }

    /// Whether DNS, and so a browser and a SOCKS5 request, can carry the name. A longer name is still a name:
    /// `nws name decode` and HTTP `CONNECT` take it, but other programs may refuse it before it gets to us.
    #[must_use]
    pub fn fits_dns(&self) -> bool {
        self.to_string().len() <= DNS_NAME_MAX
    }
}

impl fmt::Display for NostrName {
    /// Writes the canonical name: `<relay>[.<relay>…].<key>.nostr`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for relay in &self.relays {
            for label in label::encode_relay(relay) {
                write!(f, "{label}.")?;
            }
        }
        write!(f, "{}{SUFFIX}", label::encode(self.public_key.as_bytes()))
    }
}

impl FromStr for NostrName {
    type Err = NameError;

    fn from_str(host: &str) -> Result<Self, NameError> {
        if !is_nostr(host) {
            return Err(NameError::not_nostr(host));
        }
        // Bech32 forbids mixed case, but a host name has no case, and browsers lower it.
        let lower = without_root(host).to_ascii_lowercase();
        let labels: Vec<&str> = lower.strip_suffix(SUFFIX).unwrap_or(&lower).split('.').collect();
        let Some((key_label, relay_labels)) = labels.split_last() else {
            return Err(NameError::not_nostr(host));
        };
        let mut relays = label::decode_relays(relay_labels)?;
        let key = key_from_label(key_label).map_err(|fault| NameError::label(labels.len(), key_label, fault))?;
        relays.extend(key.relays);
        Ok(Self::new(key.public_key, relays))
    }
}

/// Whether a host is meant for us: it ends with `.nostr`, or is a bare `npub1…` or `nprofile1…`; in any letter case,
/// with or without a trailing dot. Such a host never belongs to a name server, even when it turns out to be wrong.
#[must_use]
pub fn is_nostr(host: &str) -> bool {
    let lower = without_root(host).to_ascii_lowercase();
    lower.ends_with(SUFFIX) || (!lower.contains('.') && is_bech32_key(&lower))
}

/// Reads a public key: hex, `npub1…`, `nprofile1…`, the key label of a name, or a whole name. Errors do not
/// repeat what is no name: people paste secret keys into the wrong place.
pub fn parse_public_key(text: &str) -> Result<PublicKey, NameError> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let key = PublicKey::from_hex(text).map_err(|_| NameError::Key(Fault::NotAKey))?;
        return on_curve(key).map_err(NameError::Key);
    }
    if is_nostr(text) && without_root(text).contains('.') {
        return text.parse().map(|name: NostrName| name.public_key);
    }
    let lower = text.to_ascii_lowercase();
    if !is_bech32_key(&lower) && !lower.starts_with("nsec1") && lower.len() != KEY_LABEL_LEN {
        return Err(NameError::Key(Fault::UnknownKeyForm));
    }
    key_from_label(&lower).map(|key| key.public_key).map_err(NameError::Key)
}

/// The host without the dot of the DNS root, which `http://name./` has.
fn without_root(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

fn is_bech32_key(lower: &str) -> bool {
    lower.len() != KEY_LABEL_LEN && BECH32_PREFIXES.iter().any(|prefix| lower.starts_with(prefix))
}

/// Reads the last label before `.nostr`, in lower case. Only an nprofile brings relays.
fn key_from_label(label: &str) -> Result<NostrName, Fault> {
    if label.starts_with("nsec1") && label.len() != KEY_LABEL_LEN {
        return Err(Fault::SecretKey);
    }
    if is_bech32_key(label) {
        let bech32 = |error: nostr::nips::nip19::Error| Fault::Bech32(error.to_string());
        if label.starts_with("npub1") {
            let key = on_curve(PublicKey::from_bech32(label).map_err(bech32)?)?;
            return Ok(NostrName::new(key, []));
        }
        let profile = Nip19Profile::from_bech32(label).map_err(bech32)?;
        return Ok(NostrName::new(on_curve(profile.public_key)?, profile.relays));
    }
    let bytes = label::decode(label)?;
    let key = PublicKey::from_slice(&bytes).map_err(|_| Fault::KeyLength(bytes.len()))?;
    Ok(NostrName::new(on_curve(key)?, []))
}

/// The `nostr` crate takes any 32 bytes for a key; encrypting to them would fail later, and less clearly.
fn on_curve(key: PublicKey) -> Result<PublicKey, Fault> {
    key.xonly().map(|_| key).map_err(|_| Fault::NotAKey)
}
