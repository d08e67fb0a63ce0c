//! `nws proxy`: listeners before the tunnel.

use std::sync::Arc;
use std::time::Duration;

use nostr::{Keys, PublicKey, RelayUrl};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use super::info::Info;
use super::shutdown::Shutdown;
use super::sockets::Inherited;
use super::{RunError, key, manager, reload, system_wide, trust};
use crate::config::{Config, ProxyConfig, TrustConfig};
use crate::dial::SystemNetwork;
use crate::direct::{Reach, Rendezvous};
use crate::directory::{Directory, RelayLists};
use crate::identity::Identity;
use crate::limits::Limits;
use crate::name::NostrName;
use crate::proxy::exits::{Exits, Rule, Via};
use crate::proxy::{Chooser, Gated, Interceptor, Listener, Names, Plan, Router};
use crate::relay::Notice;
use crate::tls::Authority;
use crate::tunnel::{DirectPaths, Tunnel};

/// Sections that mean nothing to a proxy.
const FOREIGN: &[&str] = &["exit", "relay"];

/// Runs a proxy until the end is asked for and its connections are done. It serves the sockets that the service manager
/// holds for it, and binds its own only if there are none. On SIGHUP, exits, rules and names are asked of `reread`.
///
/// # Errors
/// When an address cannot be listened on, the key of its identity or of the local authority cannot be used, the
/// information file cannot be written, or the system refuses signals.
pub async fn run(
    config: Config,
    inherited: Inherited,
    shutdown: Shutdown,
    reread: impl Fn() -> Result<Config, RunError> + Send + 'static,
) -> Result<(), RunError> {
    let hangups = reload::signals()?;
    manager::starting("Looking for a relay");
    let limits = Arc::new(config.limits.clone());
    let slots = Arc::new(Semaphore::new(limits.proxy_connections.min(Semaphore::MAX_PERMITS)));
    let mut inherited = inherited;
    let listeners = listeners(&config.proxy, std::mem::take(&mut inherited.clients)).await?;
    let waited = (config.proxy.public_address.as_ref(), config.proxy.public_listen.as_ref());
    let rendezvous = super::direct::listen(waited.0, waited.1, &limits, &shutdown).await?;
    let (tunnel, router, plan) = start_router(&config, &limits, rendezvous)?;
    let kept = router.names();
    let mut names = system_wide::Names::bind(&config, inherited, kept.clone()).await?;
    let gated = Gated::new(router.clone(), Arc::clone(&limits));
    let addresses: Vec<_> = listeners.iter().map(Listener::local_addr).collect();
    let mut info = Info::new(addresses.clone());
    let redirected = std::mem::take(&mut names.transparent);
    info.transparent = redirected.iter().map(Listener::local_addr).collect();
    info.dns.clone_from(&names.dns);
    for address in &info.transparent {
        tracing::info!(%address, "the proxy listens (redirected connections)");
    }
    for listener in listeners.into_iter().chain(redirected) {
        let (token, tracker) = (shutdown.token().clone(), shutdown.tracker().clone());
        let listener = listener.with_slots(Arc::clone(&slots));
        tokio::spawn(listener.serve(gated.clone(), Arc::clone(&limits), token, tracker));
    }
    for address in &addresses {
        tracing::info!(%address, "the proxy listens (SOCKS5 and HTTP)");
    }
    let answering = tokio::spawn(names.serve(shutdown.token().clone()));
    let _info = info.write_if(config.proxy.info_file.as_deref())?;
    let reloading = reload::follow(hangups, reread, config.clone(), FOREIGN, {
        let (tunnel, limits, relays) = (Arc::clone(&tunnel), Arc::clone(&limits), config.relays.clone());
        let mut plan = plan;
        move |running, new| {
            kept.read_again(new.names.clone());
            running.names.clone_from(&new.names);
            take_over(&mut running.proxy, &new.proxy, |proxy, keeps_exits| {
                plan = match keeps_exits {
                    true => Plan { rules: proxy.rule.clone(), ..plan.clone() },
                    false => self::plan(&tunnel, proxy, &relays, &limits),
                };
                router.replace(proxy.optimistic, proxy.isolate_destinations, plan.clone());
            });
        }
    });
    tokio::spawn(shutdown.token().clone().run_until_cancelled_owned(reloading));
    if manager::listens() {
        first_relay(&tunnel, &config.relays, limits.relay_connect_timeout, &shutdown).await;
    }
    let tracker = shutdown.tracker().clone();
    manager::ready(shutdown.token().clone(), move || {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        format!("Listening on {}; {} connections", addresses.join(", "), tracker.len())
    });
    shutdown.requested().await;
    shutdown.drain().await;
    tunnel.close().await;
    if let Err(error) = answering.await {
        tracing::error!(%error, "the resolver has broken down");
    }
    Ok(())
}

/// The sockets for clients: those that were passed to this process, else those that are configured.
async fn listeners(config: &ProxyConfig, passed: Vec<std::net::TcpListener>) -> Result<Vec<Listener>, RunError> {
    let mut listeners = Vec::new();
    for socket in passed {
        let failed = |source| RunError::System { what: "cannot use a socket passed to us", source };
        listeners.push(TcpListener::from_std(socket).and_then(Listener::over).map_err(failed)?);
    }
    if !listeners.is_empty() {
        tracing::info!("the service manager holds the listening sockets; proxy.listen has no effect");
        return Ok(listeners);
    }
    for address in &config.listen {
        let failed = |source| RunError::Listen { address: address.to_string(), source };
        let resolved = address.resolve().await.map_err(failed)?;
        listeners.push(Listener::bind(resolved).await.map_err(|error| RunError::Failed(error.to_string()))?);
    }
    Ok(listeners)
}

