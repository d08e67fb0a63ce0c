//! Listening sockets that the service manager holds and passes on (`LISTEN_FDS`, sd_listen_fds(3)): it keeps the clients
//! that come while this process starts or restarts. The name of a socket (`FileDescriptorName=`) says what it is for.

use std::io;
use std::net::{TcpListener, UdpSocket};

use listenfd::ListenFd;

/// What a socket is for, if its name says so.
const DNS: &str = "dns";

/// And this, for connections that were redirected.
const TRANSPARENT: &str = "transparent";

/// The sockets that were passed to this process.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For clients: of a proxy those that speak SOCKS5 and HTTP, of a relay its own.
    pub clients: Vec<TcpListener>,
    /// For redirected connections.
    pub transparent: Vec<TcpListener>,
    /// For questions to the resolver over UDP.
    pub dns_udp: Vec<UdpSocket>,
    /// For questions to the resolver over TCP.
    pub dns_tcp: Vec<TcpListener>,
}

impl Inherited {
    /// Takes over what was passed, once; a second call finds nothing. To be called before there are threads, since it takes
    /// the variables away, too.
    ///
    /// # Errors
    ///
    /// A socket is none that could be used here.
    pub fn take() -> io::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        Self::sort(&mut ListenFd::from_env(), &names)
    }

    fn sort(passed: &mut ListenFd, names: &str) -> io::Result<Self> {
        let names: Vec<&str> = names.split(':').collect();
        let mut sorted = Self::default();
        for index in 0..passed.len() {
            let name = names.get(index).copied().unwrap_or_default();
            if name == DNS
                && let Ok(Some(socket)) = passed.take_udp_socket(index)
            {
                socket.set_nonblocking(true)?;
                sorted.dns_udp.push(socket);
                continue;
            }
            let wrong = |error: io::Error| {
                let reason = format!("socket {} ({name}) is none to listen on: {error}", index + 1);
                io::Error::new(error.kind(), reason)
            };
            let Some(listener) = passed.take_tcp_listener(index).map_err(wrong)? else { continue };
            listener.set_nonblocking(true)?;
            match name {
                DNS => sorted.dns_tcp.push(listener),
                TRANSPARENT => sorted.transparent.push(listener),
                _ => sorted.clients.push(listener),
            }
        }
        Ok(sorted)
    }
}
