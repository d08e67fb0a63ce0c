//! The messages of NIP-74 and their codec, the only one in the program: JSON text to [`Message`] and back, one
//! message or a batch (a JSON array), with the optional members of `docs/protocol.md` section 3.
//!
//! Between peers that both said `raw`, data travels beside the JSON instead of in base64 within it, which is a quarter
//! less to encrypt, hash and pass on: a zero byte, the length of the JSON (16 bits, big endian), the JSON, and then the
//! bytes of each of its messages with a `len`, in order.
//!
//! Encryption and events are in [`crate::envelope`]; what the members mean over time is in [`crate::stream`].

use std::borrow::Cow;

use base64_simd::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::error::Error;

mod direct;

pub use self::direct::{Direct, Failed, Offer, SECRET_LEN};

/// The version of reliable streams that this program speaks (member `nws`).
pub const VERSION: u32 = 1;

/// Most ranges in a `sack`: enough for a relay that delivers a batch in random order, and still a small message.
pub const SACK_RANGES: usize = 32;

/// Most messages in a batch: more would be a way to make a receiver work for little.
pub const BATCH_MESSAGES: usize = 1024;

/// The `type` of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Type {
    /// Opens a stream.
    Connect,
    /// Opens a stream whose bytes go over a connection back to the client.
    ConnectReverse,
    /// Bytes, as NIP-74 names it.
    #[default]
    Data,
    /// Bytes, as the Go program names it, in both directions.
    Socks5Response,
    /// An acknowledgement; also the acceptance of a `CONNECT`.
    Ack,
    /// Both directions end now.
    Reset,
    /// A type of a later version, to be ignored.
    Other(String),
}

impl Type {
    /// The text on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Connect => "CONNECT",
            Self::ConnectReverse => "CONNECTR",
            Self::Data => "DATA",
            Self::Socks5Response => "SOCKS5RESPONSE",
            Self::Ack => "ACK",
            Self::Reset => "RESET",
            Self::Other(text) => text,
        }
    }
}

impl From<Cow<'_, str>> for Type {
    fn from(text: Cow<'_, str>) -> Self {
        match &*text {
            "CONNECT" => Self::Connect,
            "CONNECTR" => Self::ConnectReverse,
            "DATA" => Self::Data,
            "SOCKS5RESPONSE" => Self::Socks5Response,
            "ACK" => Self::Ack,
            "RESET" => Self::Reset,
            _ => Self::Other(text.into_owned()),
        }
    }
}

/// One message. Members that a message does not carry are `None` or empty, and stay out of the JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Which stream.
    pub key: Uuid,
    /// What it is for.
    pub kind: Type,
    /// Bytes of the stream.
    pub data: Bytes,
    /// Whether `data` travels beside the JSON: only to a peer that takes it (`raw`).
    pub beside: bool,
    /// Host and port to connect to, in a `CONNECT`.
    pub destination: Option<String>,
    /// The port to connect to, where `destination` names a host without one: what the deployed exit takes.
    pub port: Option<u16>,
    /// Where the exit may connect back to, in a `CONNECTR`.
    pub entry_public_address: Option<String>,
    /// Version of reliable streams offered or accepted.
    pub nws: Option<u32>,
    /// The sender takes data beside the JSON.
    pub raw: bool,
    /// Offset of the first byte of `data` in its direction.
    pub off: Option<u64>,
    /// Nothing follows the last byte of `data`; takes one offset of its own.
    pub fin: bool,
    /// Every offset below it has arrived in order.
    pub ack: Option<u64>,
    /// Ranges that arrived above `ack`, highest first, at most [`SACK_RANGES`].
    pub sack: Vec<(u64, u64)>,
    /// The peer may send offsets below it; never shrinks.
    pub max: Option<u64>,
    /// Asks for an `ACK` in return: sent when nothing else would make the peer speak.
    pub probe: bool,
    /// Why a stream was reset, for a machine.
    pub code: Option<String>,
    /// Why a stream was reset, for a person.
    pub reason: Option<String>,
    /// Client authorization: a signed event, kept as the JSON text that it came as.
    pub auth: Option<String>,
    /// About a connection beside the relays.
    pub direct: Option<Box<Direct>>,
}

