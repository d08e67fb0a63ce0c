//! The client side: listeners that speak SOCKS5 and HTTP on one port, and the routing of what they ask for.

mod by_key;
mod choose;
pub mod connect;
pub mod exits;
mod gate;
mod http;
mod intercept;
pub mod listener;
mod names;
mod open;
mod page;
mod pins;
mod route;
mod socks;

pub use choose::Chooser;
pub use gate::Gated;
pub use intercept::Interceptor;
pub use listener::Listener;
pub use names::{Contested, Names};
pub use open::Route;
pub use route::{Optimistic, Plan, Router};
