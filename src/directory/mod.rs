//! Public exits, as they make themselves known on relays (kind 38333, `docs/protocol.md`, "Announcements"): the one codec
//! of announcements, the exit's side that publishes them, the proxy's side that keeps a list of them. Which exit is
//! used for what is not decided here. Beside them, the relay lists that any key may have (NIP-65).

mod announcement;
mod announcer;
mod known;
mod relay_list;

pub use announcement::{Announcement, IDENTIFIER, KIND_ANNOUNCEMENT, TEXT_MAX};
pub use announcer::{Announcer, Profile};
pub use known::{Directory, Drops, KnownExit};
pub use relay_list::RelayLists;
