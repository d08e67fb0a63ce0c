//! A byte stream that carries a client's websocket frames (RFC 6455 section 5.2) and fails as soon as a frame's
//! header announces a message above the limit: the library above takes no limit of ours and would gather 64 MiB a
//! client. It reads nothing but headers, and changes nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest frame header: two bytes, eight of length, four of mask.
const HEADER_MAX: usize = 14;

/// Opcodes from here on are control frames, which may come between the fragments of a message.
const FIRST_CONTROL_OPCODE: u8 = 8;

/// The guarded stream.
#[derive(Debug)]
pub(super) struct SizeGuard<S> {
    inner: S,
    frames: FrameSizes,
    exceeded: bool,
}

impl<S> SizeGuard<S> {
    pub(super) const fn new(inner: S, max_message: usize) -> Self {
        Self { inner, frames: FrameSizes::new(max_message as u64), exceeded: false }
    }

    /// Whether the stream has failed for a message that is too long.
    pub(super) const fn is_exceeded(&self) -> bool {
        self.exceeded
    }

    /// The stream beneath, which is somewhere within a frame.
    pub(super) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SizeGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.exceeded {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            let good = this.frames.accept(&buf.filled()[before..]);
            if before + good == buf.filled().len() {
                return Poll::Ready(Ok(()));
            }
            this.exceeded = true;
            // What came before the long message is still served.
            if good > 0 {
                buf.set_filled(before + good);
                return Poll::Ready(Ok(()));
            }
            buf.set_filled(before);
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "websocket message above the limit")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SizeGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Follows the frames of one direction.
#[derive(Debug)]
struct FrameSizes {
    max_message: u64,
    /// Payload bytes that the current message's frames have announced so far.
    message: u64,
    /// Payload bytes of the current frame still to come.
    payload: u64,
    header: [u8; HEADER_MAX],
    header_len: usize,
}

impl FrameSizes {
    const fn new(max_message: u64) -> Self {
        Self { max_message, message: 0, payload: 0, header: [0; HEADER_MAX], header_len: 0 }
    }

    /// How many of the bytes may pass: all, or those up to the last byte of the header that announces too much.
    fn accept(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.payload > 0 {
                let left = bytes.len() - at;
                let step = usize::try_from(self.payload).map_or(left, |payload| payload.min(left));
                self.payload -= step as u64;
                at += step;
                continue;
            }
            self.header[self.header_len] = bytes[at];
            self.header_len += 1;
            if self.header_len >= 2 && self.header_len == self.header_size() {
                if !self.end_of_header() {
                    return at;
                }
                self.header_len = 0;
            }
            at += 1;
        }
        at
    }

    /// How long the header is, by its first two bytes.
    const fn header_size(&self) -> usize {
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        let length = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + mask
    }

    /// Takes the length of a complete header; false when the message grows past the limit.
    fn end_of_header(&mut self) -> bool {
        let extended = |bytes: &[u8]| bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        self.payload = match self.header[1] & 0x7f {
            126 => extended(&self.header[2..4]),
            127 => extended(&self.header[2..10]),
            short => u64::from(short),
        };
        let (is_final, opcode) = (self.header[0] & 0x80 != 0, self.header[0] & 0x0f);
        if opcode >= FIRST_CONTROL_OPCODE {
            return true;
        }
        self.message = self.message.saturating_add(self.payload);
        let fits = self.message <= self.max_message;
        if is_final {
            self.message = 0;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

    fn frame(opcode: OpCode, len: usize, is_final: bool) -> Vec<u8> {
        let mut frame = match opcode {
            OpCode::Data(_) => Frame::message(vec![b'x'; len], opcode, is_final),
            OpCode::Control(_) => Frame::ping(vec![b'x'; len]),
        };
        frame.header_mut().mask = Some([1, 2, 3, 4]);
        let mut bytes = Vec::new();
        frame.format(&mut bytes).unwrap();
        bytes
    }

    const TEXT: OpCode = OpCode::Data(Data::Text);
    const MORE: OpCode = OpCode::Data(Data::Continue);
    const PING: OpCode = OpCode::Control(tokio_tungstenite::tungstenite::protocol::frame::coding::Control::Ping);

    /// Whether the frames pass, in whatever pieces they come.
    fn passes(max: u64, frames: &[Vec<u8>]) -> bool {
        let bytes = frames.concat();
        let verdicts: Vec<bool> = [1, 3, 7, 1000, usize::MAX]
            .into_iter()
            .map(|piece| {
                let mut sizes = FrameSizes::new(max);
                bytes.chunks(piece).all(|chunk| sizes.accept(chunk) == chunk.len())
            })
            .collect();
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "pieces matter: {verdicts:?}");
        verdicts[0]
    }

    #[test]
    fn a_message_at_the_limit_passes_and_one_above_does_not() {
        for max in [1, 100, 125, 126, 1000, 65_535, 65_536, 70_000] {
            assert!(passes(max as u64, &[frame(TEXT, max - 1, true), frame(TEXT, max, true)]));
            assert!(!passes(max as u64, &[frame(TEXT, max, true), frame(TEXT, max + 1, true)]));
        }
    }

    #[test]
    fn fragments_count_together_and_control_frames_between_them_do_not() {
        let parts =
            |last| [frame(TEXT, 50, false), frame(PING, 120, true), frame(MORE, 40, false), frame(MORE, last, true)];
        assert!(passes(100, &parts(10)));
        assert!(!passes(100, &parts(11)));
        assert!(passes(100, &[parts(10).concat(), parts(10).concat()]));
    }

    #[test]
    fn a_length_that_overflows_is_above_every_limit() {
        let huge = |first: u8| [vec![first, 0xff], vec![0xff; 8], vec![0; 4]].concat();
        assert!(!passes(u64::MAX - 1, &[huge(0x81)]));
        assert!(!passes(u64::MAX - 1, &[frame(TEXT, 5, false), huge(0x80)]));
    }

    #[test]
    fn the_bytes_before_a_long_message_pass() {
        let good = frame(TEXT, 10, true);
        let bytes = [good.clone(), frame(TEXT, 300, true)].concat();
        assert!(FrameSizes::new(100).accept(&bytes) >= good.len());
        assert!(FrameSizes::new(100).accept(&bytes) < good.len() + 8);
    }
}
