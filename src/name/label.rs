//! How a relay URL lies in labels. Not the key, which is one label by itself.
//!
//! A label holds the bytes of a URL in base32, and 63 characters, the most of a label, hold 39 bytes. A longer URL
//! lies in several labels. There is no mark for that in NIP-74, so these rules make it readable:
//!
//! * Written: a URL with its scheme, in pieces of 39 bytes, so that every label but the last of a URL is *full*: 63
//!   characters. `://` is nowhere but behind the scheme, so that no further piece begins with `ws://` or `wss://`.
//! * Read: a label continues the URL before it when the label before it is full and it does not itself begin with
//!   `ws://` or `wss://` (in any letter case). Every other label begins a URL. The pieces are joined as bytes, so a
//!   piece may end within a character.
//!
//! So a URL of exactly 39, 78, … bytes ends where the next scheme begins, or where only the key is left. One thing
//! cannot be told and is read as a continuation: a relay *without* a scheme behind a full label. Nothing here writes
//! it; whoever writes names by hand gives the scheme there.
//!
//! A label of over 63 characters, which DNS forbids, comes from a program that does not split. It is read as one whole
//! URL.

use data_encoding::BASE32_DNSSEC;
use nostr::{RelayUrl, Url};

use super::DNS_LABEL_MAX;
use super::error::{Fault, NameError};

/// Most bytes whose base32 fits into one label.
const PIECE_MAX: usize = DNS_LABEL_MAX * 5 / 8;

/// Base32 with the extended hex alphabet, written in lower case, read in any, without padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    BASE32_DNSSEC.encode(bytes)
}

/// The bytes of one label, of which there is at least one.
pub(super) fn decode(label: &str) -> Result<Vec<u8>, Fault> {
    if label.is_empty() {
        return Err(Fault::Empty);
    }
    BASE32_DNSSEC.decode(label.as_bytes()).map_err(|_| Fault::base32(label))
}

/// The labels of one relay.
pub(super) fn encode_relay(relay: &RelayUrl) -> impl Iterator<Item = String> {
    let text = canonical_text(relay);
    let labels: Vec<String> = text.as_bytes().chunks(PIECE_MAX).map(encode).collect();
    labels.into_iter()
}

/// The relays in the labels before the key.
pub(super) fn decode_relays(labels: &[&str]) -> Result<Vec<RelayUrl>, NameError> {
    /// A URL of which further labels may follow.
    struct Begun<'a> {
        position: usize,
        label: &'a str,
        bytes: Vec<u8>,
        full: bool,
    }
    impl Begun<'_> {
        fn finish(self) -> Result<RelayUrl, NameError> {
            String::from_utf8(self.bytes)
                .map_err(|_| Fault::NotText)
                .and_then(|text| relay(&text))
                .map_err(|fault| NameError::label(self.position, self.label, fault))
        }
    }

    let mut relays = Vec::new();
    let mut begun: Option<Begun<'_>> = None;
    for (index, label) in labels.iter().enumerate() {
        let bytes = decode(label).map_err(|fault| NameError::label(index + 1, label, fault))?;
        let full = label.len() == DNS_LABEL_MAX;
        match &mut begun {
            Some(url) if url.full && !begins_url(&bytes) => {
                url.bytes.extend(bytes);
                url.full = full;
            }
            _ => {
                let before = begun.replace(Begun { position: index + 1, label, bytes, full });
                relays.extend(before.map(Begun::finish).transpose()?);
            }
        }
    }
    relays.extend(begun.map(Begun::finish).transpose()?);
    Ok(relays)
}

/// Reads the URL of a relay as names carry it and people type it: `ws://` or `wss://`, or no scheme at all for
/// `wss://`. A fragment and a user with password are refused, since RFC 6455 section 3 knows neither.
pub fn parse_relay(text: &str) -> Result<RelayUrl, NameError> {
    relay(text).map_err(NameError::Relay)
}

fn relay(text: &str) -> Result<RelayUrl, Fault> {
    let fault = |reason: &str| Err(Fault::relay(text, reason));
    // URL parsers remove some of these in silence, and two names would be one.
    if text.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return fault("it contains a space or a control character");
    }
    let relay = match text.contains("://") {
        true => RelayUrl::parse(text),
        false => RelayUrl::parse(&format!("wss://{text}")),
    };
    let relay = relay.map_err(|error| match error {
        nostr::types::url::Error::UnsupportedScheme => Fault::relay(text, "its scheme is neither ws nor wss"),
        nostr::types::url::Error::MultipleSchemeSeparators => Fault::relay(text, "`://` stands in it twice"),
        nostr::types::url::Error::Url(error) => Fault::relay(text, error),
    })?;
    let url = <&Url>::from(&relay);
    if !url.has_host() {
        return fault("it has no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::relay("…@…", "it contains a user or a password, and names are public"));
    }
    if url.fragment().is_some() {
        return fault("it contains a fragment (#…), which a websocket URL may not have");
    }
    Ok(canonical(&relay))
}

/// The relay in the form that names carry.
pub(super) fn canonical(relay: &RelayUrl) -> RelayUrl {
    RelayUrl::parse(&canonical_text(relay)).unwrap_or_else(|_| relay.clone())
}

