//! `nws exit`: services offered under a key, and other hosts if the exit is a public one.

use std::io::{self, Write};
use std::sync::Arc;

use nostr::Keys;
use tokio::sync::watch;

use super::info::Info;
use super::shutdown::Shutdown;
use super::{RunError, manager, reload};
use crate::config::{Config, ExitConfig, PublicConfig, Service};
use crate::directory::{Announcer, Profile};
use crate::exit::{Access, Dialer, Exit, Policy, Services};
use crate::name::NostrName;
use crate::tunnel::Acceptor;

/// Runs an exit until the end is asked for and its streams are done. On SIGHUP, what is offered and who may connect to it
/// are asked of `reread`.
///
/// # Errors
/// When the information file cannot be written, or the system refuses signals.
pub async fn run(
    config: Config,
    keys: Keys,
    shutdown: Shutdown,
    reread: impl Fn() -> Result<Config, RunError> + Send + 'static,
) -> Result<(), RunError> {
    let hangups = reload::signals()?;
    manager::starting("Looking for a relay to listen on");
    let running = config.clone();
    let relays = config.exit_relays().to_vec();
    let services = services_of(&config.exit);
    let access = access_of(&config.exit);
    let policy = config.exit.public.enabled.then(|| Policy::new(config.exit.rule));
    if policy.is_some() {
        tracing::warn!("this exit is public: whoever finds it reaches the internet with this machine's address");
    }
    let limits = Arc::new(config.limits);
    let name = NostrName::new(keys.public_key(), relays.clone());
    let mut acceptor = Acceptor::start(keys.clone(), &relays, Arc::clone(&limits));
    let npub = name.npub();
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
    let ports = watch::Sender::new(policy.as_ref().map_or_else(|| Policy::default().open_ports(), Policy::open_ports));
    let announcing = policy.as_ref().map(|_| {
        let PublicConfig { announce_interval, name, contact, .. } = config.exit.public;
        let profile = Profile { interval: announce_interval, ports: ports.subscribe(), name, contact };
        let announcer = Announcer::new(keys, acceptor.links(), acceptor.heard_on(), profile);
        tokio::spawn(announcer.run(shutdown.token().clone()))
    });
    let exit = Exit::public(services, policy.map(Dialer::new), limits);
    exit.set_access(access);
    let reloading = {
        let exit = exit.clone();
        let apply = move |running: &mut Config, new: &Config| {
            let policy = Policy::new(new.exit.rule.clone());
            exit.set_access(access_of(&new.exit));
            exit.set_services(services_of(&new.exit));
            exit.set_policy(&policy);
            ports.send_replace(policy.open_ports());
            let (now, new) = (&mut running.exit, &new.exit);
            now.service.clone_from(&new.service);
            now.target.clone_from(&new.target);
            now.allow.clone_from(&new.allow);
            now.rule.clone_from(&new.rule);
            now.public.allow.clone_from(&new.public.allow);
        };
        tokio::spawn(reload::follow(hangups, reread, running, &["proxy", "relay", "dns", "transparent"], apply))
    };
    let (heard_on, tracker, count) = (acceptor.heard_on(), shutdown.tracker().clone(), acceptor.links().len());
    manager::ready(shutdown.token().clone(), move || {
        let heard_on = heard_on.borrow().len();
        format!("{npub} on {heard_on} of {count} relays; {} connections", tracker.len())
    });
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

/// What is offered at which port.
fn services_of(config: &ExitConfig) -> Services {
    Services {
        by_port: config.service.iter().map(|(port, service)| (*port, service.target.to_string())).collect(),
        default: config.target.as_ref().map(ToString::to_string),
    }
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