/// Why a plaintext is not a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The text is not JSON, or a member has the wrong type.
    #[error("not a NIP-74 message: {0}")]
    Json(#[from] serde_json::Error),
    /// More than [`BATCH_MESSAGES`] messages in one event.
    #[error("a batch of {0} messages; at most {BATCH_MESSAGES} are taken")]
    BatchTooLong(usize),
    /// Data beside the JSON that is cut short, too long, or said twice.
    #[error("the data beside the JSON is not what its messages say")]
    BadData,
    /// A `sack` range that is empty or backwards.
    #[error("sack range [{0}, {1}) is empty or backwards")]
    BadRange(u64, u64),
}

/// The members as they stand in the JSON; unknown ones are ignored.
#[derive(Deserialize)]
struct Wire<'a> {
    key: Uuid,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Option<Text<'a>>,
    #[serde(default)]
    len: Option<usize>,
    #[serde(default)]
    raw: Option<bool>,
    #[serde(default)]
    destination: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default, rename = "entryPublicAddress")]
    entry_public_address: Option<String>,
    #[serde(default)]
    nws: Option<u32>,
    #[serde(default)]
    off: Option<u64>,
    #[serde(default)]
    fin: Option<bool>,
    #[serde(default)]
    ack: Option<u64>,
    #[serde(default)]
    sack: Option<Vec<(u64, u64)>>,
    #[serde(default)]
    max: Option<u64>,
    #[serde(default)]
    probe: Option<bool>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(borrow, default)]
    auth: Option<&'a RawValue>,
    #[serde(default)]
    direct: Option<Box<Direct>>,
}

/// A string that borrows from the JSON: serde would copy the text of a bare `Option<Cow<str>>`.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Wire<'_> {
    /// The message; its data may be the first of the bytes `beside` the JSON.
    fn into_message(self, beside: &mut Bytes) -> Result<Message, MessageError> {
        let wire = self;
        let data = match (wire.len, wire.data) {
            (Some(len), None) if len <= beside.len() => take_beside(beside, len),
            (Some(_), _) => return Err(MessageError::BadData),
            (None, text) => text.map_or_else(Bytes::new, |text| decode_data(text.0)),
        };
        let mut sack = wire.sack.unwrap_or_default();
        sack.truncate(SACK_RANGES);
        if let Some(&(from, to)) = sack.iter().find(|(from, to)| from >= to) {
            return Err(MessageError::BadRange(from, to));
        }
        Ok(Message {
            key: wire.key,
            kind: wire.kind.into(),
            data,
            beside: wire.len.is_some(),
            raw: wire.raw.unwrap_or(false),
            destination: wire.destination.filter(|text| !text.is_empty()),
            port: wire.port,
            entry_public_address: wire.entry_public_address.filter(|text| !text.is_empty()),
            nws: wire.nws,
            off: wire.off,
            fin: wire.fin.unwrap_or(false),
            ack: wire.ack,
            sack,
            max: wire.max,
            probe: wire.probe.unwrap_or(false),
            code: wire.code.filter(|text| !text.is_empty()),
            reason: wire.reason.filter(|text| !text.is_empty()),
            auth: wire.auth.map(|raw| raw.get().to_owned()),
            direct: wire.direct,
        })
    }
}

/// The first `len` bytes, copied where they would hold a much larger event in memory.
fn take_beside(beside: &mut Bytes, len: usize) -> Bytes {
    let whole = beside.len();
    let data = beside.split_to(len);
    if len >= whole / 2 { data } else { Bytes::copy_from_slice(&data) }
}

/// The bytes of a `data` member: base64, or, as in the specification's own example, plain text.
fn decode_data(text: Cow<'_, str>) -> Bytes {
    match BASE64.decode_to_vec(text.as_bytes()) {
        Ok(bytes) => bytes.into(),
        Err(_) => text.into_owned().into_bytes().into(),
    }
}

/// Reads the plaintext of an event: one message, or a batch in order.
///
/// # Errors
/// When the text is not JSON of the right form; a batch is taken whole or not at all.
pub fn decode(plaintext: &[u8]) -> Result<Vec<Message>, MessageError> {
    decode_shared(&Bytes::copy_from_slice(plaintext))
}

