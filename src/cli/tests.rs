//! The command line as it is read: what every flag does to the settings, and what is refused.

use clap::CommandFactory;

use super::*;
use crate::config::PRIVATE_KEY_VARIABLE;
use crate::name::NostrName;
use crate::proxy::Optimistic;
use crate::proxy::exits::Exits;

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(["nws"].iter().chain(args))
}

fn settings(args: &[&str]) -> Result<Settings, RunError> {
    over(Sources::none(), args)
}

/// The flags over these sources.
fn over(sources: Sources, args: &[&str]) -> Result<Settings, RunError> {
    parse(args).unwrap().settings(sources)
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn flags_of_the_proxy_replace_what_is_configured() {
    let sources = || {
        Sources::none().variables([
            ("NWS_PROXY__LISTEN", r#"["127.0.0.1:1"]"#),
            ("NWS_RELAYS", r#"["ws://configured"]"#),
            ("NWS_PROXY__INFO_FILE", "/configured"),
            ("NWS_PROXY__OPTIMISTIC", "never"),
        ])
    };
    let config = over(sources(), &["proxy"]).unwrap().config;
    assert_eq!(texts(&config.proxy.listen), ["127.0.0.1:1"]);
    assert_eq!(config.proxy.optimistic, Optimistic::Never);
    let config = over(sources(), &["proxy", "--optimistic", "always"]).unwrap().config;
    assert_eq!(config.proxy.optimistic, Optimistic::Always);
    let args = ["proxy", "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--relay", "ws://a", "--info-file", "/flag"];
    let config = over(sources(), &args).unwrap().config;
    assert_eq!(texts(&config.proxy.listen), ["127.0.0.1:0", "[::1]:0"]);
    assert_eq!(texts(&config.relays), ["ws://a"]);
    assert_eq!(config.proxy.info_file, Some("/flag".into()));
}

#[test]
fn the_exits_of_a_proxy_are_keys_in_order_or_any() {
    let key = || NostrName::new(nostr::Keys::generate().public_key(), []).npub();
    let (first, second, configured) = (key(), key(), key());
    let exits = |args: &[&str]| {
        let sources = Sources::none().variables([("NWS_PROXY__EXIT", format!("[\"{configured}\"]"))]);
        over(sources, args).map(|settings| settings.config.proxy.exit)
    };
    let listed = |keys: &[&String]| Exits::Listed(keys.iter().map(|key| key.parse().unwrap()).collect());
    assert_eq!(exits(&["proxy"]).unwrap(), listed(&[&configured]));
    assert_eq!(exits(&["proxy", "--exit", &first, "--exit", &second]).unwrap(), listed(&[&first, &second]));
    assert_eq!(exits(&["proxy", "--exit", "any"]).unwrap(), Exits::Any);
    assert_eq!(exits(&["proxy", "--exit", "any", "--exit", &first]).unwrap_err().exit_code(), 64);
    assert_eq!(settings(&["proxy"]).unwrap().config.proxy.exit, Exits::default());
}

#[test]
fn looking_for_exits_needs_a_relay() {
    let error = settings(&["exits"]).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().contains("--relay"), "{error}");
    let found = settings(&["exits", "--relay", "ws://a", "--wait", "1m"]).unwrap().config;
    assert_eq!(texts(&found.relays), ["ws://a"]);
    assert_eq!(found.log.filter.to_string(), "warn");
}

#[test]
fn an_exit_offers_exactly_what_its_flags_say() {
    let sources = || {
        Sources::none().variables([
            ("NWS_EXIT__SERVICE__22", "configured:22"),
            ("NWS_EXIT__TARGET", "configured:1"),
            ("NWS_EXIT__RELAYS", r#"["ws://configured"]"#),
        ])
    };
    let exit = over(sources(), &["exit"]).unwrap().config.exit;
    assert!(exit.target.is_some() && exit.service.contains_key(&22));

    let args = ["exit", "--relay", "ws://a", "--service", "80=127.0.0.1:3000", "--service", "443=[::1]:3001"];
    let exit = over(sources(), &args).unwrap().config.exit;
    assert_eq!(texts(&exit.relays), ["ws://a"]);
    assert_eq!(exit.target, None);
    assert_eq!(exit.service.keys().copied().collect::<Vec<_>>(), [80, 443]);
    assert_eq!(exit.service[&443].target.to_string(), "[::1]:3001");

    let exit = over(sources(), &["exit", "--target", "127.0.0.1:3000"]).unwrap().config.exit;
    assert!(exit.service.is_empty());
    assert_eq!(exit.target.unwrap().to_string(), "127.0.0.1:3000");
}

#[test]
fn an_exit_offers_its_site_with_tls_where_that_is_wanted() {
    let tls = |args: &[&str]| {
        let args = [&["exit", "--relay", "ws://a", "--tls"], args].concat();
        let config = over(Sources::none(), &args)?.config;
        let ports = config.exit.service.iter().map(|(port, service)| (*port, service.tls.map(u16::from)));
        Ok::<_, RunError>(ports.collect::<Vec<_>>())
    };
    let service = ["--service", "80=127.0.0.1:3000", "--service", "22=127.0.0.1:22"];
    assert_eq!(tls(&service).unwrap(), [(22, None), (80, Some(443))]);
    assert_eq!(tls(&["--target", "127.0.0.1:3000"]).unwrap(), [(443, Some(443))]);
    for args in [&["--service", "22=127.0.0.1:22"][..], &["--service", "80=a:1", "--service", "443=a:2"]] {
        assert_eq!(tls(args).unwrap_err().exit_code(), 64);
    }
    // The target may come from the environment of the Go program.
    let sources = Sources::none().variables([("BACKEND_HOST", "127.0.0.1:3000")]);
    let exit = over(sources, &["exit", "--relay", "ws://a", "--tls"]).unwrap().config.exit;
    assert!(exit.target.is_some() && exit.service.contains_key(&443));
}

#[test]
fn the_authority_of_the_machine_is_where_flags_or_configuration_say() {
    let sources = || Sources::none().variables([("NWS_PROXY__TRUST__DIRECTORY", "/configured")]);
    for words in [&["trust", "init"][..], &["trust", "install"], &["trust", "remove"]] {
        let directory = |args: &[&str]| {
            let args = [words, args].concat();
            over(sources(), &args).unwrap().config.proxy.trust.directory
        };
        assert_eq!(directory(&[]), Some("/configured".into()));
        assert_eq!(directory(&["--directory", "/flag"]), Some("/flag".into()));
    }
    assert!(!settings(&["proxy"]).unwrap().config.proxy.trust.enabled);
    assert!(settings(&["proxy", "--trust"]).unwrap().config.proxy.trust.enabled);
    let stores = |args: &[&str]| match parse(&[&["trust", "install"], args].concat()).unwrap().command {
        Command::Trust(TrustCommand::Install(args)) => args.stores(),
        other => panic!("{other:?}"),
    };
    let all = stores(&[]);
    assert!(all.system && all.browsers && all.nss.is_empty());
    let one = stores(&["--nss", "/profile"]);
    assert!(!one.system && !one.browsers && one.nss == [std::path::PathBuf::from("/profile")]);
    assert!(stores(&["--store", "browsers", "--nss", "/profile"]).browsers);
}

#[test]
fn a_certificate_is_looked_for_on_the_relays_of_flags_name_or_configuration() {
    let key = NostrName::new(nostr::Keys::generate().public_key(), []);
    let full = NostrName::new(key.public_key, [crate::name::parse_relay("ws://named").unwrap()]);
    let relays = |args: &[&str], configured: &str| {
        let cli = parse(&[&["cert"], args].concat()).unwrap();
        let config = cli.settings(Sources::none().variables([("NWS_RELAYS", configured)])).unwrap().config;
        let Command::Cert(args) = cli.command else { panic!("another command") };
        args.relays(&config).map(texts)
    };
    let (key, full) = (key.to_string(), full.to_string());
    assert_eq!(relays(&[&full, "--relay", "ws://flag"], r#"["ws://general"]"#).unwrap(), ["ws://flag"]);
    assert_eq!(relays(&[&full], r#"["ws://general"]"#).unwrap(), ["ws://named"]);
    assert_eq!(relays(&[&key], r#"["ws://general"]"#).unwrap(), ["ws://general"]);
    assert_eq!(relays(&[&key], "[]").unwrap_err().exit_code(), 64);
    assert!(parse(&["cert", "example.com"]).is_err());
}

#[test]
fn an_exit_needs_a_relay_and_something_to_offer() {
    for (args, missing) in [
        (&["exit", "--service", "80=a:1"][..], "--relay"),
        (&["exit", "--relay", "ws://a"], "--service"),
        (&["exit", "--relay", "ws://a", "--service", "80=a:1", "--service", "80=a:2"], "two services"),
    ] {
        let error = settings(args).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(error.to_string().contains(missing), "{error}");
    }
    assert!(settings(&["exit", "--relay", "ws://a", "--public"]).unwrap().config.exit.public.enabled);
    // The general relays will do.
    let sources = Sources::none().variables([("NWS_RELAYS", r#"["ws://a"]"#)]);
    assert!(over(sources, &["exit", "--target", "a:1"]).is_ok());
}

#[test]
fn a_key_file_on_the_command_line_comes_before_the_key_in_the_environment() {
    let sources =
        || Sources::none().variables([(PRIVATE_KEY_VARIABLE, "secret"), ("NWS_EXIT__KEY_FILE", "/configured")]);
    let exit = ["exit", "--relay", "ws://a", "--target", "a:1"];
    assert!(over(sources(), &exit).unwrap().private_key.is_some());
    let settings = over(sources(), &[&exit[..], &["--key-file", "/flag"]].concat()).unwrap();
    assert_eq!((settings.private_key, settings.config.exit.key_file), (None, Some("/flag".into())));
}

#[test]
fn flags_of_the_relay_replace_what_is_configured() {
    let relay = settings(&["relay"]).unwrap().config.relay;
    assert_eq!(relay.listen.to_string(), "127.0.0.1:7777");
    let relay = settings(&["relay", "--listen", "localhost:0", "--info-file", "i.json"]).unwrap().config.relay;
    assert_eq!((relay.listen.to_string(), relay.info_file), ("localhost:0".to_owned(), Some("i.json".into())));
}

#[test]
fn the_log_filter_comes_from_the_flag_that_is_given() {
    let configured = || Sources::none().variables([("NWS_LOG__FILTER", "nws=trace")]);
    for (args, filter) in [
        (&["relay"][..], "nws=trace"),
        (&["relay", "--log", "error"], "error"),
        (&["--log", "error", "relay"], "error"),
        (&["relay", "-v"], "nws=debug,info"),
        (&["-vv", "relay"], "nws=trace,debug"),
        (&["relay", "-q"], "warn"),
        (&["relay", "--quiet", "--quiet"], "error"),
        (&["demo"], "nws=trace"),
    ] {
        let log = over(configured(), args).unwrap().config.log;
        assert_eq!(log.filter.to_string(), filter, "{args:?}");
    }
    assert_eq!(settings(&["relay"]).unwrap().config.log.filter.to_string(), "info");
    assert_eq!(settings(&["demo"]).unwrap().config.log.filter.to_string(), "warn");
    assert_eq!(settings(&["demo", "-v"]).unwrap().config.log.filter.to_string(), "nws=debug,info");
}

#[test]
fn the_configuration_file_can_be_named_before_or_after_the_command() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[relay]\nlisten = '127.0.0.1:1'").unwrap();
    let path = file.path().to_str().unwrap();
    for args in [["--config", path, "relay"], ["relay", "--config", path]] {
        assert_eq!(settings(&args).unwrap().config.relay.listen.port(), 1);
    }
    let error = settings(&["relay", "--config", "/nowhere/nws.toml"]).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert!(error.to_string().contains("/nowhere/nws.toml"), "{error}");
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    for (args, reason) in [
        (&[][..], "Usage"),
        (&["tunnel"], "tunnel"),
        (&["proxy", "--listen", "8882"], "HOST:PORT"),
        (&["proxy", "--relay", "https://a"], "neither ws nor wss"),
        (&["proxy", "--optimistic", "Perhaps"], "not one of auto, always and never"),
        (&["exit", "--service", "127.0.0.1:3000"], "PORT=HOST:PORT"),
        (&["exit", "--service", "0=127.0.0.1:3000"], "port 0"),
        (&["exit", "--service", "80=127.0.0.1:0"], "port 0"),
        (&["exit", "--service", "80=a:1", "--target", "a:1"], "cannot be used with"),
        (&["exit", "--target", "127.0.0.1"], "has no port"),
        (&["proxy", "--exit", "some"], "npub1"),
        (&["exits", "--wait", "2h"], "a duration such as"),
        (&["exit", "--key", "x"], "--key"),
        (&["exit", "--private-key", "x"], "--private-key"),
        (&["relay", "--listen", "127.0.0.1:1", "--listen", "127.0.0.1:2"], "cannot be used multiple times"),
        (&["relay", "--log", "loud"], "not a log level"),
        (&["relay", "--log", "info", "-v"], "cannot be used with"),
        (&["relay", "-v", "-q"], "cannot be used with"),
    ] {
        let error = parse(args).unwrap_err();
        assert!(error.use_stderr(), "{args:?}");
        assert!(error.to_string().contains(reason), "{args:?}: {error}");
    }
}
