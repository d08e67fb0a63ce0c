//! The public address of a proxy or an exit, bound before anything is told of it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::RunError;
use super::shutdown::Shutdown;
use crate::config::{ListenAddr, Target};
use crate::direct::{Listener, Rendezvous};
use crate::limits::Limits;

/// Listens where peers are to come to, if that is configured.
///
/// # Errors
/// When the address cannot be listened on.
pub(super) async fn listen(
    address: Option<&Target>,
    listen: Option<&ListenAddr>,
    limits: &Limits,
    shutdown: &Shutdown,
) -> Result<Option<Arc<Rendezvous>>, RunError> {
    let Some(address) = address else { return Ok(None) };
    let bind = |at: SocketAddr| Listener::bind(at, limits.direct_strangers);
    let bound = match listen {
        Some(listen) => {
            let failed = |source| RunError::Listen { address: listen.to_string(), source };
            bind(listen.resolve().await.map_err(failed)?).await
        }
        None => match bind((Ipv6Addr::UNSPECIFIED, address.port()).into()).await {
            Ok(listener) => Ok(listener),
            // A machine without IPv6.
            Err(_) => bind((Ipv4Addr::UNSPECIFIED, address.port()).into()).await,
        },
    };
    let listener = bound.map_err(|error| RunError::Failed(error.to_string()))?;
    tracing::info!(listen = %listener.local_addr(), told = %address, "direct connections are waited for");
    let rendezvous = Rendezvous::new(address.to_string(), limits.direct_waiting);
    tokio::spawn(listener.serve(Arc::clone(&rendezvous), shutdown.token().clone()));
    Ok(Some(rendezvous))
}