/// As [`decode`]; data beside the JSON stays where it is.
///
/// # Errors
/// As [`decode`].
pub fn decode_shared(plaintext: &Bytes) -> Result<Vec<Message>, MessageError> {
    let (json, mut beside) = match **plaintext {
        [0, high, low, ..] => {
            let end = BESIDE_HEAD + usize::from(u16::from_be_bytes([high, low]));
            if end > plaintext.len() {
                return Err(MessageError::BadData);
            }
            (&plaintext[BESIDE_HEAD..end], plaintext.slice(end..))
        }
        _ => (&**plaintext, Bytes::new()),
    };
    let messages = if json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        let batch: Vec<Wire<'_>> = serde_json::from_slice(json)?;
        if batch.len() > BATCH_MESSAGES {
            return Err(MessageError::BatchTooLong(batch.len()));
        }
        batch.into_iter().map(|wire| wire.into_message(&mut beside)).collect::<Result<Vec<_>, _>>()?
    } else {
        let wire: Wire<'_> = serde_json::from_slice(json)?;
        vec![wire.into_message(&mut beside)?]
    };
    if beside.is_empty() { Ok(messages) } else { Err(MessageError::BadData) }
}

/// Writes messages as the plaintext of one event: a single one bare, as every NIP-74 peer expects it, several as a
/// batch.
#[must_use]
pub fn encode(messages: &[Message]) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded_len(messages));
    encode_to(messages, &mut out);
    out
}

/// Appends what [`encode`] gives.
pub(crate) fn encode_to(messages: &[Message], out: &mut Vec<u8>) {
    let start = out.len();
    let beside = messages.iter().any(Message::has_data_beside);
    if beside {
        out.extend_from_slice(&[0; BESIDE_HEAD]);
    }
    if let [single] = messages {
        single.write(out);
    } else {
        out.push(b'[');
        for (index, message) in messages.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            message.write(out);
        }
        out.push(b']');
    }
    if beside {
        // The JSON of one event is shorter than an event, which is shorter than this says.
        let len = u16::try_from(out.len() - start - BESIDE_HEAD).unwrap_or(u16::MAX);
        out[start + 1..start + BESIDE_HEAD].copy_from_slice(&len.to_be_bytes());
        messages.iter().filter(|message| message.beside).for_each(|message| out.extend_from_slice(&message.data));
    }
}

/// The exact length in bytes of what [`encode`] writes.
#[must_use]
pub fn encoded_len(messages: &[Message]) -> usize {
    let head = if messages.iter().any(Message::has_data_beside) { BESIDE_HEAD } else { 0 };
    let sum: usize = head + messages.iter().map(Message::encoded_len).sum::<usize>();
    if messages.len() == 1 { sum } else { sum + 1 + messages.len().max(1) }
}

/// The most bytes of data that fit where `room` characters of JSON are left for them, 0 if none do.
#[must_use]
pub const fn data_that_fits(room: usize) -> usize {
    room.saturating_sub(DATA_MEMBER) / 4 * 3
}

/// As [`data_that_fits`], for data beside the JSON.
#[must_use]
pub const fn data_beside_that_fits(room: usize) -> usize {
    room.saturating_sub(LEN_MEMBER + BESIDE_HEAD)
}

/// Length of `,"data":""`.
const DATA_MEMBER: usize = 10;
/// Length of `,"len":` and five digits.
const LEN_MEMBER: usize = 12;
/// Length of what stands before JSON that has data beside it.
pub const BESIDE_HEAD: usize = 3;

impl Message {
    /// A message of this type for a stream, with no further members.
    #[must_use]
    pub fn new(key: Uuid, kind: Type) -> Self {
        Self { key, kind, ..Self::default() }
    }

    /// A `RESET` that says why.
    #[must_use]
    pub fn reset(key: Uuid, error: &Error) -> Self {
        Self {
            code: Some(error.kind().code().to_owned()),
            reason: Some(error.reason().to_owned()),
            ..Self::new(key, Type::Reset)
        }
    }

