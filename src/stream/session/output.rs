//! What is due, made into events: openings first, then acknowledgements and data together.

use std::collections::VecDeque;
use std::time::Instant;

use uuid::Uuid;

use crate::envelope::frame_len;
use crate::message::{self, Message, Type};
use crate::stream::path::Path;

use super::{EARLY_MAX, PathId, Phase, Session, Tongue, Transmit};

/// A chunk smaller than this is not squeezed into the rest of an event while more of its stream waits.
const CHUNK_MIN: usize = 1024;
/// Room that the members beside `data` take at most in a data message: numbers of 20 digits, and its `sack` ranges.
const ACK_ROOM: usize = 110 + SACK_ON_DATA * 44;
/// Most `sack` ranges in a data message: a pure acknowledgement carries more, and costs no room for data.
const SACK_ON_DATA: usize = 8;
/// An acknowledgement follows the peer to a path on which it was heard so lately.
const LATELY: std::time::Duration = std::time::Duration::from_secs(1);
/// How far a path is taken to be of which nothing is known (RFC 9002 section 6.2.2).
const UNKNOWN: std::time::Duration = crate::stream::rtt::INITIAL;
/// Data for so many windows of the nearest path is worth any other path.
const WINDOWS_AHEAD: u32 = 64;
/// Bytes of an event for each byte of a stream, roughly: base64 twice over.
const BYTES_ON_WIRE: u64 = 2;
/// Bytes of an event that streams with nothing under way get ahead of others.
const SPARSE_MAX: usize = 16 * 1024;

/// A chunk shorter than this is not to be acknowledged at once: it tells no delay, and what answers it brings the
/// acknowledgement along.
const PROMPT_MIN: usize = 16 * 1024;

/// What data goes into an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    None,
    /// A little of the streams that have nothing under way.
    Sparse,
    All,
}

/// What room a path must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// For what no window holds back.
    Any,
    /// For a few bytes beyond the window.
    Spare,
    /// In the window, and by its pace.
    Window,
}

impl Room {
    fn is_on(self, now: Instant, path: &Path) -> bool {
        match self {
            Self::Any => true,
            Self::Spare => path.has_spare_room(),
            Self::Window => path.has_window() && path.paced_until(now).is_none(),
        }
    }
}

/// An event that is being filled.
#[derive(Debug)]
struct Parcel {
    /// Length of its plaintext.
    used: usize,
    messages: Vec<Message>,
    /// The chunks in it.
    chunks: Vec<(Uuid, u64)>,
    /// Whether the peer is asked to acknowledge them at once.
    prompt: bool,
}

impl Default for Parcel {
    fn default() -> Self {
        // Brackets of a batch and what stands before it; each message adds its own length and a comma.
        Self { used: 2 + message::BESIDE_HEAD, messages: Vec::new(), chunks: Vec::new(), prompt: false }
    }
}

impl Session {
    /// The next event to publish, if anything is due and some path takes it; `has_room` tells whether the queue of a
    /// relay takes another event now.
    pub fn poll_transmit(&mut self, now: Instant, has_room: &mut dyn FnMut(PathId) -> bool) -> Option<Transmit> {
        let transmit = self.next_transmit(now, has_room);
        self.paced_until = if transmit.is_none() { self.paced_until(now) } else { None };
        transmit
    }

    fn next_transmit(&mut self, now: Instant, has_room: &mut dyn FnMut(PathId) -> bool) -> Option<Transmit> {
        if let Some(transmit) = self.poll_opening(now, has_room) {
            return Some(transmit);
        }
        if let Some(transmit) = self.poll_old(now, has_room) {
            return Some(transmit);
        }
        self.prune_data_queues();
        if let Some(path) = self.reply_path(now, has_room) {
            // Only where data would have gone by itself: an answer on a far path must not take some along.
            let with_data = self.has_data() && self.pick(now, has_room, Room::Window) == Some(path);
            let load = if with_data { Load::All } else { Load::None };
            let with_acks = with_data || self.answer_path(now, has_room) == Some(path);
            if let Some(transmit) = self.pack(now, path, load, with_acks) {
                return Some(transmit);
            }
        }
        if self.has_data()
            && let Some(path) = self.pick(now, has_room, Room::Window)
            && let Some(transmit) = self.pack(now, path, Load::All, true)
        {
            return Some(transmit);
        }
        if !self.sparse_queue.is_empty()
            && let Some(path) = self.pick(now, has_room, Room::Spare)
            && let Some(transmit) = self.pack(now, path, Load::Sparse, true)
        {
            return Some(transmit);
        }
        if !self.ack_queue.is_empty() {
            let path = self.answer_path(now, has_room)?;
            return self.pack(now, path, Load::None, true);
        }
        None
    }

