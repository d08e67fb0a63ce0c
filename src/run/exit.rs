//! `nws exit`: services offered under a key, and other hosts if the exit is a public one.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::SystemTime;

use nostr::Keys;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::info::Info;
use super::shutdown::Shutdown;
use super::{RunError, manager, qr, reload};
use crate::config::{Config, ExitConfig, ExitTlsConfig, PublicConfig, Service, TlsPort};
use crate::dial::SystemNetwork;
use crate::direct::Reach;
use crate::directory::{Announcer, Profile};
use crate::exit::{Access, Dialer, DirectPaths, Exit, Policy, Services, Terminator};
use crate::limits::Limits;
use crate::name::NostrName;
use crate::pinned::Fingerprint;
use crate::tls::certificate::seconds;
use crate::tls::{Kept, Publisher, Source};
use crate::tunnel::Acceptor;

/// The port of the web with TLS.
const HTTPS: u16 = 443;

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
    let (services, with_tls) = services_of(&config.exit);
    let access = access_of(&config.exit);
    let policy = config.exit.public.enabled.then(|| Policy::new(config.exit.rule.clone()));
    if policy.is_some() {
        tracing::warn!("this exit is public: whoever finds it reaches the internet with this machine's address");
    }
    let limits = Arc::new(config.limits);
    let direct = direct(&config.exit, &limits, &shutdown).await?;
    let name = NostrName::new(keys.public_key(), relays.clone());
    let tls = certificate(&config.exit, &name, &with_tls)?;
    let upstream = config.relay_proxy.upstream();
    let mut acceptor = Acceptor::start_through(keys.clone(), &relays, Arc::clone(&limits), upstream);
    let npub = name.npub();
    greet(&name, &services, &with_tls, policy.as_ref());
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
    let exit = Exit::public(services, policy.clone().map(Dialer::new), limits).with_direct(direct);
    let publishing = start_tls(tls, with_tls, &config.exit, &exit, &keys, &acceptor, &shutdown)?;
    let ports = watch::Sender::new(policy.as_ref().map_or_else(|| Policy::default().open_ports(), Policy::open_ports));
    let announcing = policy.as_ref().map(|_| {
        let PublicConfig { announce_interval, name, contact, .. } = config.exit.public.clone();
        let profile = Profile { interval: announce_interval, ports: ports.subscribe(), name, contact };
        let announcer = Announcer::new(keys.clone(), acceptor.links(), acceptor.heard_on(), profile);
        tokio::spawn(announcer.run(shutdown.token().clone()))
    });
    exit.set_access(access);
    let reloading = {
        let exit = exit.clone();
        let apply = move |running: &mut Config, new: &Config| {
            let policy = Policy::new(new.exit.rule.clone());
            exit.set_access(access_of(&new.exit));
            exit.set_services(services_of(&new.exit).0);
            exit.set_policy(&policy);
            ports.send_replace(policy.open_ports());
            let (now, new) = (&mut running.exit, &new.exit);
            now.service.clone_from(&new.service);
            now.target.clone_from(&new.target);
            now.allow.clone_from(&new.allow);
            now.rule.clone_from(&new.rule);
            now.public.allow.clone_from(&new.public.allow);
        };
        tokio::spawn(reload::follow(
            hangups,
            reread,
            running,
            &["proxy", "relay", "dns", "transparent", "names"],
            apply,
        ))
    };
    let (heard_on, tracker, count) = (acceptor.heard_on(), shutdown.tracker().clone(), acceptor.links().len());
    manager::ready(shutdown.token().clone(), move || {
        let heard_on = heard_on.borrow().len();
        format!("{npub} on {heard_on} of {count} relays; {} connections", tracker.len())
    });
    exit.serve(&mut acceptor, shutdown.token(), shutdown.tracker()).await;
    reloading.abort();
    if let Some((keeping, _)) = &publishing {
        keeping.abort();
    }
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
    if let Some((_, publishing)) = publishing
        && publishing.await.is_err()
    {
        tracing::error!("the publishing of the TLS certificate has broken down");
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

/// The services, each with its port with TLS beside it, and which ports have TLS.
fn services_of(config: &ExitConfig) -> (Services, BTreeSet<u16>) {
    let tls = |service: &Service| service.tls.map(|TlsPort(port)| port);
    let ports = config.service.iter().flat_map(|(port, service)| [Some(*port), tls(service)].map(|p| (p, service)));
    let by_port = ports.filter_map(|(port, service)| Some((port?, service.target.to_string()))).collect();
    let default = config.target.as_ref().map(ToString::to_string);
    (Services { by_port, default }, config.service.values().filter_map(tls).collect())
}

/// What an exit has to do with TLS.
enum Tls {
    /// Nothing.
    None,
    /// It had a certificate, which relays may still have, and shows none any more.
    TakenBack,
    /// It has this one.
    Kept(Kept),
}

/// The certificate of the exit, if a service needs one or the operator has one to publish.
fn certificate(config: &ExitConfig, name: &NostrName, with_tls: &BTreeSet<u16>) -> Result<Tls, RunError> {
    let ExitTlsConfig { certificate, key, directory, .. } = config.tls.clone();
    let directory = directory.or_else(|| super::key::state_directory().map(|state| state.join("tls")));
    let made = directory.map(|directory| Source::Made { name: name.clone(), directory });
    let source = match (certificate, made) {
        (Some(_), _) if key.is_none() && !with_tls.is_empty() => {
            let reason = "a service is to have TLS, and exit.tls.certificate has no key; set exit.tls.key";
            return Err(RunError::Usage(reason.to_owned()));
        }
        (Some(certificate), _) => Source::Own { certificate, key },
        (None, Some(made)) if with_tls.is_empty() => {
            return Ok(if made.was_used() { Tls::TakenBack } else { Tls::None });
        }
        (None, Some(made)) => made,
        (None, None) if with_tls.is_empty() => return Ok(Tls::None),
        (None, None) => {
            let reason = "no home directory to keep the certificate in; set exit.tls.directory";
            return Err(RunError::Usage(reason.to_owned()));
        }
    };
    let kept = Kept::new(source, SystemTime::now())?;
    if let Some(certificate) = kept.certificate() {
        let (fingerprint, facts) = (Fingerprint::of(certificate.leaf()), certificate.facts());
        tracing::info!(%fingerprint, valid = %facts.validity, "the TLS certificate of this exit");
        let host = name.to_string();
        if !facts.covers(&host) {
            let names = facts.names.join(", ");
            tracing::warn!(
                names,
                "the TLS certificate is not for the exit's name; clients that compare names refuse it"
            );
        }
        if !facts.is_valid_at(seconds(SystemTime::now())) {
            tracing::warn!("the TLS certificate is not valid today; clients that look at dates refuse it");
        }
    }
    Ok(Tls::Kept(kept))
}

/// What keeps the certificate up, and what publishes it.
type TlsTasks = (JoinHandle<()>, JoinHandle<()>);

/// Ends TLS on these ports, and keeps the certificate up and published: the two tasks that do so.
fn start_tls(
    tls: Tls,
    with_tls: BTreeSet<u16>,
    config: &ExitConfig,
    exit: &Exit,
    keys: &Keys,
    acceptor: &Acceptor,
    shutdown: &Shutdown,
) -> Result<Option<TlsTasks>, RunError> {
    let (keeping, published) = match tls {
        Tls::None => return Ok(None),
        Tls::TakenBack => (tokio::spawn(std::future::pending()), watch::channel(Vec::new()).1),
        Tls::Kept(kept) => {
            exit.set_terminator(Terminator::new(with_tls, kept.shown(), &config.tls.alpn)?);
            let published = kept.published();
            (tokio::spawn(kept.run()), published)
        }
    };
    let publisher = Publisher::new(keys.clone(), acceptor.links(), published);
    Ok(Some((keeping, tokio::spawn(publisher.run(shutdown.token().clone())))))
}

/// Who may connect to what.
fn access_of(config: &ExitConfig) -> Access {
    let own = |(port, service): (&u16, &Service)| {
        let ports = [Some(*port), service.tls.map(|TlsPort(port)| port)];
        let list = service.allow.clone();
        ports.into_iter().flatten().filter_map(move |port| Some((port, list.clone()?)))
    };
    Access {
        services: config.allow.clone(),
        by_port: config.service.iter().flat_map(own).collect(),
        public: config.public.allow.clone(),
    }
}

/// Tells the operator under which name the services are reached.
fn greet(name: &NostrName, services: &Services, with_tls: &BTreeSet<u16>, policy: Option<&Policy>) {
    let mut text = format!("http://{name}/\n{}\n", name.npub());
    if with_tls.contains(&HTTPS) {
        text.push_str(&format!("https://{name}/, with the certificate of nws cert\n"));
    }
    for (port, target) in &services.by_port {
        let tls = if with_tls.contains(port) { " (TLS)" } else { "" };
        text.push_str(&format!("  port {port}{tls} -> {target}\n"));
    }
    if let Some(target) = &services.default {
        text.push_str(&format!("  every other port -> {target}\n"));
    }
    if let Some(policy) = policy {
        let ports: Vec<_> = policy.open_ports().texts().collect();
        text.push_str(&format!("  other hosts: ports {}\n", ports.join(", ")));
    }
    if io::stdout().is_terminal()
        && let Some(code) = qr::code(name)
    {
        text.push_str(&code);
        text.push('\n');
    }
    // Nobody may be reading; the exit works all the same.
    let _ = io::stdout().write_all(text.as_bytes());
}
