//! The layers as a user meets them: what overrides what, how mistakes are named, and that `config/nws.toml` tells the
//! truth. The environment is handed in, so the tests can run side by side.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::name::parse_relay;
use tempfile::TempDir;

const EXAMPLE: &str = include_str!("../../config/nws.toml");

/// A directory with configuration files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn from_text(text: &str) -> Result<Config, ConfigError> {
    let files = Files::new();
    let path = files.file("nws.toml", text);
    Sources::none().required_file(path).load().map(|settings| settings.config)
}

fn from_variables(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Sources::none().variables(variables.iter().copied()).load().map(|settings| settings.config)
}

/// The example with its comments taken away where the line, after `mark`, is `key = value`.
fn uncommented(mark: &str) -> String {
    let is_setting = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| {
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        })
    };
    let lines = EXAMPLE.lines().map(|line| line.strip_prefix(mark).filter(|rest| is_setting(rest)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every leaf of a configuration, dotted.
fn keys(prefix: &str, value: &serde_json::Value, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                keys(&dotted, value, out);
            }
        }
        _ => out.push(prefix.to_owned()),
    }
}

#[test]
fn no_source_at_all_is_the_defaults() {
    let settings = Sources::none().load().unwrap();
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.config.proxy.listen[0].to_string(), "127.0.0.1:8882");
}

#[test]
fn the_example_as_it_is_equals_the_defaults() {
    assert_eq!(from_text(EXAMPLE).unwrap(), Config::default());
}

#[test]
fn the_example_uncommented_equals_the_defaults() {
    let text = uncommented("# ");
    assert!(text.lines().filter(|line| !line.starts_with('#') && line.contains(" = ")).count() > 20);
    assert_eq!(from_text(&text).unwrap(), Config::default());
}

#[test]
fn the_examples_of_keys_without_default_are_valid() {
    let text = uncommented("#   ");
    // An address to be reached at and a proxy that hides it are not for one configuration.
    let without = |key: &str| text.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n");
    assert!(from_text(&text).unwrap_err().to_string().contains("relay_proxy.url"));
    assert!(from_text(&without("public_")).unwrap().relay_proxy.url.is_some());
    let config = from_text(&without("url = ")).unwrap();
    assert!(config.proxy.public_address.is_some() && config.exit.public_listen.is_some());
    assert_eq!(config.exit.service.len(), 3);
    assert!(config.exit.tls.certificate.is_some() && config.proxy.trust.directory.is_some());
    assert!(config.exit.key_file.is_some() && config.exit.target.is_some() && config.relay.info_file.is_some());
    assert_eq!((config.relays.len(), config.exit.relays.len()), (2, 1));
}

#[test]
fn the_example_holds_every_key_in_its_section() {
    let mut all = Vec::new();
    keys("", &serde_json::to_value(Config::default()).unwrap(), &mut all);
    assert!(all.len() > 30, "{all:?}");
    for key in all {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", &key));
        let body = match section {
            "" => EXAMPLE.split("\n[").next(),
            section => EXAMPLE.split("\n[").find(|part| part.starts_with(&format!("{section}]"))),
        };
        let line = format!(" {name} = ");
        let present = body.is_some_and(|body| body.lines().any(|l| l.starts_with('#') && l.contains(&line)));
        assert!(present || EXAMPLE.contains(&format!("\n[{key}]\n")), "config/nws.toml lacks {key}");
    }
}

#[test]
fn a_later_layer_overrides_an_earlier_one() {
    let files = Files::new();
    let system = files.file("system.toml", "[limits]\nstall_timeout = '1s'\ndial_timeout = '1s'\nopen_timeout = '1s'");
    let user = files.file("user.toml", "[limits]\ndial_timeout = '2s'\nopen_timeout = '2s'\nhandshake_timeout = '2s'");
    let asked = files.file("asked.toml", "[limits]\nopen_timeout = '3s'\nhandshake_timeout = '3s'");
    let limits = Sources::none()
        .optional_file(system)
        .optional_file(user)
        .optional_file(files.0.path().join("missing.toml"))
        .required_file(asked)
        .variables([("NWS_LIMITS__HANDSHAKE_TIMEOUT", "4s")])
        .load()
        .unwrap()
        .config
        .limits;
    let seconds = |duration: Duration| duration.as_secs();
    assert_eq!(seconds(limits.stall_timeout), 1);
    assert_eq!(seconds(limits.dial_timeout), 2);
    assert_eq!(seconds(limits.open_timeout), 3);
    assert_eq!(seconds(limits.handshake_timeout), 4);
}

