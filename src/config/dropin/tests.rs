//! The environment of the Go program as its users have it: what is taken, what is stronger, and how mistakes are named.

use super::super::{Config, PRIVATE_KEY_VARIABLE};
use super::*;
use tempfile::TempDir;

const HEX: &str = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa";
const NSEC: &str = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5";

/// Everything that a user of the Go program may have set.
const ALL: [(&str, &str); 5] = [
    (RELAYS, "ws://a; wss://b ;"),
    (PRIVATE_KEY, HEX),
    (BACKEND_HOST, "localhost:3338"),
    (PUBLIC, "true"),
    (PUBLIC_ADDRESS, "192.0.2.1:4444"),
];

fn directory_with(text: &str) -> (TempDir, Sources) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(".env");
    std::fs::write(&path, text).unwrap();
    (directory, Sources::none().dot_env_file(path))
}

fn exit(sources: &Sources) -> Result<Settings, ConfigError> {
    let mut settings = sources.load()?;
    settings.fill_exit(sources)?;
    Ok(settings)
}

fn proxy(sources: &Sources) -> Result<Settings, ConfigError> {
    let mut settings = sources.load()?;
    settings.fill_proxy(sources)?;
    Ok(settings)
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn variable(name: &str) -> String {
    format!("environment variable {name}")
}

#[test]
fn an_exit_has_all_that_it_needs_from_these_variables_alone() {
    let settings = exit(&Sources::none().variables(ALL)).unwrap();
    assert_eq!(texts(settings.config.exit_relays()), ["ws://a", "wss://b"]);
    assert_eq!(settings.config.exit.target.unwrap().to_string(), "localhost:3338");
    assert_eq!(settings.private_key.unwrap().expose(), HEX);
    assert!(settings.config.exit.public.enabled);
    assert_eq!(texts(&settings.drop_in.taken), [RELAYS, BACKEND_HOST, PRIVATE_KEY, PUBLIC].map(variable));
}

#[test]
fn a_proxy_takes_the_relays_and_leaves_what_is_for_an_exit() {
    // Not even a mistake in it matters.
    let sources = Sources::none().variables(ALL).variables([(BACKEND_HOST, "nonsense")]);
    let settings = proxy(&sources).unwrap();
    assert_eq!(texts(&settings.config.relays), ["ws://a", "wss://b"]);
    assert_eq!((settings.config.exit.target, settings.private_key), (None, None));
    assert_eq!(settings.config.proxy.public_address.unwrap().to_string(), "192.0.2.1:4444");
    assert_eq!(texts(&settings.drop_in.taken), [variable(RELAYS), variable(PUBLIC_ADDRESS)]);
}

#[test]
fn an_address_that_a_proxy_before_the_relays_hides_is_not_taken() {
    let hidden = [("NWS_RELAY_PROXY__URL", "socks5://127.0.0.1:9050")];
    let error = proxy(&Sources::none().variables(ALL).variables(hidden)).unwrap_err().to_string();
    assert!(
        [PUBLIC_ADDRESS, "proxy.public_address", "relay_proxy.url"].iter().all(|part| error.contains(part)),
        "{error}"
    );
    // An exit has no use for it.
    exit(&Sources::none().variables(ALL).variables(hidden)).unwrap();
}

#[test]
fn our_own_settings_are_stronger_each_for_itself() {
    let own = [("NWS_RELAYS", r#"["ws://own"]"#), (PRIVATE_KEY_VARIABLE, "own"), ("NWS_EXIT__TARGET", "own:1")];
    let settings = exit(&Sources::none().variables(ALL).variables(own)).unwrap();
    assert_eq!(texts(settings.config.exit_relays()), ["ws://own"]);
    assert_eq!(settings.config.exit.target.unwrap().to_string(), "own:1");
    assert_eq!(settings.private_key.unwrap().expose(), "own");
    assert_eq!(settings.drop_in.taken, []);

    for (own, left) in [
        (("NWS_EXIT__RELAYS", r#"["ws://own"]"#), vec![BACKEND_HOST, PRIVATE_KEY, PUBLIC]),
        (("NWS_EXIT__SERVICE__22", "own:22"), vec![RELAYS, PRIVATE_KEY]),
        (("NWS_EXIT__KEY_FILE", "/own"), vec![RELAYS, BACKEND_HOST, PUBLIC]),
        (("NWS_EXIT__PUBLIC__ENABLED", "true"), vec![RELAYS, BACKEND_HOST, PRIVATE_KEY]),
    ] {
        let settings = exit(&Sources::none().variables(ALL).variables([own])).unwrap();
        assert_eq!(texts(&settings.drop_in.taken), left.into_iter().map(variable).collect::<Vec<_>>());
    }
}

#[test]
fn only_a_clear_yes_makes_an_exit_public() {
    let started = |value: &str| exit(&Sources::none().variables([(PUBLIC, value)])).unwrap();
    for (value, enabled, unclear) in
        [("1", true, false), ("True", true, false), ("f", false, false), ("/srv", false, true)]
    {
        let settings = started(value);
        assert_eq!(
            (settings.config.exit.public.enabled, settings.drop_in.public_unclear),
            (enabled, unclear),
            "{value}"
        );
    }
}

#[test]
fn the_file_counts_where_the_process_says_nothing() {
    let (directory, sources) = directory_with(&format!(
        "\u{feff}# the exit's own\r\nNOSTR_RELAYS = 'ws://file;ws://too' # ours\n\nexport NOSTR_PRIVATE_KEY=\"{NSEC}\"\n\
         BACKEND_HOST=:1\nBACKEND_HOST=:3000\nPUBLIC=false\nOTHER=$x\nNWS_RELAYS=no "
    ));
    let settings = exit(&sources).unwrap();
    assert_eq!(texts(settings.config.exit_relays()), ["ws://file", "ws://too"]);
    assert_eq!(settings.config.exit.target.unwrap().to_string(), "localhost:3000");
    assert_eq!(settings.private_key.unwrap().expose(), NSEC);
    assert!(!settings.config.exit.public.enabled);
    let path = directory.path().join(".env");
    assert_eq!(settings.drop_in.taken[0], Origin::DotEnv { path, variable: RELAYS.to_owned() });

    let settings = exit(&sources.clone().variables([(RELAYS, "ws://process"), (PRIVATE_KEY, "")])).unwrap();
    assert_eq!(texts(settings.config.exit_relays()), ["ws://process"]);
    assert_eq!(settings.private_key, None);
    assert!(std::env::var_os(BACKEND_HOST).is_none(), "the environment of the process was changed");
}

#[test]
fn nothing_is_taken_where_nothing_is_said() {
    let directory = TempDir::new().unwrap();
    for path in [directory.path().join(".env"), directory.path().to_owned()] {
        let sources = Sources::none().dot_env_file(path).variables(ALL.map(|(name, _)| (name, " ")));
        for settings in [exit(&sources).unwrap(), proxy(&sources).unwrap()] {
            assert_eq!((settings.config, settings.private_key), (Config::default(), None));
            assert_eq!(settings.drop_in, DropIn::default());
        }
    }
}

#[test]
fn a_malformed_file_is_named_with_its_line_and_not_quoted() {
    for (text, line) in [
        (format!("{PRIVATE_KEY}={HEX} {HEX}"), 1),
        (format!("\n# one\n\n{PRIVATE_KEY} {HEX}\nOTHER=1\n"), 4),
        (format!("OTHER='two\nlines'\n{PRIVATE_KEY}=\"{HEX}\nand no end\n\n"), 3),
        (format!("OTHER='two\nlines'\n1{PRIVATE_KEY}='{HEX}\n{HEX}'\n"), 3),
        (format!("OTHER=1\r\n{PRIVATE_KEY}=a{HEX}\\x\r\n"), 2),
        (format!("{}\n{PRIVATE_KEY}", "#".repeat(20_000)), 2),
    ] {
        let (directory, sources) = directory_with(&text);
        for error in [exit(&sources).unwrap_err(), proxy(&sources).unwrap_err()] {
            let place = format!("{}: line {line}: ", directory.path().join(".env").display());
            assert!(error.to_string().starts_with(&place), "{text}: {error}");
            assert!(!format!("{error} {error:?}").contains(HEX), "{error}");
        }
        // Some other program's file stops nobody who needs nothing of it.
        assert!(proxy(&sources.variables([("NWS_RELAYS", r#"["ws://own"]"#)])).is_ok());
    }
}

#[test]
fn a_wrong_value_names_its_variable_and_repeats_no_secret() {
    for (name, value, said) in [
        (RELAYS, "ws://a;https://b", "environment variable NOSTR_RELAYS: relays: "),
        (BACKEND_HOST, "localhost", "environment variable BACKEND_HOST: exit.target: \"localhost\" has no port"),
        (RELAYS, HEX, "environment variable NOSTR_RELAYS: relays: holds what may be a secret key"),
        (BACKEND_HOST, HEX, "environment variable BACKEND_HOST: exit.target: holds what may be a secret key"),
        (RELAYS, NSEC, "environment variable NOSTR_RELAYS: relays: holds what may be a secret key"),
    ] {
        match exit(&Sources::none().variables([(name, value)])) {
            Err(error) => {
                assert!(error.to_string().starts_with(said), "{error}");
                assert!(![HEX, NSEC].iter().any(|secret| format!("{error} {error:?}").contains(secret)), "{error}");
            }
            Ok(settings) => panic!("{name}={value}: {settings:?}"),
        }
    }
    let (directory, sources) = directory_with("BACKEND_HOST=localhost");
    let error = exit(&sources).unwrap_err().to_string();
    let place = format!("{}: BACKEND_HOST: exit.target: ", directory.path().join(".env").display());
    assert!(error.starts_with(&place), "{error}");
}

#[test]
fn the_key_is_shown_nowhere() {
    let (_directory, sources) = directory_with(&format!("NOSTR_PRIVATE_KEY={NSEC}"));
    for sources in [sources, Sources::none().variables([(PRIVATE_KEY, NSEC)])] {
        let settings = exit(&sources).unwrap();
        assert_eq!(settings.private_key.as_ref().unwrap().expose(), NSEC);
        let shown = format!("{sources:?} {settings:?} {:?}", settings.drop_in);
        assert!(!shown.contains("nsec1"), "{shown}");
    }
}
