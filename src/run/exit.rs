//! `nws exit`: services offered under a key, and other hosts if the exit is a public one.

use std::io::{self, Write};
use std::sync::Arc;

use nostr::Keys;

use super::info::Info;
use super::shutdown::Shutdown;
use super::{RunError, reload};
use crate::config::{Config, ExitConfig, PublicConfig, Service};
use crate::dial::SystemNetwork;
use crate::direct::Reach;
use crate::directory::{Announcer, Profile};
use crate::exit::{Access, Dialer, DirectPaths, Exit, Policy, Services};
use crate::limits::Limits;
use crate::name::NostrName;
use crate::tunnel::Acceptor;

/// Runs an exit until the end is asked for and its streams are done. On SIGHUP, who may connect is asked of `reread`.
///
/// # Errors
/// When the information file cannot be written, or the system refuses signals.
pub async fn run(
    config: Config,
    keys: Keys,
    shutdown: Shutdown,
    reread: impl Fn() -> Result<Config, RunError> + Send + 'static,
) -> Result<(), RunError> {
    let failed = |source| RunError::System { what: "cannot wait for signals", source };
    let hangups = reload::hangups().map_err(failed)?;
    let relays = config.exit_relays().to_vec();
    let services = Services {
        by_port: config.exit.service.iter().map(|(port, service)| (*port, service.target.to_string())).collect(),
        default: config.exit.target.as_ref().map(ToString::to_string),
    };
    let access = access_of(&config.exit);
    let policy = config.exit.public.enabled.then(|| Policy::new(config.exit.rule.clone()));
    if policy.is_some() {
        tracing::warn!("this exit is public: whoever finds it reaches the internet with this machine's address");
    }
    let limits = Arc::new(config.limits);
    let direct = direct(&config.exit, &limits, &shutdown).await?;
    let name = NostrName::new(keys.public_key(), relays.clone());
    let mut acceptor = Acceptor::start(keys.clone(), &relays, Arc::clone(&limits));
    greet(&name, &services, policy.as_ref());
    tokio::select! {
        () = acceptor.ready() => {}
        () = shutdown.requested() => return Ok(()),
    }
    tracing::info!("the exit is ready");
    let mut info = Info::new(Vec::new());
    info.name = Some(name.to_string());
    info.npub = Some(name.npub());
    info.relays = Some(relays);
    let _info = info.write_if(config.exit.info_file.as_deref())?;
    let announcing = policy.as_ref().map(|policy| {
        let PublicConfig { announce_interval, name, contact, .. } = config.exit.public;
        let profile = Profile { interval: announce_interval, ports: policy.open_ports(), name, contact };
        let announcer = Announcer::new(keys, acceptor.links(), acceptor.heard_on(), profile);
        tokio::spawn(announcer.run(shutdown.token().clone()))
    });
    let exit = Exit::public(services, policy.map(Dialer::new), limits).with_direct(direct);
    exit.set_access(access);
    let reloading = {
        let exit = exit.clone();
        tokio::spawn(reload::follow(hangups, reread, move |config| exit.set_access(access_of(&config.exit))))
    };
    exit.serve(&mut acceptor, shutdown.token(), shutdown.tracker()).await;
    reloading.abort();
    // Nobody is to find what is about to end; connections that are open go on meanwhile.
    let (taken_back, _) = tokio::join!(
        async {
            match announcing {
                Some(announcing) => announcing.await.is_ok(),
                None => true,
            }
        },
        shutdown.drain()
    );
    if !taken_back {
        tracing::error!("the announcing of this exit has broken down");
    }
    acceptor.close().await;
    Ok(())
}

/// The ways beside the relays.
async fn direct(config: &ExitConfig, limits: &Limits, shutdown: &Shutdown) -> Result<Arc<DirectPaths>, RunError> {
    let (address, listen) = (config.public_address.as_ref(), config.public_listen.as_ref());
    let rendezvous = super::direct::listen(address, listen, limits, shutdown).await?;
    let reach = config.dial_back.clone().reachable();
    let reach = reach.map(|reachable| Reach::new(reachable, Arc::new(SystemNetwork), limits));
    if rendezvous.is_some() || reach.is_some() {
        tracing::warn!("clients of this exit can learn its address (exit.dial_back, exit.public_address)");
    }
    Ok(Arc::new(DirectPaths { reach, plaintext: config.direct_plaintext, rendezvous }))
}

/// Who may connect to what.
fn access_of(config: &ExitConfig) -> Access {
    let own = |(port, service): (&u16, &Service)| service.allow.clone().map(|list| (*port, list));
    Access {
        services: config.allow.clone(),
        by_port: config.service.iter().filter_map(own).collect(),
        public: config.public.allow.clone(),
    }
}

/// Tells the operator under which name the services are reached.
fn greet(name: &NostrName, services: &Services, policy: Option<&Policy>) {
    let mut text = format!("http://{name}/\n{}\n", name.npub());
    for (port, target) in &services.by_port {
        text.push_str(&format!("  port {port} -> {target}\n"));
    }
    if let Some(target) = &services.default {
        text.push_str(&format!("  every other port -> {target}\n"));
    }
    if let Some(policy) = policy {
        let ports: Vec<_> = policy.open_ports().texts().collect();
        text.push_str(&format!("  other hosts: ports {}\n", ports.join(", ")));
    }
    // Nobody may be reading; the exit works all the same.
    let _ = io::stdout().write_all(text.as_bytes());
}
