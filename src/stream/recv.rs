//! The receiving half of a stream: bytes put in order, duplicates dropped, credit given as the reader takes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use crate::message::SACK_RANGES;

/// Most pieces held out of order: a peer that sends single bytes must not cost a map entry each without end.
const PIECES_MAX: usize = 4096;

/// A reader that takes half its window within this many round trips has it doubled.
const GROWTH_ROUND_TRIPS: u32 = 4;
/// A round trip is not taken for shorter here: ours tells nothing of the queue that the peer's bytes stand in.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(100);

/// What a received piece was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// New bytes, in order or with the gap of before.
    New,
    /// New bytes that open or fill a gap: worth telling the sender at once.
    Notable,
    /// Nothing new: our acknowledgement may have been lost.
    Duplicate,
}

/// The peer sent what it must not: bytes beyond its credit, or beyond its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation(pub(super) &'static str);

/// See the module.
#[derive(Debug)]
pub(super) struct RecvBuffer {
    /// Bytes in order that the reader has not taken.
    ready: VecDeque<Bytes>,
    ready_len: usize,
    /// Pieces above `next`, not overlapping.
    pieces: BTreeMap<u64, Bytes>,
    pieces_len: usize,
    /// Every offset below has arrived, the `fin`'s included.
    next: u64,
    /// The offset of the `fin`, once known.
    fin: Option<u64>,
    /// Offset of the next byte that the reader takes.
    read: u64,
    /// Credit that the peer has been given.
    max: u64,
    window: u64,
    window_max: u64,
    /// Where the reader was when credit was last given, and when.
    given_at: (u64, Option<Instant>),
}

impl RecvBuffer {
    pub(super) fn new(window: u64, window_max: u64) -> Self {
        Self {
            ready: VecDeque::new(),
            ready_len: 0,
            pieces: BTreeMap::new(),
            pieces_len: 0,
            next: 0,
            fin: None,
            read: 0,
            max: window,
            window,
            window_max,
            given_at: (0, None),
        }
    }

    /// Takes a piece in.
    pub(super) fn receive(&mut self, off: u64, mut data: Bytes, fin: bool) -> Result<Received, Violation> {
        let end = off.checked_add(data.len() as u64).ok_or(Violation("offset out of range"))?;
        // A fin without credit for its own offset is let pass: it costs no memory.
        if end > self.max {
            return Err(Violation("bytes beyond the credit"));
        }
        if fin && self.fin.is_some_and(|at| at != end) || self.fin.is_some_and(|at| end > at) {
            return Err(Violation("bytes beyond the end of the stream"));
        }
        if fin && self.highest() > end {
            return Err(Violation("the end of the stream lies before bytes that arrived"));
        }
        let mut notable = false;
        let mut news = false;
        if fin && self.fin.is_none() {
            self.fin = Some(end);
            news = true;
        }
        let mut start = off;
        if start < self.next {
            let known = (self.next - start).min(data.len() as u64);
            data.advance(usize::try_from(known).unwrap_or(usize::MAX));
            start += known;
        }
        if !data.is_empty() {
            let had_gaps = !self.pieces.is_empty();
            if start == self.next && !had_gaps {
                // The common case on a relay that keeps order.
                self.append(data);
                news = true;
            } else {
                news |= self.insert(start, data);
                notable |= news;
            }
        }
        self.drain_in_order();
        Ok(match (news, notable) {
            (_, true) => Received::Notable,
            (true, _) => Received::New,
            _ => Received::Duplicate,
        })
    }

    /// The offset behind the highest byte that has arrived.
    fn highest(&self) -> u64 {
        self.pieces.last_key_value().map_or(0, |(&start, piece)| start + piece.len() as u64).max(self.next_byte())
    }

    /// `next`, without the offset of a `fin` that has been passed.
    fn next_byte(&self) -> u64 {
        self.fin.map_or(self.next, |fin| self.next.min(fin))
    }

    fn append(&mut self, data: Bytes) {
        self.next += data.len() as u64;
        self.ready_len += data.len();
        self.ready.push_back(data);
    }

    /// Stores what of a piece is not there yet; false when all of it is.
    fn insert(&mut self, mut start: u64, mut data: Bytes) -> bool {
        let mut news = false;
        if let Some((&before, piece)) = self.pieces.range(..=start).next_back() {
            let covered = (before + piece.len() as u64).saturating_sub(start).min(data.len() as u64);
            data.advance(usize::try_from(covered).unwrap_or(usize::MAX));
            start += covered;
        }
        while !data.is_empty() {
            let following = self.pieces.range(start..).next().map(|(&at, piece)| (at, piece.len() as u64));
            let gap = following.map_or(data.len() as u64, |(at, _)| (at - start).min(data.len() as u64));
            if gap > 0 {
                if self.pieces.len() >= PIECES_MAX && start != self.next {
                    // Not acknowledged, so the peer sends it again when there is room.
                    return news;
                }
                let piece = data.split_to(usize::try_from(gap).unwrap_or(usize::MAX));
                self.pieces_len += piece.len();
                self.pieces.insert(start, piece);
                news = true;
                start += gap;
            }
            if let Some((_, len)) = following {
                let skip = len.min(data.len() as u64);
                data.advance(usize::try_from(skip).unwrap_or(usize::MAX));
                start += skip;
            }
        }
        news
    }

