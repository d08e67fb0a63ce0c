//! The service side: streams that peers ask for, joined to the services that this exit offers, and to nothing else.

mod service;

pub use service::{Exit, Services};
