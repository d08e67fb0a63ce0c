//! The sending half of a stream: bytes not yet acknowledged, what of them is under way and where, what is lost.
//!
//! Offsets count bytes from 0; the `fin` takes one offset of its own behind the last byte.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::ranges::RangeSet;
use super::{PacketId, PathId};

/// Credit before the peer has said its `max` (`docs/protocol.md`, "Opening").
pub(super) const CREDIT_INITIAL: u64 = 64 * 1024;

/// Bytes of memory that an empty buffer may keep for what comes next.
const IDLE_CAPACITY: usize = 2 * 1024;

/// A piece of a stream, as one message carries it.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Its offsets, the `fin`'s included.
    pub(super) range: Range<u64>,
    /// Its bytes.
    pub(super) data: Bytes,
    /// Whether it ends the stream.
    pub(super) fin: bool,
    /// Whether it is under way for the first time, so that its acknowledgement tells a round trip.
    pub(super) first: bool,
}

/// Where a chunk travels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    end: u64,
    pub(super) path: PathId,
    pub(super) packet: PacketId,
    pub(super) first: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct SendBuffer {
    /// The bytes from `base` on.
    bytes: VecDeque<u8>,
    /// Everything below is acknowledged.
    base: u64,
    /// The offset behind the last byte written.
    end: u64,
    /// Whether the `fin` follows `end`.
    finished: bool,
    /// The lowest offset never sent.
    next: u64,
    /// The peer's credit: offsets below it may be sent.
    max: u64,
    /// Acknowledged ranges above `base`.
    acked: RangeSet,
    /// Ranges to send again.
    lost: RangeSet,
    /// Chunks under way by their first offset.
    flights: BTreeMap<u64, Flight>,
    /// Most bytes held, whatever credit the peer gives.
    capacity: u64,
}