    fn drain_in_order(&mut self) {
        while let Some(entry) = self.pieces.first_entry().filter(|entry| *entry.key() == self.next) {
            let piece = entry.remove();
            self.pieces_len -= piece.len();
            self.append(piece);
        }
        if self.fin == Some(self.next) {
            self.next += 1;
        }
    }

    /// The peer cannot be asked to wait: it may send as much as the widest window holds.
    pub(super) fn open_wide(&mut self) {
        self.window = self.window_max;
        self.max = self.max.max(self.read + self.window);
    }

    /// Ends the direction here, with what has arrived: the peer has no way to say so.
    pub(super) fn end_here(&mut self) {
        if self.fin.is_none() {
            self.fin = Some(self.next);
            self.next += 1;
        }
    }

    /// Every offset below it has arrived.
    pub(super) const fn ack(&self) -> u64 {
        self.next
    }

    /// Ranges above [`Self::ack`] that have arrived, highest first.
    pub(super) fn sack(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (&start, piece) in self.pieces.iter().rev() {
            let end = start + piece.len() as u64;
            let full = ranges.len() == SACK_RANGES;
            match ranges.last_mut() {
                Some(last) if last.0 == end => last.0 = start,
                _ if full => break,
                _ => ranges.push((start, end)),
            }
        }
        ranges
    }

    /// Copies bytes to the reader; 0 when none are ready.
    pub(super) fn read(&mut self, into: &mut impl bytes::BufMut) -> usize {
        let mut total = 0;
        while into.has_remaining_mut()
            && let Some(front) = self.ready.front_mut()
        {
            let len = front.len().min(into.remaining_mut());
            into.put_slice(&front[..len]);
            front.advance(len);
            total += len;
            if front.is_empty() {
                self.ready.pop_front();
            }
        }
        self.ready_len -= total;
        self.read += total as u64;
        total
    }

    /// The first bytes that the reader would take.
    pub(super) fn peek(&self) -> Option<Bytes> {
        self.ready.front().cloned()
    }

    /// Whether the reader has bytes to take.
    pub(super) fn is_readable(&self) -> bool {
        self.ready_len > 0
    }

    /// Whether everything has arrived, the `fin` included.
    pub(super) fn is_finished(&self) -> bool {
        self.fin.is_some_and(|fin| self.next > fin)
    }

    /// Whether the reader has taken everything up to the end.
    pub(super) fn is_read_to_end(&self) -> bool {
        self.is_finished() && self.ready_len == 0
    }

    /// The credit that the peer has.
    pub(super) const fn max(&self) -> u64 {
        self.max
    }

    /// Gives credit as the reader takes, and widens the window of a reader that takes half of it within a few round trips.
    /// Where memory is scarce, credit is only given with every half, and goes no further than `ceiling`. True when the peer
    /// is to be told at once, and not with the next acknowledgement.
    pub(super) fn give_credit(&mut self, now: Instant, round_trip: Duration, ceiling: Option<u64>) -> bool {
        let (given, at) = self.given_at;
        if self.fin.is_some() {
            return false;
        }
        if self.read - given < self.window / 2 {
            if ceiling.is_none() {
                self.max = self.max.max(self.read + self.window);
            }
            return false;
        }
        if let Some(ceiling) = ceiling {
            self.window = self.window.min(ceiling);
        }
        let soon = round_trip.max(ROUND_TRIP_MIN) * GROWTH_ROUND_TRIPS;
        if ceiling.is_none() && at.is_none_or(|at| now.saturating_duration_since(at) < soon) {
            self.window = (self.window * 2).min(self.window_max);
        }
        self.given_at = (self.read, Some(now));
        self.max = self.max.max(self.read + self.window);
        true
    }

    /// Ends the receiving: what has arrived in order and was not taken, and the offset of the byte that would be next.
    pub(super) fn take_rest(&mut self) -> (VecDeque<Bytes>, u64) {
        self.ready_len = 0;
        (std::mem::take(&mut self.ready), self.next_byte())
    }

    /// Bytes held in memory.
    pub(super) const fn held(&self) -> usize {
        self.ready_len + self.pieces_len
    }
}
