//! What can be wrong with a name, said so that a person can mend it: which label, why, and the way out.

use crate::error::{Error, ErrorKind};

/// Longest piece of foreign text that an error repeats; names may come from any web page.
const SHOWN_MAX: usize = 80;

/// Why a text is not the name, key or relay that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a `.nostr` name at all: a host of the ordinary Internet.
    #[error(
        "{host:?} is not a .nostr name; such a name ends with .nostr, or is an npub1… or nprofile1… without any dot"
    )]
    NotNostr {
        /// The host, shortened when it is very long.
        host: String,
    },
    /// A `.nostr` name with a wrong label.
    #[error("label {position} of the .nostr name ({label:?}) is wrong: {fault}")]
    Label {
        /// Which label, counted from 1 at the left; of a URL split over several labels, the first one.
        position: usize,
        /// The label in lower case, shortened when it is very long, and without what follows `nsec1`.
        label: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A name that somebody may have chosen, and that is not kept here.
    #[error(
        "nobody here knows {label}.nostr: `nws name add {label} NAME` keeps the name or key that it is to stand for"
    )]
    Unknown {
        /// The label before `.nostr`.
        label: String,
    },
    /// A public key given by itself is wrong. Its text is not repeated, for it may be a secret key.
    #[error("the public key is wrong: {0}")]
    Key(Fault),
    /// A relay URL given by itself is wrong.
    #[error(transparent)]
    Relay(Fault),
}

impl NameError {
    pub(super) fn not_nostr(host: &str) -> Self {
        Self::NotNostr { host: shown(host) }
    }

    pub(super) fn label(position: usize, label: &str, fault: Fault) -> Self {
        Self::Label { position, label: shown(label), fault }
    }
}

/// What is wrong with a label, a key or a relay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing stands between two dots, or before the first one.
    #[error("it is empty; remove the surplus dot, or put the key's label there")]
    Empty,
    /// A character that base32 does not have.
    #[error(
        "{character:?} at position {position} is not a base32 digit; labels use 0-9 and a-v (base32 extended hex, not \
         the alphabet with w to z)"
    )]
    Symbol {
        /// The character.
        character: char,
        /// Where in the label it stands, in characters counted from 1.
        position: usize,
    },
    /// No whole number of bytes gives this many base32 digits, or the last digit has bits that belong to no byte.
    #[error("it is no complete base32 text; probably the label was cut off or a character got lost, so copy it anew")]
    Incomplete,
    /// The decoded bytes are no text.
    #[error("it does not decode to a relay URL, but to bytes that are no UTF-8 text; copy the name anew")]
    NotText,
    /// The text is not the URL of a relay.
    #[error("{url:?} is not a relay URL: {reason}; a relay URL looks like wss://relay.example.com")]
    Relay {
        /// The text, shortened when it is very long.
        url: String,
        /// What a relay URL may not be.
        reason: String,
    },
    /// The key's label has another length than a key.
    #[error(
        "the label before .nostr must hold the 32 bytes of a public key (52 base32 characters), and it holds {0}; \
         `nws name encode --key KEY` makes a name of a key in hex"
    )]
    KeyLength(usize),
    /// 32 bytes that are not the x coordinate of a point of secp256k1 (BIP-340).
    #[error("these 32 bytes are not a public key, no point of the curve has them; copy the key anew")]
    NotAKey,
    /// An npub or nprofile that NIP-19 does not allow.
    #[error("it is not a valid npub or nprofile ({0}); copy it anew")]
    Bech32(String),
    /// A secret key where a public one belongs.
    #[error("it is a secret key (nsec), which never belongs into a name; give the public key (npub1…) instead")]
    SecretKey,
    /// A key by itself in none of the known forms.
    #[error("it must be 64 hex digits, npub1…, nprofile1…, or the key label of a .nostr name (52 characters)")]
    UnknownKeyForm,
}

impl Fault {
    /// Why a label is no base32. A wrong character is told before a wrong length: it is the likelier slip.
    pub(super) fn base32(label: &str) -> Self {
        let digit = |character: char| matches!(character.to_ascii_lowercase(), '0'..='9' | 'a'..='v');
        match label.chars().zip(1..).find(|(character, _)| !digit(*character)) {
            Some((character, position)) => Self::Symbol { character, position },
            None => Self::Incomplete,
        }
    }

    pub(super) fn relay(url: &str, reason: impl ToString) -> Self {
        Self::Relay { url: shown(url), reason: reason.to_string() }
    }
}

/// A name that cannot be read is, to a client, a host that does not exist.
impl From<&NameError> for Error {
    fn from(error: &NameError) -> Self {
        Self::new(ErrorKind::HostUnreachable, error.to_string())
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        Self::from(&error)
    }
}

/// Foreign text as errors repeat it.
fn shown(text: &str) -> String {
    if text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nsec1")) {
        return "nsec1…".to_owned();
    }
    match text.char_indices().nth(SHOWN_MAX) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_repeated_up_to_its_limit() {
        for (length, whole) in [(SHOWN_MAX - 1, true), (SHOWN_MAX, true), (SHOWN_MAX + 1, false)] {
            let text = "é".repeat(length);
            assert_eq!(shown(&text) == text, whole, "{length}");
            assert!(shown(&text).chars().count() <= SHOWN_MAX + 1);
        }
    }
}
