//! The `nws` binary as a shell sees it: what it writes where, and its exit codes.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `nws` with these flags and variables, and a home directory that holds nothing.
fn nws(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().unwrap();
    command(args, home.path(), variables).output().unwrap()
}

/// Variables of the Go program, which stand for what ours leave open.
const GO_VARIABLES: [&str; 5] = ["NOSTR_RELAYS", "NOSTR_PRIVATE_KEY", "BACKEND_HOST", "PUBLIC", "PUBLIC_ADDRESS"];

/// The command with these flags and variables, in its home directory.
fn command(args: &[&str], home: &Path, variables: &[(&str, &str)]) -> Command {
    let others = |name: &str| !name.starts_with("NWS_") && !GO_VARIABLES.contains(&name);
    let inherited = std::env::vars_os().filter(|(name, _)| name.to_str().is_none_or(others));
    let mut command = Command::new(env!("CARGO_BIN_EXE_nws"));
    command
        .args(args)
        .current_dir(home)
        .env_clear()
        .envs(inherited)
        .env("HOME", home)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_STATE_HOME")
        .env_remove("STATE_DIRECTORY")
        .envs(variables.iter().copied());
    command
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
    for word in ["proxy", "exit", "exits", "relay", "demo", "name"] {
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
        format!(
            "nws: {}: proxy.lissen: unknown key; known here: listen, optimistic, isolate_destinations, exit, exclude, lookup_relays, rule, identity, identity_for, public_address, public_listen, direct_plaintext, dial_exits, trust, info_file\n",
            path.display()
        )
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

#[test]
fn the_environment_of_the_go_program_is_enough_to_start() {
    let home = tempfile::tempdir().unwrap();
    let secret = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa";
    let text = format!("NOSTR_RELAYS='ws://127.0.0.1:1'\nNOSTR_PRIVATE_KEY={secret}\nBACKEND_HOST=localhost:3338\n");
    std::fs::write(home.path().join(".env"), text).unwrap();
    for (word, says) in [("exit", ".env: BACKEND_HOST, "), ("proxy", "variable NOSTR_RELAYS")] {
        let variables = [("NWS_PROXY__LISTEN", r#"["127.0.0.1:0"]"#), ("NOSTR_RELAYS", "ws://127.0.0.1:2;")];
        let mut child =
            command(&[word], home.path(), &variables).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("nws starts")));
        let line = lines.next().unwrap();
        // The key is that of the file, and no relay has to answer for the exit to say its name.
        if word == "exit" {
            let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            let npub = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
            assert!(said.any(|line| line == npub));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(line.contains("environment variable NOSTR_RELAYS") && line.contains(says), "{line}");
        assert!(!line.contains(secret) && !line.contains("127.0.0.1"), "{line}");
    }
}

#[test]
fn a_malformed_env_file_is_exit_code_78_and_names_its_line() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(".env"), "# keys\nNOSTR_PRIVATE_KEY 12345\n").unwrap();
    let output = command(&["exit"], home.path(), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = stderr(&output);
    assert!(said.contains(".env: line 2: ") && !said.contains("12345"), "{said}");
    // Only what needs the file reads it.
    assert_eq!(command(&["name", "decode", "x"], home.path(), &[]).output().unwrap().status.code(), Some(64));
}

/// Waits for a process at most so long; `None` when it is still there.
fn wait_for(child: &mut std::process::Child, limit: std::time::Duration) -> Option<std::process::ExitStatus> {
    let start = std::time::Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    None
}

#[test]
fn a_log_that_nobody_reads_does_not_keep_a_process_from_ending() {
    let home = tempfile::tempdir().unwrap();
    let info = home.path().join("info.json");
    let args = ["relay", "--listen", "127.0.0.1:0", "--info-file", info.to_str().unwrap(), "-vv"];
    let mut child = command(&args, home.path(), &[]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let patience = std::time::Duration::from_secs(30);
    let start = std::time::Instant::now();
    while !info.exists() {
        assert!(start.elapsed() < patience, "it does not become ready");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was ready");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let status = wait_for(&mut child, patience);
    let _ = child.kill();
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{status:?}");
    assert!(!info.exists(), "its information file goes with it");
}
