//! The client side: listeners that speak SOCKS5 and HTTP on one port, and the routing of what they ask for.

mod client;
pub mod connect;
mod copy;
mod http;
pub mod listener;
mod open;
mod page;
mod socks;

pub use listener::Listener;
pub use open::Route;
