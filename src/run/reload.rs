//! Reading the configuration again on SIGHUP, while the command runs. What can change is up to the command; a mistake
//! leaves everything as it was.

use std::future::Future;
use std::io;

use futures_util::{Stream, StreamExt, stream};
use tokio::signal::unix::{SignalKind, signal};

use super::RunError;
use crate::config::Config;

/// The SIGHUPs of this process, from now on: the default action, to die, is off once this has returned.
///
/// # Errors
///
/// The system does not let us register for them.
pub fn hangups() -> io::Result<impl Stream<Item = ()> + Send + 'static> {
    let source = signal(SignalKind::hangup())?;
    Ok(stream::unfold(source, |mut source| async move { source.recv().await.map(|()| ((), source)) }))
}

/// Reads the configuration at each signal, and applies it if nothing is wrong with it.
pub fn follow(
    hangups: impl Stream<Item = ()>,
    read: impl Fn() -> Result<Config, RunError>,
    apply: impl Fn(&Config),
) -> impl Future<Output = ()> {
    hangups.for_each(move |()| {
        match read() {
            Ok(config) => {
                apply(&config);
                tracing::info!("the configuration was read again");
            }
            Err(error) => tracing::error!(%error, "the configuration is wrong; that of before stays"),
        }
        std::future::ready(())
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_configuration_that_is_wrong_changes_nothing() {
        let (reads, applied) = (Cell::new(0), Cell::new(0));
        let read = || {
            reads.set(reads.get() + 1);
            if reads.get() == 2 { Err(RunError::Usage("wrong".to_owned())) } else { Ok(Config::default()) }
        };
        follow(stream::iter([(), (), ()]), read, |_| applied.set(applied.get() + 1)).await;
        assert_eq!((reads.get(), applied.get()), (3, 2));
    }
}
