//! The client side: listeners that speak SOCKS5 and HTTP on one port, and the routing of what they ask for.

pub mod connect;
