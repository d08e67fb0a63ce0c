//! The deployed dialect on the wire: messages as the Go program writes and reads them, the events around them, its
//! rule for destinations, and its names. Written against captured events, without our own codec.

use data_encoding::{BASE32HEX_NOPAD, BASE64};
use nostr::nips::nip19::{Nip19Profile, ToBech32};
use nostr::nips::nip44::v2::{self, ConversationKey};
use nostr::{Event, EventBuilder, Keys, Kind, PublicKey, RelayUrl, Tag};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::support::client::KIND;

/// Opens a connection.
pub const CONNECT: &str = "CONNECT";

/// Opens a connection over a socket back to the entry.
pub const CONNECTR: &str = "CONNECTR";

/// Data, in both directions.
pub const RESPONSE: &str = "SOCKS5RESPONSE";

/// Lengths of plaintext that the exit does not survive.
pub const DEADLY: [usize; 2] = [65_534, 65_535];

/// A message; its members in the order of the wire. Unknown members are ignored, `null` is an absent member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// Which connection.
    pub key: Uuid,
    /// What it is for.
    #[serde(rename = "type", default, deserialize_with = "or_empty")]
    pub kind: String,
    /// Bytes of the connection.
    #[serde(default, skip_serializing_if = "Vec::is_empty", serialize_with = "to_base64", deserialize_with = "base64")]
    pub data: Vec<u8>,
    /// Where to.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_empty")]
    pub destination: String,
    /// Where the exit connects back to.
    #[serde(
        rename = "entryPublicAddress",
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_empty"
    )]
    pub entry_public_address: String,
}

impl Wire {
    /// A message without data.
    #[must_use]
    pub fn new(key: Uuid, kind: &str, destination: &str) -> Self {
        let (kind, destination) = (kind.to_owned(), destination.to_owned());
        Self { key, kind, data: Vec::new(), destination, entry_public_address: String::new() }
    }

    /// A message with data.
    #[must_use]
    pub fn data(key: Uuid, data: &[u8], destination: &str) -> Self {
        Self { data: data.to_vec(), ..Self::new(key, RESPONSE, destination) }
    }

    /// Reads a plaintext; a JSON array, other JSON and bad base64 are no message.
    #[must_use]
    pub fn parse(plaintext: &[u8]) -> Option<Self> {
        // The derived reader would take an array for the members in order.
        if plaintext.trim_ascii_start().first() != Some(&b'{') {
            return None;
        }
        serde_json::from_slice(plaintext).ok()
    }

    /// The plaintext.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and bytes")
    }

    /// The event that carries it, stamped with now.
    #[must_use]
    pub fn seal(&self, from: &Keys, to: &PublicKey) -> Event {
        let conversation = ConversationKey::derive(from.secret_key(), to).expect("a key on the curve");
        let payload = v2::encrypt_to_bytes(&conversation, self.to_json().as_bytes()).expect("it fits");
        event_with(from, to, &BASE64.encode(&payload))
    }
}

/// A tunnel event with this content.
#[must_use]
pub fn event_with(from: &Keys, to: &PublicKey, content: &str) -> Event {
    EventBuilder::new(Kind::from(KIND), content).tag(Tag::public_key(*to)).sign_with_keys(from).expect("it signs")
}

/// Decrypts content (NIP-44 version 2) between these two, in whichever direction it went.
#[must_use]
pub fn open(own: &Keys, peer: &PublicKey, content: &str) -> Option<Vec<u8>> {
    let conversation = ConversationKey::derive(own.secret_key(), peer).ok()?;
    v2::decrypt_to_bytes(&conversation, &BASE64.decode(content.as_bytes()).ok()?).ok()
}

/// What the exit sends as `destination`: the nprofile of the entry.
#[must_use]
pub fn nprofile(key: PublicKey, relay: &RelayUrl) -> String {
    Nip19Profile::new(key, [relay.clone()]).to_bech32().expect("one relay fits")
}

/// The host of a `destination` when the exit's parser takes it: a host with a dot, with or without a port.
#[must_use]
pub fn host(destination: &str) -> Option<&str> {
    let host = match destination.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        Some(_) => return None,
        None => destination,
    };
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (host.contains('.') && host.bytes().all(is_host_byte)).then_some(host)
}

/// The name of a key on these relays.
#[must_use]
pub fn name(key: &PublicKey, relays: &[RelayUrl]) -> String {
    let relays = relays.iter().map(|relay| relay.as_str_without_trailing_slash().as_bytes());
    let labels: Vec<String> =
        relays.chain([&key.as_bytes()[..]]).map(|bytes| BASE32HEX_NOPAD.encode(bytes).to_lowercase()).collect();
    format!("{}.nostr", labels.join("."))
}

/// The key and the relays of a name; `None` for what this program cannot resolve (npub and nprofile among it).
#[must_use]
pub fn resolve(name: &str) -> Option<(PublicKey, Vec<RelayUrl>)> {
    let decode = |label: &str| BASE32HEX_NOPAD.decode(label.to_uppercase().as_bytes()).ok();
    let labels: Vec<Vec<u8>> = name.strip_suffix(".nostr")?.split('.').map(decode).collect::<Option<_>>()?;
    let (key, relays) = labels.split_last()?;
    let relays = relays.iter().map(|relay| RelayUrl::parse(std::str::from_utf8(relay).ok()?).ok());
    Some((PublicKey::from_slice(key).ok()?, relays.collect::<Option<_>>()?))
}

fn or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn to_base64<S: Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(data))
}

fn base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    BASE64.decode(or_empty(deserializer)?.as_bytes()).map_err(serde::de::Error::custom)
}