#[test]
fn lists_are_replaced_and_services_joined() {
    let files = Files::new();
    let system = files.file("system.toml", "relays = ['wss://a', 'wss://b']\n[exit.service]\n80 = 'a:1'\n22 = 'a:2'");
    let user = files.file("user.toml", "relays = ['wss://c']\n[exit.service]\n22 = 'b:2'\n443 = { target = 'b:3' }");
    let config = Sources::none().optional_file(system).optional_file(user).load().unwrap().config;
    assert_eq!(config.relays, [parse_relay("wss://c").unwrap()]);
    let services: Vec<_> = config.exit.service.iter().map(|(port, s)| format!("{port}={}", s.target)).collect();
    assert_eq!(services, ["22=b:2", "80=a:1", "443=b:3"]);
}

#[test]
fn variables_set_every_kind_of_value() {
    let config = from_variables(&[
        ("NWS_RELAYS", r#"["wss://one.example", "ws://127.0.0.1:7777"]"#),
        ("NWS_PROXY__LISTEN", r#"["127.0.0.1:0", "[::1]:0"]"#),
        ("NWS_EXIT__TARGET", "127.0.0.1:3000"),
        ("NWS_EXIT__SERVICE__80", "localhost:80"),
        ("NWS_EXIT__SERVICE", r#"{22="localhost:22"}"#),
        ("NWS_LIMITS__WINDOW_MAX", "33554432"),
        ("NWS_LIMITS__WINDOW_INITIAL", "1 MiB"),
        ("NWS_LIMITS__SESSION_STREAMS", "5"),
        ("NWS_LOG__FILTER", "nws=debug,info"),
        ("OTHER_THING", "ignored"),
    ])
    .unwrap();
    assert_eq!(config.relays.len(), 2);
    assert_eq!(config.proxy.listen[1].to_string(), "[::1]:0");
    assert_eq!(config.exit.target.unwrap().to_string(), "127.0.0.1:3000");
    assert_eq!(config.exit.service.keys().copied().collect::<Vec<_>>(), [22, 80]);
    assert_eq!(config.limits.window_max, ByteSize::mib(32));
    assert_eq!(config.limits.window_initial, ByteSize::mib(1));
    assert_eq!(config.limits.session_streams, 5);
    assert_eq!(config.log.filter.to_string(), "nws=debug,info");
}

#[test]
fn every_key_can_be_set_by_a_variable() {
    let mut all = Vec::new();
    keys("", &serde_json::to_value(Config::default()).unwrap(), &mut all);
    for key in all {
        // A table suits no key but the services: the refusal shows that the variable reached its key.
        let variable = format!("NWS_{}", key.replace('.', "__").to_uppercase());
        match from_variables(&[(&variable, "{no=no}")]).unwrap_err() {
            ConfigError::Value { origin, key: named, .. } => {
                assert_eq!(origin, Origin::Variable(variable));
                assert!(named.starts_with(&key), "{named} for {key}");
            }
            error => panic!("{key}: {error}"),
        }
    }
}

#[test]
fn mistakes_in_a_file_name_the_file_the_key_and_the_reason() {
    for (text, key, reason) in [
        (
            "[proxy]\nlisten_on = []",
            "proxy.listen_on",
            "unknown key; known here: listen, optimistic, isolate_destinations, exit, exclude, lookup_relays, rule, identity, identity_for, public_address, public_listen, direct_plaintext, dial_exits, trust, info_file",
        ),
        ("colour = 'red'", "colour", "unknown key"),
        ("private_key = 'x'", "private_key", "unknown key"),
        ("[exit.service]\n0 = 'a:1'", "exit.service.0", "port 0"),
        ("[exit.service]\n70000 = 'a:1'", "exit.service.70000", "not a port"),
        ("[exit.service]\n80 = 'localhost'", "exit.service.80", "has no port"),
        ("[exit.service]\n80 = 3000", "exit.service.80", "HOST:PORT or a table"),
        ("[exit.service]\n80 = { target = 'a:1', alow = [] }", "exit.service.80.alow", "unknown key"),
        ("[exit]\ntarget = '127.0.0.1'", "exit.target", "has no port"),
        ("relays = ['wss://a', 'https://b']", "relays.1", "its scheme is neither ws nor wss"),
        ("[exit]\nrelays = 'wss://a'", "exit.relays", "must be a list"),
        ("[proxy]\nlisten = []", "proxy.listen", "is empty"),
        ("[proxy]\noptimistic = 'perhaps'", "proxy.optimistic", "not one of: auto, always, never"),
        ("[limits]\nwindow_initial = 0", "limits.window_initial", "64.0 KiB or more"),
        ("[limits]\nwindow_max = '100 KiB'", "limits.window_max", "is above limits.window_max"),
        ("[limits]\nwindow_max = 'big'", "limits.window_max", "\"big\" is not a size such as"),
        ("[limits]\nstall_timeout = '0s'", "limits.stall_timeout", "is zero"),
        ("[limits]\nstall_timeout = 60", "limits.stall_timeout", "a duration such as"),
        ("[limits]\nstall_timeout = 'soon'", "limits.stall_timeout", "a duration such as"),
        ("[limits]\nsession_streams = -1", "limits.session_streams", "whole number"),
        ("[log]\nfilter = 'loud'", "log.filter", "not a log level"),
        ("[log]\nformat = 'xml'", "log.format", "not one of: human"),
        ("log = 'debug'", "log", "a section"),
        ("[proxy]\nexit = 'some'", "proxy.exit", "npub1"),
        ("[proxy]\nexit = ['any']", "proxy.exit.0", "npub1"),
        ("[proxy]\nexclude = 'any'", "proxy.exclude", "must be a list"),
        (
            "[[proxy.rule]]\nto = '*'\nvia = 'nowhere'",
            "proxy.rule.0.via",
            "is neither \"exit\", \"direct\", \"reject\"",
        ),
        ("[[exit.rule]]\nto = '10.0.0.0/33'\naction = 'accept'", "exit.rule.0.to", "is no range"),
        ("[[exit.rule]]\nto = '*'\nports = [0]\naction = 'accept'", "exit.rule.0.ports", "neither a port"),
        ("[[exit.rule]]\nto = '*'\nports = []\naction = 'accept'", "exit.rule.0.ports", "is empty"),
        ("[[exit.rule]]\nto = '*'\naction = 'allow'", "exit.rule.0.action", "not one of: accept, reject"),
        ("[proxy]\npublic_address = '192.0.2.1'", "proxy.public_address", "has no port"),
        ("[proxy]\npublic_listen = '0.0.0.0:1'", "proxy.public_listen", "set proxy.public_address"),
        ("[proxy]\ndirect_plaintext = 'yes'", "proxy.direct_plaintext", "not one of: never, tls-only, always"),
        ("[exit.dial_back]\nprivate = ['*']", "exit.dial_back.private.0", "is no address and no range"),
        ("[exit.dial_back]\nfamilies = 'v4'", "exit.dial_back.families", "not one of: any, ipv4, ipv6"),
        ("[limits]\ndirect_timeout = '0s'", "limits.direct_timeout", "is zero"),
        ("[exit.tls]\nkey = 'k'", "exit.tls.key", "set exit.tls.certificate, too"),
        ("[exit.tls]\nalpn = ['']", "exit.tls.alpn", "empty or too long"),
        ("[exit.service]\n80 = { target = 'a:1', tls = 0 }", "exit.service.80.tls", "port 0"),
        ("[exit.service]\n80 = { target = 'a:1', tls = 22 }\n22 = 'a:2'", "exit.service", "which is another service"),
        (
            "[exit.service]\n80 = { target = 'a:1', tls = 443 }\n81 = { target = 'a:1', tls = 443 }",
            "exit.service",
            "two services are to have TLS on port 443",
        ),
        (
            "[exit]\ntls = { certificate = 'c' }\nservice = { 443 = { target = 'a:1', tls = 443 } }",
            "exit.service",
            "set exit.tls.key",
        ),
        ("[exit.public]\nannounce_interval = '0s'", "exit.public.announce_interval", "between 1s and 1h"),
    ] {
        let files = Files::new();
        let path = files.file("nws.toml", text);
        match Sources::none().required_file(&path).load().unwrap_err() {
            ConfigError::Value { origin, key: named, reason: said } => {
                assert_eq!((origin, named.as_str()), (Origin::File(path), key), "{text}: {said}");
                assert!(said.contains(reason), "{text}: {said}");
            }
            error => panic!("{text}: {error}"),
        }
    }
}

#[test]
fn the_layer_that_is_wrong_is_the_one_that_is_named() {
    let files = Files::new();
    let good = files.file("good.toml", "[limits]\nwindow_initial = '128 KiB'\n[exit.service]\n80 = 'a:1'");
    let bad = files.file("bad.toml", "[exit.service]\n22 = 'a'");
    let error = Sources::none().optional_file(&bad).required_file(&good).load().unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: exit.service.22: ", bad.display())), "{error}");

    let variables = [("NWS_LIMITS__WINDOW_INITIAL", "1 GiB")];
    let error = Sources::none().required_file(&good).variables(variables).load().unwrap_err().to_string();
    assert!(error.starts_with("environment variable NWS_LIMITS__WINDOW_INITIAL: limits.window_initial: "), "{error}");
}

#[test]
fn mistakes_in_a_variable_name_the_variable() {
    for (name, value) in [
        ("NWS_PROXI__LISTEN", "[]"),
        ("NWS_PROXY_LISTEN", "[]"),
        ("NWS_", "1"),
        ("NWS___LISTEN", "1"),
        ("NWS_PROXY__LISTEN", "127.0.0.1:0"),
        ("NWS_PROXY__LISTEN", "[127.0.0.1]"),
        ("NWS_PROXY", "1"),
        ("NWS_EXIT__SERVICE__0", "a:1"),
    ] {
        let error = from_variables(&[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("environment variable {name}: ")), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_an_error_only_if_it_is_ours() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let broken = || OsString::from_vec(vec![0xff]);
    assert!(Sources::none().variables([("PATH", broken())]).load().is_ok());
    let error = Sources::none().variables([("NWS_LOG__FILTER", broken())]).load().unwrap_err();
    assert!(matches!(error, ConfigError::NotText(name) if name == "NWS_LOG__FILTER"));
}

#[test]
fn a_file_that_was_asked_for_must_exist_and_every_file_must_be_readable_toml() {
    let files = Files::new();
    let missing = files.0.path().join("missing.toml");
    let error = Sources::none().required_file(&missing).load().unwrap_err();
    assert!(error.to_string().contains("missing.toml"), "{error}");
    // A directory in the place of a file is not a missing file.
    let error = Sources::none().optional_file(files.0.path()).load().unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    let error = from_text("[proxy\nlisten = 1").unwrap_err();
    assert!(matches!(&error, ConfigError::Syntax { reason, .. } if reason.contains("line 1")), "{error}");
}

#[test]
fn the_private_key_is_taken_from_the_environment_and_shown_nowhere() {
    let secret = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5";
    let sources = Sources::none().variables([(PRIVATE_KEY_VARIABLE, secret)]);
    let settings = sources.load().unwrap();
    assert_eq!(settings.private_key.as_ref().unwrap().expose(), secret);
    assert_eq!(settings.config, Config::default());
    for shown in [format!("{settings:?}"), format!("{settings:#?}"), format!("{sources:?}")] {
        assert!(!shown.contains("nsec1"), "{shown}");
    }
    // Put elsewhere by mistake, it is not repeated either.
    for variable in ["NWS_PRIVATEKEY", "NWS_EXIT__TARGET", "NWS_EXIT", "NWS_LOG__FILTER", "NWS_LOG__FORMAT"] {
        let error = from_variables(&[(variable, secret)]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("nsec1"), "{error}");
    }
    let error = from_text(&format!("[exit]\nkey = {secret}")).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("nsec1"), "{error}");
}

#[test]
fn an_exit_without_relays_of_its_own_uses_the_general_ones() {
    let general = "relays = ['wss://general']";
    assert_eq!(from_text(general).unwrap().exit_relays(), [parse_relay("wss://general").unwrap()]);
    let own = from_text(&format!("{general}\n[exit]\nrelays = ['wss://own']")).unwrap();
    assert_eq!(own.exit_relays(), [parse_relay("wss://own").unwrap()]);
}