    /// When data that waits may leave, if only its pace holds it back.
    fn paced_until(&self, now: Instant) -> Option<Instant> {
        let held = self.paths.values().filter(|path| path.is_usable(now) && path.has_window());
        held.filter_map(|path| path.paced_until(now)).min().filter(|_| self.has_data())
    }

    /// Where an acknowledgement goes: the nearest of the paths on which the peer has just been heard.
    fn answer_path(&self, now: Instant, has_room: &mut dyn FnMut(PathId) -> bool) -> Option<PathId> {
        let lately = |path: &Path| path.heard.is_some_and(|heard| now.saturating_duration_since(heard) <= LATELY);
        let near = self
            .paths
            .iter()
            .filter(|(id, path)| path.is_usable(now) && lately(path) && has_room(**id))
            .filter_map(|(&id, path)| Some((path.distance()?, id)))
            .min();
        let last = self.last_heard_on.filter(|id| self.usable(now, *id) && has_room(*id));
        // Where the last word came from, until it is known how far that is.
        let unknown = last.filter(|id| self.paths.get(id).is_some_and(|path| path.distance().is_none()));
        unknown.or(near.map(|(_, id)| id)).or(last).or_else(|| self.pick(now, has_room, Room::Any))
    }

    pub(super) fn usable(&self, now: Instant, id: PathId) -> bool {
        self.paths.get(&id).is_some_and(|path| path.is_usable(now))
    }

    /// The path for the next event: the nearest with room, among those where the peer is known to be, unless it is known
    /// on none.
    ///
    /// When the nearest is full, data goes to another only if it arrives sooner there than by waiting for the nearest
    /// (ECF: Lim, Nahum, Towsley, Gibbens: "ECF: An MPTCP Path Scheduler to Manage Heterogeneous Paths", CoNEXT 2017). So
    /// a slow relay carries its share of a long transfer, and never the last bytes of a short one.
    fn pick(&self, now: Instant, has_room: &mut dyn FnMut(PathId) -> bool, room: Room) -> Option<PathId> {
        let usable = || self.paths.iter().filter(|(_, path)| path.is_usable(now));
        let proven_only = usable().any(|(_, path)| path.is_proven());
        let candidates = || usable().filter(|(_, path)| !proven_only || path.is_proven());
        let (&id, path) = candidates()
            .filter(|(id, path)| room.is_on(now, path) && has_room(**id))
            .min_by_key(|(_, path)| path.distance().unwrap_or(UNKNOWN))?;
        let nearest = candidates().min_by_key(|(_, path)| path.distance().unwrap_or(UNKNOWN));
        let waits = room == Room::Window
            && nearest.is_some_and(|(&near, nearest)| near != id && self.had_better_wait(nearest, path));
        (!waits).then_some(id)
    }

    /// Whether what waits to be sent arrives sooner through `near`, which is full, than through `far`.
    fn had_better_wait(&self, near: &Path, far: &Path) -> bool {
        let (Some(near_rtt), Some(far_rtt)) = (near.distance(), far.distance()) else {
            // How far it is, only data can tell.
            return false;
        };
        let lengths = self.with_data().map(|stream| stream.send.next_len() as u64);
        // A longer queue decides nothing more.
        let enough = near.congestion.window().saturating_mul(u64::from(WINDOWS_AHEAD));
        let mut waiting = 0_u64;
        for len in lengths {
            waiting = waiting.saturating_add(len);
            if waiting >= enough {
                return false;
            }
        }
        let windows = u32::try_from(waiting * BYTES_ON_WIRE / near.congestion.window().max(1)).unwrap_or(u32::MAX - 1);
        // A window in slow start doubles each round.
        let rounds = 1 + if near.congestion.is_in_slow_start() { (windows + 1).ilog2() } else { windows };
        // Twice: what goes the long way by mistake holds up everything behind it.
        near_rtt.saturating_mul(rounds) < far_rtt
    }

