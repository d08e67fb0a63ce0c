//! Asking a route for a stream: the trait that the front ends are generic over, the time limit, the log line of a
//! failure. Not a route itself.

use std::time::Duration;

use tower::{Service, ServiceExt};
use tracing::debug;

use super::connect::{BoxedIo, Connect};
use crate::{Error, ErrorKind};

/// What answers a [`Connect`] with a byte stream: the tunnel, a test's direct dialler, or layers around either.
///
/// A route owns the `early_data` it is given: it sends these bytes first and exactly once, with the opening or
/// behind it; the front end has taken them out of the client's socket and will not send them again. Dropping the
/// future of a call ends the attempt. Dropping the stream resets it; `shutdown` ends the writing direction only.
pub trait Route:
    Service<Connect, Response = BoxedIo, Error = Error, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Route for S where
    S: Service<Connect, Response = BoxedIo, Error = Error, Future: Send> + Clone + Send + Sync + 'static
{
}

/// Opens a stream, or says why not within `limit`.
pub(super) async fn open<S: Route>(route: S, connect: Connect, limit: Duration) -> Result<BoxedIo, Error> {
    let destination = connect.destination.clone();
    debug!(%destination, early = connect.early_data.len(), "opening");
    let outcome = tokio::time::timeout(limit, route.oneshot(connect)).await.unwrap_or_else(|_| {
        let seconds = limit.as_secs_f32();
        Err(Error::new(ErrorKind::Timeout, format!("{destination} did not answer within {seconds} s; is it running?")))
    });
    if let Err(error) = &outcome {
        error.log("could not open a stream");
        debug!(%destination, %error, "could not open");
    }
    outcome
}
