//! Connections of programs that know no proxy: they were made to an address that stands for a name, and redirected here
//! by the system (nftables, `SO_ORIGINAL_DST`). Which address stands for which name is in [`crate::dns::Book`].
//!
//! The system has accepted the connection before we hear of it, so a failure can only be a reset.

use std::net::IpAddr;

use tracing::debug;

use super::connect::{Connect, Destination, EARLY_DATA_MAX, Host};
use super::listener::Front;
use super::open::{Route, open};
use crate::dns::Book;
use crate::tunnel::copy::copy;
use crate::tunnel::socket::Socket;

/// Serves one redirected connection.
pub(super) async fn serve<S: Route>(client: Socket, front: &Front<S>, book: &Book) {
    let original = match client.original_destination() {
        Ok(original) => original,
        Err(error) => {
            debug!(%error, "a connection that nobody has redirected");
            return client.end_with_reset();
        }
    };
    // Without a redirection the destination is where we listen: to connect there would be to come here again.
    if client.local_address().is_ok_and(|local| local == original) {
        debug!("a connection that was made to the transparent listener itself");
        return client.end_with_reset();
    }
    let host = match original.ip() {
        IpAddr::V4(ip) if book.has(ip) => match book.name_of(ip) {
            Some(name) => Host::Name(name),
            None => {
                debug!("a connection to an address that stands for no name");
                return client.end_with_reset();
            }
        },
        ip => Host::Ip(ip),
    };
    let connect = Connect {
        destination: Destination { host, port: original.port() },
        early_data: client.take_ready(EARLY_DATA_MAX),
        eager: true,
        isolation: front.isolation(&client, None),
    };
    let outcome = tokio::select! {
        outcome = open(front.route.clone(), connect, front.limits.open_timeout) => outcome,
        () = client.reset() => return debug!("the client left before its stream was open"),
    };
    match outcome {
        Ok(stream) => copy(client.clone(), stream, &client).await,
        Err(_) => client.end_with_reset(),
    }
}
