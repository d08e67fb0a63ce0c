//! Where websocket messages begin in a stream of bytes, found without unpacking them: only the headers are read
//! (RFC 6455 section 5.2). For the shaper, which counts messages.

/// Longest header: two bytes, eight of length, four of mask.
const HEADER_MAX: usize = 14;
/// What ends the HTTP request before the frames.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Follows one direction of a connection from its first byte on.
pub(crate) struct Frames {
    state: State,
}

enum State {
    /// In the HTTP head, so many bytes of its end seen.
    Head(usize),
    /// In a frame's header.
    Header([u8; HEADER_MAX], usize),
    /// So many bytes of a frame are left.
    Payload(u64),
}

impl Frames {
    pub(crate) const fn new() -> Self {
        Self { state: State::Head(0) }
    }

    /// Where in the next bytes a text or binary message begins.
    pub(crate) fn starts(&mut self, bytes: &[u8]) -> Vec<usize> {
        let mut starts = Vec::new();
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match &mut self.state {
                State::Head(seen) => {
                    *seen = if byte == HEAD_END[*seen] { *seen + 1 } else { usize::from(byte == b'\r') };
                    if *seen == HEAD_END.len() {
                        self.state = State::Header([0; HEADER_MAX], 0);
                    }
                    at += 1;
                }
                State::Header(header, len) => {
                    // Pings are no messages, and continuations no new ones.
                    if *len == 0 && matches!(byte & 0x0f, 1 | 2) {
                        starts.push(at);
                    }
                    header[*len] = byte;
                    *len += 1;
                    at += 1;
                    if let Some(payload) = payload(&header[..*len]) {
                        self.state = State::Payload(payload);
                    }
                }
                State::Payload(0) => self.state = State::Header([0; HEADER_MAX], 0),
                State::Payload(left) => {
                    let step = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= step as u64;
                    at += step;
                }
            }
        }
        starts
    }
}

/// The length of the payload, once the header is complete.
fn payload(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let (extra, mask) = (
        match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        },
        if second & 0x80 == 0 { 0 } else { 4 },
    );
    if header.len() < 2 + extra + mask {
        return None;
    }
    let long = header[2..2 + extra].iter().fold(0, |length, &byte| length << 8 | u64::from(byte));
    Some(if extra == 0 { u64::from(second & 0x7f) } else { long })
}
