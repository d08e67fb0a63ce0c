//! `nws relay`: the embedded relay, for one box or a LAN.

use tokio::net::TcpListener;

use super::info::Info;
use super::shutdown::Shutdown;
use super::sockets::Inherited;
use super::{RunError, manager, reload};
use crate::config::Config;
use crate::relay::server::{RelayServer, RelayServerOptions};

/// Sections that mean nothing to a relay.
const FOREIGN: &[&str] = &["relays", "proxy", "exit", "dns", "transparent", "limits"];

/// Runs a relay until the end is asked for. It listens on the socket that the service manager holds for it, if there is
/// one. On SIGHUP the configuration is asked of `reread`: of a relay, what is logged can change.
///
/// # Errors
/// When its address cannot be listened on or the information file cannot be written.
pub async fn run(
    config: Config,
    inherited: Inherited,
    shutdown: Shutdown,
    reread: impl Fn() -> Result<Config, RunError> + Send + 'static,
) -> Result<(), RunError> {
    let hangups = reload::signals()?;
    manager::starting("Starting");
    let settings = &config.relay;
    let failed = |source| RunError::Listen { address: settings.listen.to_string(), source };
    let options = RelayServerOptions {
        max_connections: settings.max_connections,
        max_subscriptions: settings.max_subscriptions,
        events_per_minute: settings.events_per_minute,
        max_message_bytes: usize::try_from(settings.max_message.as_u64()).unwrap_or(usize::MAX),
        ..RelayServerOptions::default()
    };
    let server = match inherited.clients.into_iter().next() {
        Some(socket) => TcpListener::from_std(socket).and_then(|socket| RelayServer::over(socket, options)),
        None => match settings.listen.resolve().await {
            Ok(address) => RelayServer::bind(address, options),
            Err(error) => Err(error),
        },
    };
    let server = server.map_err(failed)?;
    let address = server.local_addr();
    let _info = Info::new(vec![address]).write_if(settings.info_file.as_deref())?;
    let connections = server.count();
    manager::ready(shutdown.token().clone(), move || format!("Listening on {address}; {} connections", connections()));
    let reloading = reload::follow(hangups, reread, config.clone(), FOREIGN, |_, _| {});
    tokio::spawn(shutdown.token().clone().run_until_cancelled_owned(reloading));
    server.run(shutdown.token().clone()).await;
    Ok(())
}
