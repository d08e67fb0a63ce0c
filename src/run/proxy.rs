//! `nws proxy`: listeners before the tunnel.

use std::sync::Arc;

use nostr::RelayUrl;
use tokio::sync::Semaphore;

use super::info::Info;
use super::shutdown::Shutdown;
use super::{RunError, key, reload, trust};
use crate::config::{Config, ProxyConfig, TrustConfig};
use crate::dial::SystemNetwork;
use crate::direct::{Reach, Rendezvous};
use crate::directory::{Directory, RelayLists};
use crate::identity::Identity;
use crate::limits::Limits;
use crate::name::NostrName;
use crate::proxy::exits::{Exits, Via};
use crate::proxy::{Chooser, Gated, Interceptor, Listener, Names, Plan, Router};
use crate::tls::Authority;
use crate::tunnel::{DirectPaths, Tunnel};

/// Runs a proxy until the end is asked for and its connections are done. On SIGHUP, the names are asked of `reread`.
///
/// # Errors
/// When an address cannot be listened on, the key of its identity or of the local authority cannot be used, the information file cannot be written,
/// or the system refuses signals.
pub async fn run(
    config: Config,
    shutdown: Shutdown,
    reread: impl Fn() -> Result<Config, RunError> + Send + 'static,
) -> Result<(), RunError> {
    let failed = |source| RunError::System { what: "cannot wait for signals", source };
    let hangups = reload::hangups().map_err(failed)?;
    let limits = Arc::new(config.limits.clone());
    let slots = Arc::new(Semaphore::new(limits.proxy_connections.min(Semaphore::MAX_PERMITS)));
    let mut listeners = Vec::new();
    for address in &config.proxy.listen {
        let failed = |source| RunError::Listen { address: address.to_string(), source };
        let resolved = address.resolve().await.map_err(failed)?;
        let listener = Listener::bind(resolved).await.map_err(|error| RunError::Failed(error.to_string()))?;
        listeners.push(listener.with_slots(Arc::clone(&slots)));
    }
    let waited = (config.proxy.public_address.as_ref(), config.proxy.public_listen.as_ref());
    let rendezvous = super::direct::listen(waited.0, waited.1, &limits, &shutdown).await?;
    let (tunnel, router) = start_router(&config, &limits, rendezvous)?;
    let names = router.names().clone();
    let reloading = tokio::spawn(reload::follow(hangups, reread, move |config| names.read_again(config.names.clone())));
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
    reloading.abort();
    shutdown.drain().await;
    tunnel.close().await;
    Ok(())
}

/// The ways beside the relays, if there are any.
fn direct(config: &ProxyConfig, limits: &Limits, rendezvous: Option<Arc<Rendezvous>>) -> Option<Arc<DirectPaths>> {
    let reach = config.dial_exits.clone().reachable();
    let reach = reach.map(|reachable| Reach::new(reachable, Arc::new(SystemNetwork), limits));
    let some = rendezvous.is_some() || reach.is_some();
    some.then(|| DirectPaths::new(rendezvous, reach, config.direct_plaintext, limits))
}

/// The tunnel of a proxy, and what goes where through it; `rendezvous` is where exits come to, if they can. Must be called inside a tokio runtime.
///
/// # Errors
/// When the key of its identity or of the local authority cannot be used.
pub(super) fn start_router(
    config: &Config,
    limits: &Arc<Limits>,
    rendezvous: Option<Arc<Rendezvous>>,
) -> Result<(Arc<Tunnel>, Router), RunError> {
    let identity = identity(&config.proxy)?;
    let tunnel = Tunnel::new(config.relays.clone(), Arc::clone(limits)).with_identity(identity);
    let direct = direct(&config.proxy, limits, rendezvous);
    let tunnel = tunnel.through(config.relay_proxy.upstream()).with_direct(direct);
    let tunnel = Arc::new(tunnel);
    let plan = plan(&tunnel, config.proxy.clone(), &config.relays, limits);
    let lookup = if config.proxy.lookup_relays.is_empty() { &config.relays } else { &config.proxy.lookup_relays };
    let lists = RelayLists::new(Arc::clone(&tunnel), lookup.clone(), Arc::clone(limits));
    let router = Router::new(Arc::clone(&tunnel), config.proxy.optimistic)
        .isolating_destinations(config.proxy.isolate_destinations)
        .with_relay_lists(Arc::new(lists))
        .with_names(Names::new(config.names.clone()))
        .with_plan(plan);
    let router = match authority(&config.proxy.trust)? {
        Some(authority) => {
            router.with_interceptor(Interceptor::new(Arc::clone(&tunnel), authority, Arc::clone(limits)))
        }
        None => router,
    };
    Ok((tunnel, router))
}

/// The authority of this machine, if the proxy is to end TLS with it.
fn authority(config: &TrustConfig) -> Result<Option<Authority>, RunError> {
    if !config.enabled {
        return Ok(None);
    }
    let authority = Authority::load(&trust::directory(config)?)?;
    let fingerprint = authority.fingerprint();
    tracing::info!(%fingerprint, "TLS of .nostr names ends here, with certificates of this local authority");
    Ok(Some(authority))
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
