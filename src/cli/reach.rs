//! The flags of the commands that open streams themselves, `nws connect` and `nws forward`, and the destinations that
//! they are given.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use nostr::RelayUrl;

use crate::config::{Config, ListenAddr, Target, ValueError};
use crate::destination::{Destination, Host, split_port};
use crate::name::{is_nostr, parse_relay};
use crate::run::RunError;
use crate::run::forward::Forward;
use crate::run::reach::Through;

/// How the destination is reached.
#[derive(Debug, Clone, Default, Args)]
pub struct ReachArgs {
    /// Proxy to go through, by SOCKS5. Without it, the one that runs where proxy.listen says is used, and without one
    /// nws goes by itself.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["alone", "relays"])]
    pub via: Option<Target>,
    /// Go by itself, even if a proxy runs.
    #[arg(long)]
    pub alone: bool,
    /// Relay for a name that consists of a key alone; may be given several times, and means --alone. Without a scheme,
    /// wss:// is assumed.
    #[arg(long = "relay", value_name = "URL", value_parser = parse_relay)]
    pub relays: Vec<RelayUrl>,
}

impl ReachArgs {
    /// Lays the flags over the configuration.
    pub fn apply(&self, config: &mut Config) {
        if !self.relays.is_empty() {
            config.relays = self.relays.clone();
        }
    }

    /// The way that the flags ask for.
    #[must_use]
    pub fn through(&self) -> Through {
        match &self.via {
            Some(proxy) => Through::Proxy(proxy.clone()),
            None if self.alone || !self.relays.is_empty() => Through::Own,
            None => Through::Found,
        }
    }
}

/// Flags of `nws connect`.
#[derive(Debug, Clone, Args)]
#[command(override_usage = "nws connect [OPTIONS] <HOST:PORT>\n       nws connect [OPTIONS] <HOST> <PORT>")]
pub struct ConnectArgs {
    /// Where to: a .nostr name, or whatever else the proxy would take, and its port.
    #[arg(value_name = "HOST:PORT")]
    pub to: String,
    /// The port, if it is not part of the first argument.
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// How.
    #[command(flatten)]
    pub reach: ReachArgs,
}

impl ConnectArgs {
    /// Where to.
    ///
    /// # Errors
    ///
    /// There is no port, or two, or no host.
    pub fn destination(&self) -> Result<Destination, RunError> {
        let parsed = match self.port {
            None => destination(&self.to),
            Some(port) => match split_port(&self.to) {
                Ok((_, Some(_))) => Err(ValueError::new(format!("{:?} has a port already; give one", self.to))),
                _ => with_host(&self.to, port),
            },
        };
        parsed.map_err(|error| RunError::Usage(error.to_string()))
    }
}

/// Flags of `nws forward`.
#[derive(Debug, Clone, Args)]
pub struct ForwardArgs {
    /// A local port and where its connections go, as 5432=wallet.nostr:5432; may be given several times. It listens on
    /// 127.0.0.1, or where BIND:PORT=HOST:PORT says. Port 0 takes a free port.
    #[arg(required = true, value_name = "PORT=HOST:PORT")]
    pub forwards: Vec<ForwardArg>,
    /// How.
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Once ready, write a JSON file with the process id and the addresses bound.
    #[arg(long, value_name = "PATH")]
    pub info_file: Option<PathBuf>,
}

/// One `PORT=HOST:PORT` of `nws forward`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardArg(pub Forward);

impl FromStr for ForwardArg {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (listen, to) = text.split_once('=').ok_or_else(|| {
            let way_out = "write PORT=HOST:PORT, as 5432=wallet.nostr:5432";
            ValueError::new(format!("{text:?} does not say both the local port and where it leads; {way_out}"))
        })?;
        let listen = match listen.parse::<u16>() {
            Ok(port) => ListenAddr::loopback(port),
            Err(_) => listen.parse()?,
        };
        Ok(Self(Forward { listen, to: destination(to)? }))
    }
}

/// Reads `HOST:PORT`. Unlike other addresses, a `.nostr` name may be longer than DNS allows.
fn destination(text: &str) -> Result<Destination, ValueError> {
    let wrong = |why: &str| ValueError::new(format!("{text:?} {why}; write HOST:PORT, as wallet.nostr:22"));
    match split_port(text) {
        Ok((_, Some(0))) => Err(wrong("has port 0, which nothing can be connected to")),
        Ok((host, Some(port))) => with_host(host, port),
        Ok((_, None)) => Err(wrong("has no port")),
        Err(_) => Err(wrong("has no number up to 65535 for its port")),
    }
}

/// A destination of this host.
fn with_host(text: &str, port: u16) -> Result<Destination, ValueError> {
    let host = Host::parse(text);
    match &host {
        Host::Name(name) if !is_nostr(name) && !Host::is_plain_name(name) => {
            Err(ValueError::new(format!("{text:?} is neither the name of a host nor an address")))
        }
        _ => Ok(Destination { host, port }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_a_host_and_a_port() {
        for text in
            ["wallet.nostr:22", "[::1]:80", "127.0.0.1:80", "example.com:443", &format!("{}.nostr:1", "a.".repeat(200))]
        {
            assert_eq!(destination(text).unwrap().to_string(), text);
        }
        for (text, why) in [
            ("wallet.nostr", "has no port"),
            ("wallet.nostr:0", "port 0"),
            ("wallet.nostr:70000", "up to 65535"),
            ("::1", "has no port"),
            (":22", "neither the name of a host"),
            ("a b:22", "neither the name of a host"),
        ] {
            let error = destination(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_forward_listens_on_this_machine_alone_unless_told_otherwise() {
        let forward =
            |text: &str| text.parse::<ForwardArg>().map(|arg| (arg.0.listen.to_string(), arg.0.to.to_string()));
        let both = |listen: &str, to: &str| (listen.to_owned(), to.to_owned());
        assert_eq!(forward("5432=db.nostr:5433").unwrap(), both("127.0.0.1:5432", "db.nostr:5433"));
        assert_eq!(forward("0.0.0.0:80=db.nostr:1").unwrap(), both("0.0.0.0:80", "db.nostr:1"));
        assert_eq!(forward("[::1]:0=[::2]:1").unwrap(), both("[::1]:0", "[::2]:1"));
        for wrong in ["5432", "5432=db.nostr", "x=db.nostr:1", "=db.nostr:1"] {
            assert!(forward(wrong).is_err(), "{wrong}");
        }
    }
}