/// Waits until one of the general relays can be used, so that "ready" means it. Not for longer than `limit`, since names
/// mostly bring their own, and one that is gone must not keep the proxy from the others.
async fn first_relay(tunnel: &Tunnel, relays: &[RelayUrl], limit: Duration, shutdown: &Shutdown) {
    let links: Vec<_> = relays.iter().map(|relay| tunnel.link(relay)).collect();
    if links.is_empty() {
        return;
    }
    let (notices_tx, mut notices) = mpsc::unbounded_channel();
    let keys = Keys::generate();
    let _attached: Vec<_> = links.iter().map(|link| link.attach(keys.clone(), notices_tx.clone(), None)).collect();
    let up = async { while !matches!(notices.recv().await, Some(Notice::Up(..)) | None) {} };
    tokio::select! {
        () = up => {}
        () = tokio::time::sleep(limit) => tracing::warn!("none of the relays can be reached yet"),
        () = shutdown.requested() => {}
    }
}

/// Takes over the settings that can change while the proxy runs, and has the others routed anew if one has.
fn take_over(running: &mut ProxyConfig, new: &ProxyConfig, route: impl FnOnce(&ProxyConfig, bool)) {
    let before = running.clone();
    running.optimistic = new.optimistic;
    running.isolate_destinations = new.isolate_destinations;
    running.exit.clone_from(&new.exit);
    running.exclude.clone_from(&new.exclude);
    running.rule.clone_from(&new.rule);
    if before != *running {
        // What is known of the exits, and which host has which, stays if they do.
        let exits = |config: &ProxyConfig| (config.exit.clone(), config.exclude.clone(), of_rules(&config.rule));
        route(running, exits(&before) == exits(running));
    }
}

/// The exits that rules name.
fn of_rules(rules: &[Rule]) -> Vec<PublicKey> {
    let exit = |rule: &Rule| match &rule.via {
        Via::This(exit) => Some(exit.0.public_key),
        _ => None,
    };
    rules.iter().filter_map(exit).collect()
}

/// The ways beside the relays, if there are any.
fn direct(config: &ProxyConfig, limits: &Limits, rendezvous: Option<Arc<Rendezvous>>) -> Option<Arc<DirectPaths>> {
    let reach = config.dial_exits.clone().reachable();
    let reach = reach.map(|reachable| Reach::new(reachable, Arc::new(SystemNetwork), limits));
    let some = rendezvous.is_some() || reach.is_some();
    some.then(|| DirectPaths::new(rendezvous, reach, config.direct_plaintext, limits))
}

/// The tunnel of a proxy, what goes where through it, and what of that is planned; `rendezvous` is where exits come to, if
/// they can. Must be called inside a tokio runtime.
///
/// # Errors
/// When the key of its identity or of the local authority cannot be used.
pub(super) fn start_router(
    config: &Config,
    limits: &Arc<Limits>,
    rendezvous: Option<Arc<Rendezvous>>,
) -> Result<(Arc<Tunnel>, Router, Plan), RunError> {
    let identity = identity(&config.proxy)?;
    let tunnel = Tunnel::new(config.relays.clone(), Arc::clone(limits)).with_identity(identity);
    let direct = direct(&config.proxy, limits, rendezvous);
    let tunnel = tunnel.through(config.relay_proxy.upstream()).with_direct(direct);
    let tunnel = Arc::new(tunnel);
    let plan = plan(&tunnel, &config.proxy, &config.relays, limits);
    let lookup = if config.proxy.lookup_relays.is_empty() { &config.relays } else { &config.proxy.lookup_relays };
    let lists = RelayLists::new(Arc::clone(&tunnel), lookup.clone(), Arc::clone(limits));
    let router = Router::new(Arc::clone(&tunnel), config.proxy.optimistic)
        .isolating_destinations(config.proxy.isolate_destinations)
        .with_relay_lists(Arc::new(lists))
        .with_names(Names::new(config.names.clone()))
        .with_plan(plan.clone());
    let router = match authority(&config.proxy.trust)? {
        Some(authority) => {
            router.with_interceptor(Interceptor::new(Arc::clone(&tunnel), authority, Arc::clone(limits)))
        }
        None => router,
    };
    Ok((tunnel, router, plan))
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
fn plan(tunnel: &Arc<Tunnel>, config: &ProxyConfig, relays: &[RelayUrl], limits: &Arc<Limits>) -> Plan {
    let ProxyConfig { exit, exclude, rule: rules, .. } = config.clone();
    let wanted: Option<Vec<_>> = match &exit {
        Exits::Any => {
            tracing::warn!(
                "proxy.exit is \"any\": strangers see where this proxy's clients go, and what is not encrypted"
            );
            None
        }
        Exits::Listed(list) => Some(list.iter().map(|exit| exit.0.public_key).chain(of_rules(&rules)).collect()),
    };
    if relays.is_empty() && exit == Exits::Any {
        tracing::warn!("no exit can be found without relays; give --relay URL, or set relays in the configuration");
    }
    let needed = wanted.as_ref().is_none_or(|wanted| !wanted.is_empty()) && !relays.is_empty();
    let directory = needed.then(|| {
        let links: Vec<_> = relays.iter().map(|relay| tunnel.link(relay)).collect();
        Arc::new(Directory::start(&links, wanted, Arc::clone(limits)))
    });
    let chooser = Arc::new(Chooser::new(Arc::clone(tunnel), directory, exit, exclude));
    Plan { rules, chooser, network: Arc::new(SystemNetwork), dial_timeout: limits.dial_timeout }
}
