//! `nws demo`: relay, page, exit and proxy in one process, fetched through and checked, in steps that a newcomer
//! understands. The files that it serves and the clients that fetch them are in `demo/`.

mod fetch;
mod site;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nostr::Keys;
use tokio::net::TcpListener;
use tokio::time::Instant;

use self::fetch::Fetched;
use super::RunError;
use super::shutdown::Shutdown;
use crate::config::Config;
use crate::exit::{Exit, Services};
use crate::name::NostrName;
use crate::proxy::{Listener, Router};
use crate::relay::server::{RelayServer, RelayServerOptions};
use crate::tunnel::{Acceptor, Tunnel};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Longest time for one step: the demo ends with an error rather than hang.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the demo; with `once` it ends after the check.
///
/// # Errors
/// When a part cannot be started, or what came through the tunnel is not what was sent.
pub async fn run(config: Config, once: bool, shutdown: Shutdown) -> Result<(), RunError> {
    let limits = Arc::new(config.limits);
    say("This starts the four parts of a tunnel in one process and fetches through them.\n");
    let listen_failed = |source| RunError::Listen { address: ANY_PORT.to_string(), source };

    let relay = RelayServer::bind(ANY_PORT, RelayServerOptions::default()).map_err(listen_failed)?;
    let relay_url = relay.url();
    let relay_end = tokio_util::sync::CancellationToken::new();
    tokio::spawn(relay.run(relay_end.clone()));
    say(&format!("1. A relay, which passes events on:   {relay_url}"));

    let site = TcpListener::bind(ANY_PORT).await.map_err(listen_failed)?;
    let site_address = site.local_addr().map_err(listen_failed)?;
    tokio::spawn(site::serve(site));
    say(&format!("2. A web server that nobody can reach: http://{site_address}/"));

    let keys = Keys::generate();
    let name = NostrName::new(keys.public_key(), [relay_url.clone()]);
    let mut acceptor = Acceptor::start(keys, &[relay_url], Arc::clone(&limits));
    acceptor.ready().await;
    let services = Services { by_port: [(80, site_address.to_string())].into(), default: None };
    let exit = Exit::new(services, Arc::clone(&limits));
    let (token, tracker) = (shutdown.token().clone(), shutdown.tracker().clone());
    let exit = tokio::spawn(async move {
        exit.serve(&mut acceptor, &token, &tracker).await;
        acceptor
    });
    say(&format!("3. An exit, which offers it by its key: http://{name}/"));

    let listener = Listener::bind(ANY_PORT).await.map_err(|error| RunError::Failed(error.to_string()))?;
    let proxy = listener.local_addr();
    let tunnel = Arc::new(Tunnel::new(Vec::new(), Arc::clone(&limits)));
    let (token, tracker) = (shutdown.token().clone(), shutdown.tracker().clone());
    tokio::spawn(listener.serve(Router::new(Arc::clone(&tunnel), config.proxy.optimistic), limits, token, tracker));
    say(&format!("4. A proxy, which your programs use:    {proxy} (SOCKS5 and HTTP)\n"));

    let checked = check(proxy, &name.to_string()).await;
    match &checked {
        Ok(()) => say("\nEverything that came through the tunnel is what was sent."),
        Err(error) => say(&format!("\nThat did not work: {error}")),
    }
    if !once && checked.is_ok() {
        say(&format!(
            "\nTry it yourself, in another terminal:\n\n  curl --socks5-hostname {proxy} http://{name}/\n  \
             curl --proxy http://{proxy} http://{name}/\n\nCtrl-C ends the demo."
        ));
        shutdown.requested().await;
    }
    shutdown.drain().await;
    tunnel.close().await;
    if let Ok(acceptor) = exit.await {
        acceptor.close().await;
    }
    relay_end.cancel();
    checked.map_err(|error| RunError::Failed(format!("the demo's check failed: {error}")))
}

/// Fetches the page and the file in both languages, and compares.
async fn check(proxy: SocketAddr, name: &str) -> Result<(), String> {
    step("the page over SOCKS5", fetch::over_socks(proxy, name, "/"), site::PAGE.as_bytes()).await?;
    step("the page over HTTP CONNECT", fetch::over_connect(proxy, name, "/"), site::PAGE.as_bytes()).await?;
    let file = site::file();
    step("a 16 MiB file over SOCKS5", fetch::over_socks(proxy, name, site::FILE_PATH), &file).await?;
    step("a 16 MiB file over HTTP CONNECT", fetch::over_connect(proxy, name, site::FILE_PATH), &file).await
}

async fn step(what: &str, fetch: impl Future<Output = io::Result<Fetched>>, expected: &[u8]) -> Result<(), String> {
    let start = Instant::now();
    let fetched = tokio::time::timeout(STEP_TIMEOUT, fetch)
        .await
        .map_err(|_| format!("{what}: no answer within {} s", STEP_TIMEOUT.as_secs()))?
        .map_err(|error| format!("{what}: {error}"))?;
    let took = start.elapsed();
    if fetched.body != expected {
        return Err(format!("{what}: {} bytes came, not the {} that were sent", fetched.body.len(), expected.len()));
    }
    let first = fetched.first_byte.duration_since(start).as_secs_f64() * 1e3;
    let speed = expected.len() as f64 / took.as_secs_f64() / 1e6;
    let speed = if expected.len() > 1_000_000 { format!(", {speed:.1} MB/s") } else { String::new() };
    let all = took.as_secs_f64() * 1e3;
    say(&format!(
        "   fetched {what}: {} bytes, equal; first byte after {first:.1} ms, all after {all:.1} ms{speed}",
        expected.len()
    ));
    Ok(())
}

fn say(line: &str) {
    // Whoever closed the terminal does not read it.
    let _ = writeln!(io::stdout(), "{line}");
}
