//! A network of the tests' own: its names, who answers at its addresses, and what was connected to.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use nws::dial::Network;
use tokio::net::TcpStream;

/// An address of the machine that the exit runs on, as seen from the internet.
pub const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 215, 14));

/// See the module.
#[derive(Debug, Default)]
pub struct TestNetwork {
    /// What each name resolves to, one answer after the other; the last one stays.
    names: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    /// Where connections to every address end up; nobody answers without it.
    backend: Option<SocketAddr>,
    /// What was connected to.
    connected: Mutex<Vec<SocketAddr>>,
}

impl TestNetwork {
    /// A network in which every address is this backend.
    pub fn to(backend: SocketAddr) -> Self {
        Self { backend: Some(backend), ..Self::default() }
    }

    /// Adds a name with these addresses.
    pub fn name(self, name: &str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.names.lock().unwrap().entry(name.to_owned()).or_default().push(addresses);
        self
    }

    /// Ready to be used.
    pub fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }

    /// What was connected to, in order.
    pub fn connected(&self) -> Vec<SocketAddr> {
        self.connected.lock().unwrap().clone()
    }
}

impl Network for TestNetwork {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let mut names = self.names.lock().unwrap();
        let answer = match names.get_mut(name) {
            Some(answers) if answers.len() > 1 => Ok(answers.remove(0)),
            Some(answers) => Ok(answers[0].clone()),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
        };
        Box::pin(async { answer })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        self.connected.lock().unwrap().push(address);
        Box::pin(async {
            match self.backend {
                Some(backend) => TcpStream::connect(backend).await,
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }

    fn own_addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(vec![OWN, Ipv4Addr::LOCALHOST.into()])
    }
}