    /// Whether any member says that the sender speaks reliable streams.
    #[must_use]
    pub const fn speaks_streams(&self) -> bool {
        self.nws.is_some()
            || self.off.is_some()
            || self.ack.is_some()
            || self.max.is_some()
            || self.code.is_some()
            || self.fin
            || self.probe
    }

    /// The length in bytes of this message as JSON, and of its data where that goes beside it.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let mut counter = Counter(0);
        self.write(&mut counter);
        counter.0 + if self.beside { self.data.len() } else { 0 }
    }

    const fn has_data_beside(&self) -> bool {
        self.beside && !self.data.is_empty()
    }

    /// Writes the members in the order in which the deployed program does, ours after them.
    fn write(&self, out: &mut impl Sink) {
        let mut key = Uuid::encode_buffer();
        out.text("{\"key\":\"");
        out.text(self.key.hyphenated().encode_lower(&mut key));
        out.text("\",\"type\":");
        out.quoted(self.kind.as_str());
        if self.has_data_beside() {
            number_member(out, ",\"len\":", Some(self.data.len() as u64));
        } else if !self.data.is_empty() {
            out.text(",\"data\":\"");
            out.base64(&self.data);
            out.text("\"");
        }
        string_member(out, ",\"destination\":", self.destination.as_deref());
        string_member(out, ",\"entryPublicAddress\":", self.entry_public_address.as_deref());
        number_member(out, ",\"port\":", self.port.map(u64::from));
        number_member(out, ",\"nws\":", self.nws.map(u64::from));
        if self.raw {
            out.text(",\"raw\":true");
        }
        number_member(out, ",\"off\":", self.off);
        if self.fin {
            out.text(",\"fin\":true");
        }
        number_member(out, ",\"ack\":", self.ack);
        if !self.sack.is_empty() {
            out.text(",\"sack\":[");
            for (index, &(from, to)) in self.sack.iter().take(SACK_RANGES).enumerate() {
                out.text(if index == 0 { "[" } else { ",[" });
                out.number(from);
                out.text(",");
                out.number(to);
                out.text("]");
            }
            out.text("]");
        }
        number_member(out, ",\"max\":", self.max);
        if self.probe {
            out.text(",\"probe\":true");
        }
        string_member(out, ",\"code\":", self.code.as_deref());
        string_member(out, ",\"reason\":", self.reason.as_deref());
        if let Some(auth) = &self.auth {
            out.text(",\"auth\":");
            out.text(auth);
        }
        // Text and numbers always become JSON.
        if let Some(direct) = self.direct.as_ref().and_then(|direct| serde_json::to_string(direct).ok()) {
            out.text(",\"direct\":");
            out.text(&direct);
        }
        out.text("}");
    }
}

fn string_member(out: &mut impl Sink, name: &str, value: Option<&str>) {
    if let Some(value) = value.filter(|text| !text.is_empty()) {
        out.text(name);
        out.quoted(value);
    }
}

fn number_member(out: &mut impl Sink, name: &str, value: Option<u64>) {
    if let Some(value) = value {
        out.text(name);
        out.number(value);
    }
}

/// Where a message is written to: the text itself, or only its length.
trait Sink {
    fn text(&mut self, text: &str);
    fn number(&mut self, value: u64);
    fn base64(&mut self, data: &[u8]);

    /// A JSON string with its escapes.
    fn quoted(&mut self, text: &str) {
        if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            self.text("\"");
            self.text(text);
            self.text("\"");
        } else {
            self.text(&serde_json::Value::from(text).to_string());
        }
    }
}

impl Sink for Vec<u8> {
    fn text(&mut self, text: &str) {
        self.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, value: u64) {
        use std::io::Write as _;
        // Writing to memory cannot fail.
        let _ = write!(self, "{value}");
    }

    fn base64(&mut self, data: &[u8]) {
        BASE64.encode_append(data, self);
    }
}

struct Counter(usize);

impl Sink for Counter {
    fn text(&mut self, text: &str) {
        self.0 += text.len();
    }

    fn number(&mut self, value: u64) {
        self.0 += value.checked_ilog10().unwrap_or(0) as usize + 1;
    }

    fn base64(&mut self, data: &[u8]) {
        self.0 += BASE64.encoded_length(data.len());
    }
}