impl SendBuffer {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            bytes: VecDeque::new(),
            base: 0,
            end: 0,
            finished: false,
            next: 0,
            max: CREDIT_INITIAL,
            acked: RangeSet::default(),
            lost: RangeSet::default(),
            flights: BTreeMap::new(),
            capacity: capacity.max(CREDIT_INITIAL),
        }
    }

    /// Holds at most so many bytes from now on.
    pub(super) fn limit_to(&mut self, capacity: u64) {
        self.capacity = capacity.max(CREDIT_INITIAL);
    }

    /// How many bytes may be written now: as far as the peer's credit goes, within our own bound.
    pub(super) fn room(&self) -> usize {
        if self.finished {
            return 0;
        }
        let limit = self.max.max(self.base.saturating_add(CREDIT_INITIAL)).min(self.base.saturating_add(self.capacity));
        usize::try_from(limit.saturating_sub(self.end)).unwrap_or(usize::MAX)
    }

    /// Takes as many of the bytes as there is room for and says how many.
    pub(super) fn write(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.room());
        self.bytes.extend(&data[..taken]);
        self.end += taken as u64;
        taken
    }

    /// Ends the direction: the `fin` follows what was written.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    pub(super) const fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether everything, the `fin` included, has arrived.
    pub(super) const fn is_complete(&self) -> bool {
        self.finished && self.base == self.end + 1
    }

    /// Whether everything written has arrived.
    pub(super) const fn is_flushed(&self) -> bool {
        self.base >= self.end + self.finished as u64
    }

    /// Whether something is sent and not acknowledged, or known to be lost.
    pub(super) fn has_outstanding(&self) -> bool {
        self.base < self.next || !self.lost.is_empty()
    }

    /// Whether something waits that may be sent now.
    pub(super) fn has_pending(&self) -> bool {
        !self.lost.is_empty() || self.next < self.limit()
    }

    /// Whether bytes wait for credit and nothing under way could bring some.
    pub(super) fn is_blocked(&self) -> bool {
        !self.has_pending() && self.next < self.end + u64::from(self.finished) && !self.has_outstanding()
    }

    /// The offset behind what may be sent by content and credit.
    fn limit(&self) -> u64 {
        (self.end + u64::from(self.finished)).min(self.max)
    }

    /// Whether sending it next gives a whole message of `size` bytes; false at the tail of what was written.
    pub(super) fn next_len(&self) -> usize {
        let range = self.lost.first().unwrap_or(self.next..self.limit());
        usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)
    }

    /// The next chunk of at most `size` bytes of data (at least 1), what is lost first.
    pub(super) fn next_chunk(&mut self, size: usize) -> Option<Chunk> {
        let (start, limit, first) = match self.lost.first() {
            Some(range) => (range.start, range.end, false),
            None => (self.next, self.limit(), true),
        };
        if start >= limit || size == 0 {
            return None;
        }
        let data_end = limit.min(self.end).min(start.saturating_add(size as u64));
        let fin = self.finished && data_end == self.end && limit > self.end;
        let range = start..data_end.max(start) + u64::from(fin);
        if range.is_empty() {
            return None;
        }
        if first {
            self.next = range.end;
        } else {
            self.lost.remove(range.clone());
        }
        Some(Chunk { data: self.copy(start..data_end.max(start)), fin, first, range })
    }

    /// What travels inside the `CONNECT`: at most `size` bytes, tracked by the opening and not by a flight.
    pub(super) fn take_early(&mut self, size: usize) -> Option<Chunk> {
        debug_assert_eq!(self.next, 0, "early data is what is sent first");
        self.next_chunk(size)
    }

    /// The bytes of a range that is still held.
    fn copy(&self, range: Range<u64>) -> Bytes {
        let index = |offset: u64| usize::try_from(offset - self.base).unwrap_or(usize::MAX);
        let (from, to) = (index(range.start), index(range.end));
        let (front, back) = self.bytes.as_slices();
        let mut out = Vec::with_capacity(to - from);
        out.extend_from_slice(&front[from.min(front.len())..to.min(front.len())]);
        out.extend_from_slice(&back[from.saturating_sub(front.len())..to.saturating_sub(front.len())]);
        out.into()
    }

    /// Notes that a chunk is under way.
    pub(super) fn sent(&mut self, chunk: &Chunk, path: PathId, packet: PacketId) {
        self.flights.insert(chunk.range.start, Flight { end: chunk.range.end, path, packet, first: chunk.first });
    }

    /// Raises the credit; it never shrinks.
    pub(super) fn credit(&mut self, max: u64) -> bool {
        let grown = max > self.max;
        self.max = self.max.max(max);
        grown
    }

    /// Whether the peer acknowledges more than was ever sent: it does not follow the protocol.
    pub(super) const fn is_beyond(&self, offset: u64) -> bool {
        offset > self.next
    }

    /// Counts what was sent as arrived, up to an offset if one is given: the peer has no way to say so.
    pub(super) fn forget_sent(&mut self, up_to: Option<u64>) {
        // What is known to be lost is on its way again, and must stay.
        let lost = self.lost.first().map_or(u64::MAX, |range| range.start);
        self.acknowledge(0..up_to.unwrap_or(self.next).min(lost), &mut Vec::new());
    }

    /// A range that no flight stands for is to be sent again.
    pub(super) fn lose_range(&mut self, range: Range<u64>) {
        self.acked.gaps(range.start.max(self.base)..range.end).into_iter().for_each(|gap| self.lost.insert(gap));
    }

    /// The peer speaks of credit after all: so much it gives, and so much may be held.
    pub(super) fn restore(&mut self, max: u64, capacity: u64) {
        self.max = max.max(self.next);
        self.capacity = capacity.max(CREDIT_INITIAL);
    }

    /// The lowest offset that is still held.
    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    /// Takes an acknowledged range. Returns the flights that have landed with it and whether it told anything new.
    pub(super) fn acknowledge(&mut self, range: Range<u64>, landed: &mut Vec<Flight>) -> bool {
        let range = range.start.max(self.base)..range.end.min(self.next);
        if range.is_empty() || self.acked.contains(&range) {
            return false;
        }
        self.acked.insert(range.clone());
        self.lost.remove(range.clone());
        let before = self.flights.range(..range.start).next_back().map_or(range.start, |(&start, _)| start);
        let done: Vec<u64> = self
            .flights
            .range(before..range.end)
            .filter(|&(&start, flight)| self.acked.contains(&(start.max(self.base)..flight.end)))
            .map(|(&start, _)| start)
            .collect();
        landed.extend(done.into_iter().filter_map(|start| self.flights.remove(&start)));
        if let Some(head) = self.acked.first().filter(|head| head.start <= self.base) {
            self.acked.remove(head.clone());
            self.advance(head.end);
        }
        true
    }

    /// Forgets the bytes below `base`.
    fn advance(&mut self, base: u64) {
        let bytes = usize::try_from(base.min(self.end).saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.bytes.drain(..bytes.min(self.bytes.len()));
        self.base = base;
        // An idle stream must not keep the memory of its busiest moment.
        if self.bytes.is_empty() && self.bytes.capacity() > IDLE_CAPACITY {
            self.bytes.shrink_to_fit();
        }
    }

    /// Whether the first bytes that are not acknowledged are under way in this event.
    pub(super) fn is_head(&self, start: u64, path: PathId, packet: PacketId) -> bool {
        let here = |flight: &Flight| (flight.path, flight.packet) == (path, packet);
        start <= self.base && self.flights.get(&start).is_some_and(here)
    }

    /// A chunk under way is lost: it is to be sent again. False when it has arrived or is on its way anew.
    pub(super) fn lose(&mut self, start: u64, path: PathId, packet: PacketId) -> bool {
        match self.flights.get(&start) {
            Some(flight) if (flight.path, flight.packet) == (path, packet) => {
                let range = start.max(self.base)..flight.end;
                self.flights.remove(&start);
                self.acked.gaps(range).into_iter().for_each(|gap| self.lost.insert(gap));
                true
            }
            _ => false,
        }
    }

    /// The early data did not arrive with the `CONNECT`: all of it above what is acknowledged is to be sent again.
    pub(super) fn lose_early(&mut self, end: u64) {
        self.lose_range(self.base..end.max(self.base));
    }

    /// Everything sent and not acknowledged is to be sent again.
    pub(super) fn lose_sent(&mut self) {
        self.lose_early(self.next);
    }

    /// Ends the sending: the offset from which on nothing is acknowledged in order, and the bytes from there.
    pub(super) fn take_rest(&mut self) -> (u64, Vec<u8>) {
        (self.base.min(self.end), std::mem::take(&mut self.bytes).into())
    }

    /// Every flight, to be taken out of its path's account when the stream ends.
    pub(super) fn take_flights(&mut self) -> Vec<Flight> {
        std::mem::take(&mut self.flights).into_values().collect()
    }

    /// Drops everything: the stream has failed.
    pub(super) fn clear(&mut self) {
        self.bytes = VecDeque::new();
        self.lost = RangeSet::default();
        self.acked = RangeSet::default();
    }

    /// Bytes held in memory.
    pub(super) fn held(&self) -> usize {
        self.bytes.len()
    }
}