    fn poll_opening(&mut self, now: Instant, has_room: &mut dyn FnMut(PathId) -> bool) -> Option<Transmit> {
        for _ in 0..self.opening_queue.len() {
            let (key, id) = self.opening_queue.pop_front()?;
            if !self.usable(now, id) {
                continue;
            }
            if !has_room(id) {
                self.opening_queue.push_back((key, id));
                continue;
            }
            let (Some(stream), Some(path)) = (self.streams.get_mut(&key), self.paths.get_mut(&id)) else { continue };
            if let Some(opening) = stream.old.as_ref().and_then(|old| old.opening.as_ref()) {
                let (packet, messages) = (path.note_control(), vec![opening.connect.clone()]);
                return Some(Transmit { opening: Some(key), ..Transmit::new(id, packet, messages) });
            }
            let Phase::Opening(opening) = &mut stream.phase else { continue };
            if !opening.sealed {
                opening.sealed = true;
                // An old peer may take data in the opening or drop it; nobody could tell.
                let early = self.tongue == Tongue::Streams;
                let room = path.plaintext_max.saturating_sub(opening.connect.encoded_len());
                let size = message::data_that_fits(room).min(EARLY_MAX);
                opening.with_data = early;
                if early && let Some(chunk) = stream.send.take_early(size) {
                    opening.early_end = chunk.range.end;
                    opening.connect.data = chunk.data;
                    opening.connect.fin = chunk.fin;
                }
            }
            let messages = vec![opening.connect.clone()];
            let packet = path.note_control();
            if self.tongue == Tongue::Unknown {
                self.note_opening_sent(now, id, packet, key);
            }
            if self.tongue.is_old() {
                self.open_old(now, key);
            }
            self.queue_data(key);
            let wants_ok = self.tongue == Tongue::Unknown;
            return Some(Transmit { opening: Some(key), wants_ok, ..Transmit::new(id, packet, messages) });
        }
        None
    }

    /// Streams whose turn came to nothing meanwhile leave the queue.
    fn prune_data_queues(&mut self) {
        for queue in [&mut self.sparse_queue, &mut self.data_queue] {
            while let Some(&key) = queue.front() {
                match self.streams.get_mut(&key) {
                    Some(stream) if stream.may_send() => break,
                    Some(stream) => stream.queued_data = false,
                    None => {}
                }
                queue.pop_front();
            }
        }
    }

    /// Where the first waiting reply is to go, if it can.
    fn reply_path(&mut self, now: Instant, has_room: &mut dyn FnMut(PathId) -> bool) -> Option<PathId> {
        let wanted = self.replies.front()?.0;
        match wanted {
            Some(id) if !self.usable(now, id) => {
                // That path is gone; any other will do.
                if let Some(front) = self.replies.front_mut() {
                    front.0 = None;
                }
                self.pick(now, has_room, Room::Any)
            }
            Some(id) => has_room(id).then_some(id),
            None => self.answer_path(now, has_room),
        }
    }

