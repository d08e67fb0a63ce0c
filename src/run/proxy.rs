//! `nws proxy`: listeners before the tunnel.

use std::sync::Arc;

use nostr::RelayUrl;
use tokio::sync::Semaphore;

use super::info::Info;
use super::shutdown::Shutdown;
use super::{RunError, key};
use crate::config::{Config, ProxyConfig};
use crate::dial::SystemNetwork;
use crate::direct::Reach;
use crate::directory::Directory;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::name::NostrName;
use crate::proxy::exits::{Exits, Via};
use crate::proxy::{Chooser, Gated, Listener, Plan, Router};
use crate::tunnel::{DirectPaths, Tunnel};

/// Runs a proxy until the end is asked for and its connections are done.
///
/// # Errors
/// When an address cannot be listened on, the key of its identity cannot be used, or the information file cannot be written.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    let limits = Arc::new(config.limits.clone());
    let slots = Arc::new(Semaphore::new(limits.proxy_connections.min(Semaphore::MAX_PERMITS)));
    let mut listeners = Vec::new();
    for address in &config.proxy.listen {
        let failed = |source| RunError::Listen { address: address.to_string(), source };
        let resolved = address.resolve().await.map_err(failed)?;
        let listener = Listener::bind(resolved).await.map_err(|error| RunError::Failed(error.to_string()))?;
        listeners.push(listener.with_slots(Arc::clone(&slots)));
    }
    let identity = identity(&config.proxy)?;
    let direct = direct(&config.proxy, &limits, &shutdown).await?;
    let tunnel = Tunnel::new(config.relays.clone(), Arc::clone(&limits)).with_identity(identity).with_direct(direct);
    let tunnel = Arc::new(tunnel);
    let plan = plan(&tunnel, config.proxy.clone(), &config.relays, &limits);
    let router = Router::new(Arc::clone(&tunnel), config.proxy.optimistic)
        .isolating_destinations(config.proxy.isolate_destinations)
        .with_plan(plan);
    let router = Gated::new(router, Arc::clone(&limits));
    let addresses: Vec<_> = listeners.iter().map(Listener::local_addr).collect();
    for listener in listeners {
        let (token, tracker) = (shutdown.token().clone(), shutdown.tracker().clone());
        tokio::spawn(listener.serve(router.clone(), Arc::clone(&limits), token, tracker));
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

/// The ways beside the relays, if there are any.
async fn direct(
    config: &ProxyConfig,
    limits: &Limits,
    shutdown: &Shutdown,
) -> Result<Option<Arc<DirectPaths>>, RunError> {
    let (address, listen) = (config.public_address.as_ref(), config.public_listen.as_ref());
    let rendezvous = super::direct::listen(address, listen, limits, shutdown).await?;
    let reach = config.dial_exits.clone().reachable();
    let reach = reach.map(|reachable| Reach::new(reachable, Arc::new(SystemNetwork), limits));
    let some = rendezvous.is_some() || reach.is_some();
    Ok(some.then(|| DirectPaths::new(rendezvous, reach, config.direct_plaintext, limits)))
}

/// The identity that is shown to some exits, if there is one.
fn identity(config: &ProxyConfig) -> Result<Option<Identity>, RunError> {
    let Some(path) = &config.identity else { return Ok(None) };
    let keys = key::load_identity(path)?;
    let npub = NostrName::new(keys.public_key(), []).npub();
    tracing::info!(%npub, exits = config.identity_for.len(), "some exits are shown this identity");
    Ok(Some(Identity::new(keys, config.identity_for.iter().map(|exit| exit.0.public_key))))
}

/// What is done with names other than `.nostr`. There is a directory if an exit may have to be found.
fn plan(tunnel: &Arc<Tunnel>, config: ProxyConfig, relays: &[RelayUrl], limits: &Arc<Limits>) -> Plan {
    let ProxyConfig { exit, exclude, rule: rules, .. } = config;
    let of_rules = rules.iter().filter_map(|rule| match &rule.via {
        Via::This(exit) => Some(exit.0.public_key),
        _ => None,
    });
    let wanted: Option<Vec<_>> = match &exit {
        Exits::Any => {
            tracing::warn!(
                "proxy.exit is \"any\": strangers see where this proxy's clients go, and what is not encrypted"
            );
            None
        }
        Exits::Listed(list) => Some(list.iter().map(|exit| exit.0.public_key).chain(of_rules).collect()),
    };
    if relays.is_empty() && exit == Exits::Any {
        tracing::warn!("no exit can be found without relays; give --relay URL, or set relays in the configuration");
    }
    let needed = wanted.as_ref().is_none_or(|wanted| !wanted.is_empty()) && !relays.is_empty();
    let directory = needed.then(|| {
        let links: Vec<_> = relays.iter().map(|relay| tunnel.link(relay)).collect();
        Arc::new(Directory::start(&links, wanted, Arc::clone(limits)))
    });
    let chooser = Chooser::new(Arc::clone(tunnel), directory, exit, exclude);
    Plan { rules, chooser, network: Arc::new(SystemNetwork), dial_timeout: limits.dial_timeout }
}
