//! The `nws` binary as a shell sees it: what it writes where, and its exit codes.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::path::Path;
use std::process::{Command, Output};

/// Runs `nws` with these flags and variables, and a home directory that holds nothing.
fn nws(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let inherited = std::env::vars_os().filter(|(name, _)| name.to_str().is_none_or(|name| !name.starts_with("NWS_")));
    Command::new(env!("CARGO_BIN_EXE_nws"))
        .args(args)
        .env_clear()
        .envs(inherited)
        .env("HOME", home.path())
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_STATE_HOME")
        .env_remove("STATE_DIRECTORY")
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn help_and_version_are_answers_and_not_errors() {
    for args in [&["--help"][..], &["-h"], &["--version"], &["help", "exit"], &["proxy", "--help"], &["relay", "-V"]] {
        let output = nws(args, &[]);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    for word in ["proxy", "exit", "relay", "demo", "name"] {
        assert!(stdout(&nws(&["--help"], &[])).contains(word));
        assert!(nws(&[word, "--help"], &[]).status.success());
    }
}

#[test]
fn wrong_usage_is_exit_code_64() {
    for args in [
        &[][..],
        &["tunnel"],
        &["proxy", "--lisen", "x"],
        &["exit"],
        &["name", "decode", "not-a-name"],
        &["relay", "x"],
    ] {
        let output = nws(args, &[]);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn wrong_configuration_is_exit_code_78_and_names_file_key_and_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nws.toml");
    std::fs::write(&path, "[proxy]\nlissen = []").unwrap();
    let output = nws(&["proxy", "--config", path.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(
        stderr(&output),
        format!("nws: {}: proxy.lissen: unknown key; known here: listen, info_file\n", path.display())
    );

    let output = nws(&["relay"], &[("NWS_RELAY__LISTEN", "7777")]);
    assert_eq!(output.status.code(), Some(78));
    let said = stderr(&output);
    assert!(said.starts_with("nws: environment variable NWS_RELAY__LISTEN: relay.listen: "), "{said}");

    let output = nws(&["relay", "--config", "/nowhere/nws.toml"], &[]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("/nowhere/nws.toml"));
}

#[test]
fn the_file_of_the_user_is_read() {
    let config = tempfile::tempdir().unwrap();
    let path = config.path().join("nws").join("nws.toml");
    std::fs::create_dir(path.parent().unwrap_or(Path::new("/"))).unwrap();
    std::fs::write(&path, "[limits]\nwindow_initial = 0").unwrap();
    let output = nws(&["relay"], &[("XDG_CONFIG_HOME", config.path().to_str().unwrap())]);
    assert_eq!(output.status.code(), Some(78));
    let said = stderr(&output);
    assert!(said.starts_with(&format!("nws: {}: limits.window_initial: ", path.display())), "{said}");
}

#[test]
fn names_need_no_configuration() {
    let npub = "npub18m65m8m74gaxltaw56qtr5z8yjxfxsy8wcp8x9af2ddzq44jaafsg42xxg";
    let output = nws(&["name", "encode", "--key", npub], &[("NWS_LIMITS", "broken")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "7rqkr7rul8t6vbtekq0b3k274i696g47eo1765t9add20llitt9g.nostr\n");
}
