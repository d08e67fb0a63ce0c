//! Sockets that the manager holds.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use crate::{Manager, PATIENCE, Service, info, read_exactly};

/// Puts its standard input where passed sockets are, and becomes the program.
const PASS: &str = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ exec "$@""#;

/// Starts a command that is passed this socket under this name.
fn activated(manager: &Manager, socket: &TcpListener, name: &str, args: &[&str]) -> Service {
    let mut command = manager.command("sh");
    let socket: OwnedFd = socket.try_clone().unwrap().into();
    command
        .args(["-c", PASS, "sh", env!("CARGO_BIN_EXE_nws")])
        .args(args)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", name)
        .stdin(socket);
    Service::start(command)
}

fn client(socket: &TcpListener) -> TcpStream {
    let mut client = TcpStream::connect(socket.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // SOCKS5, no authentication.
    client.write_all(&[5, 1, 0]).unwrap();
    client
}

#[test]
fn clients_that_come_before_a_start_and_during_a_restart_are_served() {
    let manager = Manager::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut early = client(&socket);
    // The address of the configuration is not bound: it could not be.
    let args = ["proxy", "--listen", "192.0.2.1:8882", "--info-file", "info.json"];
    let mut proxy = activated(&manager, &socket, "proxy", &args);
    assert_eq!(read_exactly(&mut early, 2), [5, 0]);
    assert_eq!(info(&manager.path("info.json"))["listen"][0], socket.local_addr().unwrap().to_string());
    proxy.signal("-TERM");
    assert_eq!(proxy.end().code(), Some(0));
    let mut waiting = client(&socket);
    let _proxy = activated(&manager, &socket, "proxy", &args);
    assert_eq!(read_exactly(&mut waiting, 2), [5, 0]);
}

#[test]
fn a_relay_takes_a_socket_whatever_it_is_called() {
    let manager = Manager::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let _relay = activated(&manager, &socket, "nws-relay.socket", &["relay"]);
    let mut client = TcpStream::connect(socket.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nAccept: application/nostr+json\r\n\r\n").unwrap();
    assert_eq!(read_exactly(&mut client, 15), b"HTTP/1.1 200 OK");
}
