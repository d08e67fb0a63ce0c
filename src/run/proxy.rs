//! `nws proxy`: listeners before the tunnel.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::RunError;
use super::info::Info;
use super::shutdown::Shutdown;
use crate::config::Config;
use crate::proxy::{Listener, Router};
use crate::tunnel::Tunnel;

/// Runs a proxy until the end is asked for and its connections are done.
///
/// # Errors
/// When an address cannot be listened on or the information file cannot be written.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    let limits = Arc::new(config.limits);
    let slots = Arc::new(Semaphore::new(limits.proxy_connections.min(Semaphore::MAX_PERMITS)));
    let mut listeners = Vec::new();
    for address in &config.proxy.listen {
        let failed = |source| RunError::Listen { address: address.to_string(), source };
        let resolved = address.resolve().await.map_err(failed)?;
        let listener = Listener::bind(resolved).await.map_err(|error| RunError::Failed(error.to_string()))?;
        listeners.push(listener.with_slots(Arc::clone(&slots)));
    }
    let tunnel = Arc::new(Tunnel::new(config.relays, Arc::clone(&limits)));
    let addresses: Vec<_> = listeners.iter().map(Listener::local_addr).collect();
    for listener in listeners {
        let (token, tracker) = (shutdown.token().clone(), shutdown.tracker().clone());
        let router = Router::new(Arc::clone(&tunnel), config.proxy.optimistic);
        tokio::spawn(listener.serve(router, Arc::clone(&limits), token, tracker));
    }
    for address in &addresses {
        tracing::info!(%address, "the proxy listens (SOCKS5 and HTTP)");
    }
    let _info = Info::new(addresses).write_if(config.proxy.info_file.as_deref())?;
    shutdown.requested().await;
    shutdown.drain().await;
    tunnel.close().await;
    Ok(())
}
