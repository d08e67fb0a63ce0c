//! The client side: listeners that speak SOCKS5 and HTTP on one port, and the routing of what they ask for.

mod choose;
pub mod connect;
pub mod exits;
mod gate;
mod http;
pub mod listener;
mod open;
mod page;
mod route;
mod socks;

pub use choose::Chooser;
pub use gate::Gated;
pub use listener::Listener;
pub use open::Route;
pub use route::{Optimistic, Plan, Router};
