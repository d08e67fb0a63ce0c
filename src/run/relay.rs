//! `nws relay`: the embedded relay, for one box or a LAN.

use super::RunError;
use super::info::Info;
use super::shutdown::Shutdown;
use crate::config::Config;
use crate::relay::server::{RelayServer, RelayServerOptions};

/// Runs a relay until the end is asked for.
///
/// # Errors
/// When its address cannot be listened on or the information file cannot be written.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    let settings = &config.relay;
    let failed = |source| RunError::Listen { address: settings.listen.to_string(), source };
    let address = settings.listen.resolve().await.map_err(failed)?;
    let options = RelayServerOptions {
        max_connections: settings.max_connections,
        max_subscriptions: settings.max_subscriptions,
        events_per_minute: settings.events_per_minute,
        max_message_bytes: usize::try_from(settings.max_message.as_u64()).unwrap_or(usize::MAX),
        ..RelayServerOptions::default()
    };
    let server = RelayServer::bind(address, options).map_err(failed)?;
    let _info = Info::new(vec![server.local_addr()]).write_if(settings.info_file.as_deref())?;
    server.run(shutdown.token().clone()).await;
    Ok(())
}
