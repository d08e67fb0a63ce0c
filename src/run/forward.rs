//! `nws forward`: local ports that lead to one destination each, for programs that know no proxy.

use std::io::{self, Write};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::RunError;
use super::info::Info;
use super::reach::{Reach, Through};
use super::shutdown::Shutdown;
use crate::config::{Config, ListenAddr};
use crate::destination::Destination;
use crate::proxy::{Gated, Listener};

/// A local port, and where its connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where local programs connect to.
    pub listen: ListenAddr,
    /// Where that leads.
    pub to: Destination,
}

/// Forwards until the end is asked for and the connections are done.
///
/// # Errors
/// When an address cannot be listened on, our own tunnel cannot be started, or the information file cannot be written.
pub async fn run(
    config: Config,
    forwards: Vec<Forward>,
    through: Through,
    info_file: Option<std::path::PathBuf>,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let limits = Arc::new(config.limits.clone());
    let slots = Arc::new(Semaphore::new(limits.proxy_connections.min(Semaphore::MAX_PERMITS)));
    let mut listeners = Vec::new();
    for Forward { listen, to } in &forwards {
        let failed = |source| RunError::Listen { address: listen.to_string(), source };
        let address = listen.resolve().await.map_err(failed)?;
        let listener = Listener::bind(address).await.map_err(|error| RunError::Failed(error.to_string()))?;
        listeners.push((listener.with_slots(Arc::clone(&slots)), to.clone()));
    }
    let to: Vec<_> = forwards.into_iter().map(|forward| forward.to).collect();
    let reach = Reach::find(&config, &through, &to, &limits).await?;
    let route = Gated::new(reach.clone(), Arc::clone(&limits));
    let mut text = String::new();
    let mut addresses = Vec::new();
    for (listener, to) in listeners {
        let address = listener.local_addr();
        text.push_str(&format!("{address} -> {to}\n"));
        addresses.push(address);
        let (token, tracker) = (shutdown.token().clone(), shutdown.tracker().clone());
        tokio::spawn(listener.forward(route.clone(), to, Arc::clone(&limits), token, tracker));
    }
    // Nobody may be reading; the ports work all the same.
    let _ = io::stdout().write_all(text.as_bytes());
    let _info = Info::new(addresses).write_if(info_file.as_deref())?;
    shutdown.requested().await;
    shutdown.drain().await;
    reach.close().await;
    Ok(())
}
