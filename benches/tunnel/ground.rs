//! What is measured on: relays with their shapers, the backend, an exit and a proxy; and what their processes have
//! cost between two moments.

use std::net::SocketAddr;

use nostr::{PublicKey, RelayUrl};

use crate::Outcome;
use crate::backend::Backend;
use crate::children::{Places, Process, cpu_of};
use crate::client::Proxy;
use crate::options::Options;
use crate::shaper::Shaper;

/// One relay.
pub(crate) struct Relay {
    /// Where clients find it: its shaper, if it has one.
    pub(crate) url: RelayUrl,
    /// Where it really is.
    pub(crate) direct: RelayUrl,
    process: Option<Process>,
    _shaper: Option<Shaper>,
}

/// Relays and what stands behind the exit: what all parts share.
pub(crate) struct Ground {
    pub(crate) places: Places,
    pub(crate) relays: Vec<Relay>,
    services: Vec<(u16, SocketAddr)>,
    _backend: Option<Backend>,
    _backend_process: Option<Process>,
}

/// An exit and a proxy on the ground.
pub(crate) struct Tunnel {
    exit: Process,
    /// The exit's key, as events name their author.
    pub(crate) exit_key: String,
    proxy_process: Process,
    /// The way in.
    pub(crate) proxy: Proxy,
}

impl Relay {
    async fn start(places: &Places, options: &Options) -> Outcome<Self> {
        let (process, direct) = match options.relay.as_str() {
            "embedded" => {
                let (process, info) =
                    places.nws("relay", &["relay", "--listen", "127.0.0.1:0"].map(String::from)).await?;
                let address = *info.listen.first().ok_or("the relay does not say where it listens")?;
                (Some(process), format!("ws://{address}"))
            }
            "nostr-rs-relay" => {
                let (process, address) = places.nostr_rs_relay().await?;
                (Some(process), format!("ws://{address}"))
            }
            url => (None, url.to_owned()),
        };
        let direct = RelayUrl::parse(&direct).map_err(|error| format!("--relay {direct}: {error}"))?;
        let shaper = if options.shapes() { Some(Shaper::start(&direct, options).await?) } else { None };
        let url = shaper.as_ref().map_or_else(|| direct.clone(), Shaper::url);
        Ok(Self { url, direct, process, _shaper: shaper })
    }
}

impl Ground {
    /// Relays and the backend in this process.
    pub(crate) async fn prepare(options: &Options) -> Outcome<Self> {
        let backend = Backend::start()?;
        let ground = Self::relays(options).await?;
        Ok(Self { services: backend.services(), _backend: Some(backend), ..ground })
    }

    /// Relays and the backend in a process of its own.
    pub(crate) async fn prepare_apart(options: &Options) -> Outcome<Self> {
        let ground = Self::relays(options).await?;
        let (process, services) = ground.places.backend().await?;
        Ok(Self { services, _backend_process: Some(process), ..ground })
    }

    async fn relays(options: &Options) -> Outcome<Self> {
        let places = Places::new(options)?;
        let mut relays = Vec::new();
        for _ in 0..options.relays {
            relays.push(Relay::start(&places, options).await?);
        }
        Ok(Self { places, relays, services: Vec::new(), _backend: None, _backend_process: None })
    }

    /// A fresh exit with a key of its own, and a fresh proxy.
    pub(crate) async fn tunnel(&self) -> Outcome<Tunnel> {
        let mut arguments = vec!["exit".to_owned()];
        for relay in &self.relays {
            arguments.extend(["--relay".to_owned(), relay.url.to_string()]);
        }
        for (port, address) in &self.services {
            arguments.extend(["--service".to_owned(), format!("{port}={address}")]);
        }
        let (exit, info) = self.places.nws("exit", &arguments).await?;
        let name = info.name.ok_or("the exit does not say its name")?;
        let exit_key = info.npub.as_deref().map(PublicKey::parse).ok_or("the exit does not say its key")??.to_hex();
        let (proxy_process, proxy) = self.proxy(name).await?;
        Ok(Tunnel { exit, exit_key, proxy_process, proxy })
    }

    async fn proxy(&self, name: String) -> Outcome<(Process, Proxy)> {
        let (process, info) = self.places.nws("proxy", &["proxy", "--listen", "127.0.0.1:0"].map(String::from)).await?;
        let address = *info.listen.first().ok_or("the proxy does not say where it listens")?;
        Ok((process, Proxy { address, name }))
    }

    /// A proxy that has never met the tunnel's exit. It lasts as long as its process is held.
    pub(crate) async fn fresh_proxy(&self, tunnel: &Tunnel) -> Outcome<(Process, Proxy)> {
        self.proxy(tunnel.proxy.name.clone()).await
    }

    /// All processes of ours, the relays first, the benchmark itself (backend, client, shapers) last.
    pub(crate) fn processes<'a>(&'a self, tunnel: &'a Tunnel) -> Vec<&'a Process> {
        let relays = self.relays.iter().filter_map(|relay| relay.process.as_ref());
        relays.chain([&tunnel.exit, &tunnel.proxy_process]).collect()
    }

    /// What each kind of process has used so far; several relays count as one.
    pub(crate) fn cpu(&self, tunnel: &Tunnel) -> Outcome<Cpu> {
        let mut cpu = Cpu { relay: None, exit: 0.0, proxy: 0.0, bench: cpu_of(std::process::id())? };
        for process in self.processes(tunnel) {
            let used = process.cpu()?;
            match process.label {
                "relay" => *cpu.relay.get_or_insert(0.0) += used,
                "exit" => cpu.exit = used,
                _ => cpu.proxy = used,
            }
        }
        Ok(cpu)
    }
}

/// CPU seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    /// Unknown of a relay that was not started here.
    pub(crate) relay: Option<f64>,
    pub(crate) exit: f64,
    pub(crate) proxy: f64,
    pub(crate) bench: f64,
}

impl Cpu {
    /// What was used since then.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            relay: self.relay.zip(before.relay).map(|(now, then)| now - then),
            exit: self.exit - before.exit,
            proxy: self.proxy - before.proxy,
            bench: self.bench - before.bench,
        }
    }

    /// Relay, exit, proxy and benchmark, for each of so many.
    pub(crate) fn each(self, count: f64) -> [Option<f64>; 4] {
        [self.relay, Some(self.exit), Some(self.proxy), Some(self.bench)].map(|used| used.map(|used| used / count))
    }
}
