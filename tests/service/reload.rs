//! SIGHUP: what changes, what is said of it, and that nobody notices who is connected.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::{Manager, PATIENCE, Service, info, read_exactly};

/// Opens a connection through a proxy by HTTP `CONNECT`, and says how it was answered.
fn connect(proxy: &str, to: &str) -> (TcpStream, String) {
    let mut client = TcpStream::connect(proxy).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(client, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_exactly(&mut client, 1));
    }
    let status = String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().to_owned();
    (client, status)
}

/// A service that gives back what it is sent.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..count]).unwrap();
                }
            });
        }
    });
    address
}

#[test]
fn rules_and_log_of_a_proxy_change_while_connections_go_on() {
    let manager = Manager::new();
    let (one, other) = (echo(), echo());
    let write = |text: &str| fs::write(manager.path("nws.toml"), text).unwrap();
    let rule = |to: &str| format!("[[proxy.rule]]\nto = \"127.0.0.1\"\nports = [{}]\nvia = \"direct\"\n", &to[10..]);
    write(&rule(&one));
    let args = ["proxy", "--listen", "127.0.0.1:0", "--config", "nws.toml", "--info-file", "info.json"];
    let proxy = Service::start(manager.nws(&args));
    let address = info(&manager.path("info.json"))["listen"][0].as_str().unwrap().to_owned();
    let (mut open, status) = connect(&address, &one);
    assert_eq!(status, "200");
    assert_eq!(connect(&address, &other).1, "403");

    let secret = "wss://relay.example/secret";
    write(&format!(
        "relays = [\"{secret}\"]\n{}[limits]\ndial_timeout = \"7s\"\n[log]\nfilter = \"debug\"",
        rule(&other)
    ));
    proxy.signal("-HUP");
    let said = proxy.log_until("was read again");
    for (setting, what) in [
        ("proxy.rule", "changed"),
        ("log.filter", "changed"),
        ("relays", "needs a restart"),
        ("limits.dial_timeout", "needs a restart"),
    ] {
        let lines: Vec<_> = said.iter().filter(|line| line.contains(&format!("\"{setting}\""))).collect();
        assert!(lines.len() == 1 && lines[0].contains(what), "{setting}: {said:#?}");
    }
    assert!(!said.iter().any(|line| line.contains("secret")), "{said:#?}");
    assert_eq!(connect(&address, &other).1, "200");
    assert_eq!(connect(&address, &one).1, "403");
    proxy.log_until("DEBUG");
    open.write_all(b"still here").unwrap();
    assert_eq!(read_exactly(&mut open, 10), b"still here");

    // Once more: what has been taken over is not told again, what waits for a restart is.
    proxy.signal("-HUP");
    let said = proxy.log_until("was read again");
    assert!(said.iter().any(|line| line.contains("\"limits.dial_timeout\"")), "{said:#?}");
    assert!(!said.iter().any(|line| line.contains("\"proxy.rule\"")), "{said:#?}");

    write("[proxy]\nrule = 7\n");
    proxy.signal("-HUP");
    proxy.log_until("that of before stays");
    assert_eq!(connect(&address, &other).1, "200");
    open.write_all(b"and still").unwrap();
    assert_eq!(read_exactly(&mut open, 9), b"and still");
}

#[test]
fn services_of_an_exit_change_while_streams_go_on() {
    let manager = Manager::new();
    let (one, other) = (echo(), echo());
    let relay = Service::start(manager.nws(&["relay", "--listen", "127.0.0.1:0", "--info-file", "relay.json"]));
    let relay_address = info(&manager.path("relay.json"))["listen"][0].as_str().unwrap().to_owned();
    let write = |service: &str| {
        let text = format!("[exit]\nrelays = [\"ws://{relay_address}\"]\n[exit.service]\n{service}\n");
        fs::write(manager.path("nws.toml"), text).unwrap();
    };
    write(&format!("7 = \"{one}\""));
    let exit = Service::start(manager.nws(&["exit", "--config", "nws.toml", "--info-file", "exit.json"]));
    let name = info(&manager.path("exit.json"))["name"].as_str().unwrap().to_owned();
    let args = ["proxy", "--listen", "127.0.0.1:0", "--optimistic", "never", "--info-file", "proxy.json"];
    let proxy = Service::start(manager.nws(&args));
    let address = info(&manager.path("proxy.json"))["listen"][0].as_str().unwrap().to_owned();
    let (mut open, status) = connect(&address, &format!("{name}:7"));
    assert_eq!(status, "200");
    assert_eq!(connect(&address, &format!("{name}:8")).1, "403");

    write(&format!("8 = \"{other}\""));
    exit.signal("-HUP");
    let said = exit.log_until("was read again");
    for setting in ["exit.service.7", "exit.service.8"] {
        let changed = |line: &String| line.contains(&format!("\"{setting}\"")) && line.contains("changed");
        assert!(said.iter().any(changed), "{said:#?}");
    }
    assert_eq!(connect(&address, &format!("{name}:7")).1, "403");
    let (mut new, status) = connect(&address, &format!("{name}:8"));
    assert_eq!(status, "200");
    for stream in [&mut open, &mut new] {
        stream.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(stream, 5), b"hello");
    }

    write("8 = { target = \"127.0.0.1:9\", allow = [] }");
    exit.signal("-HUP");
    exit.log_until("was read again");
    assert_eq!(connect(&address, &format!("{name}:8")).1, "403");
    drop((relay, proxy));
}
