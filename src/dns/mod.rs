//! `.nostr` names for programs that know no proxy: a resolver that answers them with addresses of a range of its own
//! (`server.rs`, over TCP `connections.rs`), and the book of which address stands for which name (`book.rs`). Whoever connects to such an address is
//! led to its name by the proxy's transparent listener, which is not here (`proxy::transparent`).

mod book;
mod connections;
mod server;

pub use book::{Book, BookError};
pub use server::{Resolver, Upstream};
