//! `nws env`: the lines that make the programs of a shell use the proxy. Pure: configuration in, text out.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::{Args, ValueEnum};

use crate::config::ProxyConfig;
use crate::destination::{Destination, Host};
use crate::proxy::exits::Exits;
use crate::run::RunError;

/// Arguments of `nws env`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct EnvArgs {
    /// How the lines are written: for sh (bash, zsh), fish or csh, or plain, as environment.d and EnvironmentFile= take
    /// them.
    #[arg(long, value_name = "SHELL", default_value = "sh")]
    pub shell: Shell,
    /// Take the variables away again.
    #[arg(long)]
    pub unset: bool,
}

/// Who reads the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// Bourne's shell and those that are like it.
    Sh,
    /// Fish.
    Fish,
    /// The C shell.
    Csh,
    /// None: `NAME=value`.
    Plain,
}

/// What never goes through the proxy: it would refuse these.
const NO_PROXY: &str = "localhost,127.0.0.1,::1";

/// The lines for the programs of this machine.
///
/// # Errors
///
/// The port is not known before the proxy runs.
pub fn lines(args: EnvArgs, config: &ProxyConfig) -> Result<String, RunError> {
    let proxy = address(config)?;
    let (socks, http) = (format!("socks5h://{proxy}"), format!("http://{proxy}"));
    let mut lines = String::new();
    // Upper case as well, since programs differ; but HTTP_PROXY is not read by those that may be CGI programs.
    for (name, value) in [
        ("all_proxy", &*socks),
        ("ALL_PROXY", &*socks),
        ("http_proxy", &*http),
        ("https_proxy", &*http),
        ("HTTPS_PROXY", &*http),
        ("no_proxy", NO_PROXY),
        ("NO_PROXY", NO_PROXY),
    ] {
        let _ = match (args.shell, args.unset) {
            (Shell::Sh, false) => writeln!(lines, "export {name}='{value}';"),
            (Shell::Sh, true) => writeln!(lines, "unset {name};"),
            (Shell::Fish, false) => writeln!(lines, "set -gx {name} '{value}';"),
            (Shell::Fish, true) => writeln!(lines, "set -e {name};"),
            (Shell::Csh, false) => writeln!(lines, "setenv {name} '{value}';"),
            (Shell::Csh, true) => writeln!(lines, "unsetenv {name};"),
            (Shell::Plain, false) => writeln!(lines, "{name}={value}"),
            (Shell::Plain, true) => writeln!(lines, "{name}="),
        };
    }
    Ok(lines)
}

/// What else is to be said to whoever uses these lines.
#[must_use]
pub fn warning(args: EnvArgs, config: &ProxyConfig) -> Option<&'static str> {
    (!args.unset && config.exit == Exits::default() && config.rule.is_empty()).then_some(
        "names other than .nostr will be refused: no public exit is configured (proxy.exit), nor a rule that sends them \
         directly (proxy.rule)",
    )
}

/// The proxy as the programs of this machine reach it.
fn address(config: &ProxyConfig) -> Result<Destination, RunError> {
    let Some(listen) = config.listen.iter().find(|address| address.port() != 0) else {
        let way_out = "set proxy.listen to an address with a port, or read the file of --info-file";
        return Err(RunError::Usage(format!(
            "the proxy takes a free port, which nobody can know before it runs; {way_out}"
        )));
    };
    let host = match listen.host() {
        Host::Ip(IpAddr::V4(ip)) if ip.is_unspecified() => Host::Ip(Ipv4Addr::LOCALHOST.into()),
        Host::Ip(IpAddr::V6(ip)) if ip.is_unspecified() => Host::Ip(Ipv6Addr::LOCALHOST.into()),
        host => host.clone(),
    };
    Ok(Destination { host, port: listen.port() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &[&str]) -> ProxyConfig {
        ProxyConfig { listen: listen.iter().map(|text| text.parse().unwrap()).collect(), ..ProxyConfig::default() }
    }

    fn first(shell: Shell, unset: bool, listen: &[&str]) -> String {
        lines(EnvArgs { shell, unset }, &config(listen)).unwrap().lines().next().unwrap().to_owned()
    }

    #[test]
    fn each_shell_gets_its_own_lines() {
        for (shell, unset, line) in [
            (Shell::Sh, false, "export all_proxy='socks5h://127.0.0.1:8882';"),
            (Shell::Sh, true, "unset all_proxy;"),
            (Shell::Fish, false, "set -gx all_proxy 'socks5h://127.0.0.1:8882';"),
            (Shell::Csh, false, "setenv all_proxy 'socks5h://127.0.0.1:8882';"),
            (Shell::Plain, false, "all_proxy=socks5h://127.0.0.1:8882"),
        ] {
            assert_eq!(first(shell, unset, &["127.0.0.1:8882"]), line);
        }
    }

    #[test]
    fn the_address_is_one_that_can_be_connected_to() {
        for (listen, reached) in [
            (&["0.0.0.0:1"][..], "127.0.0.1:1"),
            (&["[::]:2"], "[::1]:2"),
            (&["127.0.0.1:0", "[::1]:3"], "[::1]:3"),
            (&["proxy.example:4"], "proxy.example:4"),
        ] {
            assert_eq!(first(Shell::Plain, false, listen), format!("all_proxy=socks5h://{reached}"));
        }
        let error = lines(EnvArgs { shell: Shell::Sh, unset: false }, &config(&["127.0.0.1:0"])).unwrap_err();
        assert!(error.to_string().contains("--info-file"), "{error}");
    }

    #[test]
    fn whoever_sends_everything_to_a_proxy_without_an_exit_is_warned() {
        let args = EnvArgs { shell: Shell::Sh, unset: false };
        let mut config = config(&["127.0.0.1:1"]);
        assert!(warning(args, &config).is_some());
        assert!(warning(EnvArgs { unset: true, ..args }, &config).is_none());
        config.exit = Exits::Any;
        assert!(warning(args, &config).is_none());
    }
}