    /// Fills one event for a path: replies, then data as far as it fits, then acknowledgements. Without those, only what
    /// must go on this path goes: nothing that is urgent takes a long way because something else must.
    fn pack(&mut self, now: Instant, id: PathId, load: Load, with_acks: bool) -> Option<Transmit> {
        let budget = self.paths.get(&id).map_or(0, |path| path.plaintext_max);
        let mut parcel = Parcel::default();
        let Parcel { used, messages, .. } = &mut parcel;
        let small = budget / 2;
        while let Some((wanted, message)) = self.replies.front() {
            if wanted.map_or(!with_acks, |wanted| wanted != id) || *used > small && !messages.is_empty() {
                break;
            }
            *used += message.encoded_len() + 1;
            messages.extend(self.replies.pop_front().map(|(_, message)| message));
        }
        if load != Load::None {
            let alone = load == Load::All && self.data_queue.is_empty();
            let share = if alone { budget } else { budget.min(SPARSE_MAX) };
            let queue = std::mem::take(&mut self.sparse_queue);
            self.sparse_queue = self.pack_data(now, id, share, queue, &mut parcel);
        }
        if load == Load::All {
            let queue = std::mem::take(&mut self.data_queue);
            let mut rest = self.pack_data(now, id, budget, queue, &mut parcel);
            rest.append(&mut self.data_queue);
            self.data_queue = rest;
        }
        let Parcel { used, messages, .. } = &mut parcel;
        while with_acks && (*used <= small || messages.is_empty()) {
            let Some(key) = self.ack_queue.pop_front() else { break };
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            stream.queued_ack = false;
            if stream.owes_ack() {
                let message = stream.ack_message(now, key);
                *used += message.encoded_len() + 1;
                messages.push(message);
                self.arm(key);
            }
        }
        if messages.is_empty() {
            // What waited has gone along with something else.
            return None;
        }
        let (packet, messages) = self.note_packet(now, id, parcel);
        Some(Transmit::new(id, packet, messages))
    }

    fn note_packet(&mut self, now: Instant, id: PathId, parcel: Parcel) -> (u64, Vec<Message>) {
        let Parcel { used, messages, chunks, prompt } = parcel;
        let Some(path) = self.paths.get_mut(&id) else { return (0, messages) };
        if chunks.is_empty() {
            return (path.note_control(), messages);
        }
        let packet = path.next_packet();
        path.note_sent(now, used, frame_len(used) as u64, chunks, prompt);
        (packet, messages)
    }

    /// Takes a chunk of each stream of a queue, as far as they fit. Gives back those whose turn is still to come; what has
    /// more to send is in line again.
    fn pack_data(
        &mut self,
        now: Instant,
        id: PathId,
        budget: usize,
        mut queue: VecDeque<Uuid>,
        parcel: &mut Parcel,
    ) -> VecDeque<Uuid> {
        let (packet, prompt) =
            self.paths.get(&id).map_or((0, false), |path| (path.next_packet(), path.wants_prompt_answer(now)));
        let Parcel { used, messages, chunks, prompt: asked } = parcel;
        let raw = self.peer_takes_raw;
        while let Some(key) = queue.pop_front() {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            if !stream.may_send() {
                stream.queued_data = false;
                continue;
            }
            let mut message = Message { beside: raw, ..Message::new(key, Type::Data) };
            let room = budget.saturating_sub(*used + ACK_ROOM);
            let room = room.saturating_sub(message.encoded_len());
            let size = if raw { message::data_beside_that_fits(room) } else { message::data_that_fits(room) };
            let enough = size >= stream.send.next_len().min(CHUNK_MIN) && size > 0;
            if !enough && !messages.is_empty() {
                queue.push_front(key);
                break;
            }
            let Some(chunk) = stream.send.next_chunk(size.max(1)) else {
                stream.queued_data = false;
                continue;
            };
            stream.send.sent(&chunk, id, packet);
            stream.note_data_sent(now);
            stream.doubt.note_sent(now);
            stream.fill_ack(now, &mut message, false);
            message.sack.truncate(SACK_ON_DATA);
            message.off = Some(chunk.range.start);
            message.data = chunk.data;
            message.fin = chunk.fin;
            message.probe = prompt && message.data.len() >= PROMPT_MIN;
            *asked |= message.probe;
            chunks.push((key, chunk.range.start));
            *used += message.encoded_len() + 1;
            messages.push(message);
            if stream.may_send() {
                self.data_queue.push_back(key);
            } else {
                stream.queued_data = false;
            }
            self.arm(key);
        }
        queue
    }
}