/// The URL as names carry it: without root slash, fragment, user and password, and with one `://` only.
fn canonical_text(relay: &RelayUrl) -> String {
    // Not `RelayUrl::as_str`: it drops the last slash of a path, and `/inbox/` is not `/inbox`.
    let mut url = <&Url>::from(relay).clone();
    url.set_fragment(None);
    // These fail for URLs without a host only, which have no user either.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    let text = match (url.path(), url.query()) {
        ("/", None) => url.as_str().trim_end_matches('/'),
        _ => url.as_str(),
    };
    match text.split_once("://") {
        // A parser makes `://` of `:\\` in a path; behind the scheme it would read as the begin of another URL.
        Some((scheme, rest)) => format!("{scheme}://{}", rest.replace("://", "%3A//")),
        None => text.to_owned(),
    }
}

/// Whether a decoded label begins a URL whatever stands before it.
fn begins_url(bytes: &[u8]) -> bool {
    ["ws://", "wss://"]
        .iter()
        .any(|scheme| bytes.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(url: &str) -> Vec<String> {
        encode_relay(&RelayUrl::parse(url).unwrap()).collect()
    }

    fn read(pieces: &[&[u8]]) -> Result<Vec<String>, NameError> {
        let labels: Vec<String> = pieces.iter().map(|piece| encode(piece)).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        Ok(decode_relays(&labels)?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_piece_of_39_bytes_is_a_full_label() {
        assert_eq!(PIECE_MAX, 39);
        assert_eq!(encode(&[b'a'; PIECE_MAX]).len(), DNS_LABEL_MAX);
        assert!(encode(&[b'a'; PIECE_MAX - 1]).len() < DNS_LABEL_MAX);
        assert!(encode(&[b'a'; PIECE_MAX + 1]).len() > DNS_LABEL_MAX);
    }

    #[test]
    fn no_further_piece_begins_like_a_url() {
        // The parser turns the backslashes into slashes: a second `ws://`, placed at the start of a second piece.
        let url = format!("wss://h/{}ws:\\\\evil.example", "a".repeat(PIECE_MAX - "wss://h/".len()));
        let labels = written(&url);
        assert_eq!(labels.len(), 2);
        assert_eq!(decode(&labels[1]).unwrap(), b"ws%3A//evil.example");
    }

    #[test]
    fn a_full_label_is_continued_only_by_what_does_not_begin_a_url() {
        let full = b"wss://relay.example.com/a-path-of-39-by";
        assert_eq!(full.len(), PIECE_MAX);
        let full_text = std::str::from_utf8(full).unwrap();
        assert_eq!(read(&[full]).unwrap(), [full_text]);
        assert_eq!(read(&[full, b"tes"]).unwrap(), [format!("{full_text}tes")]);
        assert_eq!(read(&[full, b"wss://b.example"]).unwrap(), [full_text, "wss://b.example"]);
        assert_eq!(read(&[full, b"WS://b.example"]).unwrap(), [full_text, "ws://b.example"]);
        assert_eq!(read(&[full, full, b"x"]).unwrap(), [full_text, &format!("{full_text}x")]);
    }

    #[test]
    fn a_label_below_or_above_the_full_length_is_not_continued() {
        let shorter = b"wss://relay.example.com/a-path-of-38-b";
        let longer = b"wss://relay.example.com/a-path-of-40-byt";
        for piece in [&shorter[..], &longer[..]] {
            let text = std::str::from_utf8(piece).unwrap();
            assert_eq!(read(&[piece, b"b.example"]).unwrap(), [text, "wss://b.example"]);
        }
    }

    #[test]
    fn a_long_url_without_scheme_is_joined() {
        let text = "relay.example.com/without/a/scheme/and/over/one/label";
        let (first, second) = text.split_at(PIECE_MAX);
        assert_eq!(read(&[first.as_bytes(), second.as_bytes()]).unwrap(), [format!("wss://{text}")]);
    }

    #[test]
    fn pieces_that_end_within_a_character_are_joined() {
        let text = format!("wss://h/{}é", "a".repeat(PIECE_MAX - 1 - "wss://h/".len()));
        let (first, second) = text.as_bytes().split_at(PIECE_MAX);
        assert_eq!(read(&[first, second]).unwrap(), [text.replace('é', "%C3%A9")]);
    }

    #[test]
    fn only_the_root_slash_is_dropped() {
        for (given, expected) in [
            ("wss://h/", "wss://h"),
            ("wss://h:443/", "wss://h"),
            ("ws://H:7777", "ws://h:7777"),
            ("wss://h/inbox/", "wss://h/inbox/"),
            ("wss://h//", "wss://h//"),
            ("wss://h/?x=1", "wss://h/?x=1"),
            ("wss://h/?x=/", "wss://h/?x=/"),
            ("wss://[::1]:7777/", "wss://[::1]:7777"),
            ("wss://user:pass@h/#there", "wss://h"),
        ] {
            let relay = canonical(&RelayUrl::parse(given).unwrap());
            assert_eq!(relay.as_str(), expected, "{given}");
            assert_eq!(canonical(&relay).as_str(), expected, "{given}");
        }
    }
}
