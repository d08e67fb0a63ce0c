//! Ready, status, watchdog, reloading, stopping.

use std::net::TcpListener;

use crate::{Manager, Service};

/// A port that nobody listens on at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn relay_at(port: u16) -> (Manager, Service) {
    let manager = Manager::new();
    let relay = Service::start(manager.nws(&["relay", "--listen", &format!("127.0.0.1:{port}")]));
    manager.wait_for("READY=1");
    (manager, relay)
}

#[test]
fn an_exit_is_ready_when_a_relay_hears_it_and_its_status_names_it() {
    let manager = Manager::new();
    let port = free_port();
    let relay = format!("ws://127.0.0.1:{port}");
    let exit = Service::start(manager.nws(&["exit", "--relay", &relay, "--service", "80=127.0.0.1:1"]));
    assert_eq!(manager.message(), "STATUS=Looking for a relay to listen on\n");
    exit.log_until("relay not connected");
    let (_manager, _relay) = relay_at(port);
    // The first word after that, and not one before the relay was there.
    let message = manager.message();
    assert!(message.starts_with("READY=1\nSTATUS=npub1") && message.contains(" on 1 of 1 relays;"), "{message}");
}

#[test]
fn a_proxy_with_relays_waits_for_one_of_them_and_no_longer_than_it_takes_to_connect() {
    let (_manager, _relay) = relay_at(0);
    for (relays, patience, warns) in [(r#"["ws://127.0.0.1:1"]"#, "300ms", true), ("[]", "60s", false)] {
        let manager = Manager::new();
        let mut command = manager.nws(&["proxy", "--listen", "127.0.0.1:0"]);
        command.env("NWS_RELAYS", relays).env("NWS_LIMITS__RELAY_CONNECT_TIMEOUT", patience);
        let proxy = Service::start(command);
        let message = manager.wait_for("READY=1");
        assert!(message.contains("STATUS=Listening on 127.0.0.1:"), "{message}");
        if warns {
            proxy.log_until("none of the relays can be reached yet");
        }
    }
}

#[test]
fn the_watchdog_is_kept_quiet_to_the_end() {
    let manager = Manager::new();
    let mut command = manager.nws(&["relay", "--listen", "127.0.0.1:0"]);
    command.env("WATCHDOG_USEC", "100000");
    let mut relay = Service::start(command);
    manager.wait_for("READY=1");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    relay.signal("-TERM");
    let message = manager.wait_for("STOPPING=1");
    assert!(message.contains("STATUS=Ending"), "{message}");
    assert_eq!(relay.end().code(), Some(0));
}

#[test]
fn the_watchdog_of_another_process_is_not_ours() {
    let manager = Manager::new();
    let mut command = manager.nws(&["relay", "--listen", "127.0.0.1:0"]);
    command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let relay = Service::start(command);
    manager.wait_for("READY=1");
    relay.signal("-TERM");
    let message = manager.message();
    assert!(message.starts_with("STOPPING=1"), "{message}");
}

#[test]
fn a_reload_is_told_with_its_time() {
    let manager = Manager::new();
    let relay = Service::start(manager.nws(&["relay", "--listen", "127.0.0.1:0"]));
    manager.wait_for("READY=1");
    for _ in 0..2 {
        relay.signal("-HUP");
        let message = manager.wait_for("RELOADING=1");
        let time = message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        assert!(time.parse::<u64>().unwrap() > 0);
        assert_eq!(manager.message(), "READY=1\n");
    }
}
