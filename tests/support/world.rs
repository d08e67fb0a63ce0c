//! A proxy and an exit of ours in one process, each on relays of its own choice, and clients of the proxy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use nostr::{Keys, RelayUrl};
use nws::exit::{Access, Exit, Services};
use nws::identity::Identity;
use nws::limits::Limits;
use nws::name::NostrName;
use nws::proxy::{Listener, Optimistic, Router};
use nws::tunnel::{Acceptor, DirectPaths, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::backends::{pattern, pattern_sha256};
use super::{ANY_PORT, soon};

/// A proxy, and the name of the exit that its clients ask for.
pub struct World {
    /// Where the proxy listens.
    pub proxy: SocketAddr,
    /// The exit's name.
    pub name: NostrName,
    /// The proxy's sessions.
    pub tunnel: Arc<Tunnel>,
    /// The proxy's connections.
    pub tracker: TaskTracker,
    /// Its ways beside the relays.
    pub direct: Option<Arc<DirectPaths>>,
    _end: DropGuard,
}

/// What to start.
pub struct Setup {
    /// Limits of both sides.
    pub limits: Limits,
    /// When the proxy tells of success before the exit does.
    pub optimistic: Optimistic,
    /// The exit's key.
    pub keys: Keys,
    /// Whether the proxy knows from the start that the exit speaks streams: on a busy machine the exit may answer too late
    /// for a first opening to be sure of it (`docs/protocol.md`, "Knowing the peer").
    pub is_known: bool,
    /// Where the exit listens.
    pub exit_relays: Vec<RelayUrl>,
    /// What the name tells the proxy.
    pub proxy_relays: Vec<RelayUrl>,
    /// The exit's services.
    pub services: BTreeMap<u16, String>,
    /// Who may connect to them.
    pub access: Access,
    /// Who the proxy proves to be.
    pub identity: Option<Identity>,
    /// The proxy's ways beside the relays.
    pub direct: Option<Arc<DirectPaths>>,
    /// The exit's.
    pub exit_direct: Arc<nws::exit::DirectPaths>,
}

impl Setup {
    /// Both sides on the same relays.
    pub fn new(relays: &[RelayUrl], services: &[(u16, SocketAddr)]) -> Self {
        Self {
            limits: Limits::default(),
            optimistic: Optimistic::default(),
            keys: Keys::generate(),
            is_known: false,
            exit_relays: relays.to_vec(),
            proxy_relays: relays.to_vec(),
            services: services.iter().map(|(port, addr)| (*port, addr.to_string())).collect(),
            access: Access::default(),
            identity: None,
            direct: None,
            exit_direct: Arc::default(),
        }
    }

    /// Starts an exit and a proxy.
    pub async fn start(self) -> World {
        let end = CancellationToken::new();
        self.start_exit(&end).await;
        self.start_proxy(end).await
    }

    /// Starts the proxy alone.
    pub async fn start_proxy(self, end: CancellationToken) -> World {
        let limits = Arc::new(self.limits);
        let tunnel = Arc::new(
            Tunnel::new(Vec::new(), Arc::clone(&limits)).with_identity(self.identity).with_direct(self.direct.clone()),
        );
        if self.is_known {
            tunnel.expect_streams(&self.keys.public_key());
        }
        let listener = Listener::bind(ANY_PORT).await.unwrap();
        let proxy = listener.local_addr();
        let tracker = TaskTracker::new();
        let router = Router::new(Arc::clone(&tunnel), self.optimistic);
        tokio::spawn(listener.serve(router, limits, end.clone(), tracker.clone()));
        let name = NostrName::new(self.keys.public_key(), self.proxy_relays);
        World { proxy, name, tunnel, tracker, direct: self.direct, _end: end.drop_guard() }
    }

    /// Starts the exit alone and waits for its relay.
    pub async fn start_exit(&self, end: &CancellationToken) -> Exit {
        let limits = Arc::new(self.limits.clone());
        let mut acceptor = Acceptor::start(self.keys.clone(), &self.exit_relays, Arc::clone(&limits));
        soon("the exit's relay", acceptor.ready()).await;
        let exit = Exit::new(Services { by_port: self.services.clone(), default: None }, limits);
        let exit = exit.with_direct(Arc::clone(&self.exit_direct));
        exit.set_access(self.access.clone());
        let (end, serving) = (end.clone(), exit.clone());
        tokio::spawn(async move {
            serving.serve(&mut acceptor, &end, &TaskTracker::new()).await;
            acceptor.close().await;
        });
        exit
    }
}

impl World {
    /// Waits until so many streams are beside the relays.
    pub async fn moved(&self, count: u64) {
        let mut moved = self.direct.as_ref().unwrap().moved();
        moved.wait_for(|moved| *moved >= count).await.unwrap();
    }

    /// A connection through the proxy in SOCKS5; the reply code when it is refused.
    pub async fn socks(&self, port: u16) -> Result<TcpStream, u8> {
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        let host = self.name.to_string();
        let mut request = vec![5, 1, 0, 5, 1, 0, 3, u8::try_from(host.len()).unwrap()];
        request.extend_from_slice(host.as_bytes());
        request.extend_from_slice(&port.to_be_bytes());
        stream.write_all(&request).await.unwrap();
        let mut method = [0; 2];
        stream.read_exact(&mut method).await.unwrap();
        let mut reply = [0; 10];
        stream.read_exact(&mut reply).await.unwrap();
        if reply[1] == 0 { Ok(stream) } else { Err(reply[1]) }
    }

    /// A connection as this SOCKS user; the reply code when it is refused.
    pub async fn socks_as(&self, user: &str, port: u16) -> Result<TcpStream, u8> {
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        let host = self.name.to_string();
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        let mut request = vec![5, 1, 2, 1, length(user)];
        request.extend_from_slice(user.as_bytes());
        request.extend_from_slice(b"\x06secret");
        request.extend_from_slice(&[5, 1, 0, 3, length(&host)]);
        request.extend_from_slice(host.as_bytes());
        request.extend_from_slice(&port.to_be_bytes());
        stream.write_all(&request).await.unwrap();
        let mut answer = [0; 2 + 2 + 10];
        stream.read_exact(&mut answer).await.unwrap();
        if answer[5] == 0 { Ok(stream) } else { Err(answer[5]) }
    }

    /// Fetches `/bytes/N` and checks it; the connection is closed by whoever likes to.
    pub async fn download(&self, port: u16, len: usize) {
        let mut stream = self.socks(port).await.unwrap();
        let request = format!("GET /bytes/{len} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let body = read_answer(&mut stream).await;
        assert_eq!(body.len(), len);
        assert!(body == pattern(len as u64, len), "the download of {len} bytes differs");
    }

    /// Uploads bytes and checks the sum that the service made of them.
    pub async fn upload(&self, port: u16, len: usize) {
        let mut stream = self.socks(port).await.unwrap();
        let head = format!("POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&pattern(7, len)).await.unwrap();
        let sum = read_answer(&mut stream).await;
        assert_eq!(String::from_utf8_lossy(&sum).trim(), pattern_sha256(7, len as u64));
    }

    /// One request in plain HTTP to the proxy; the whole answer.
    pub async fn http(&self, port: u16, path: &str) -> String {
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        let host = format!("{}:{port}", self.name);
        let request = format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Reads a response with a content length to its end; old peers never close.
pub async fn read_answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut answer = Vec::new();
    loop {
        if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).expect("a length");
            let length: usize = length.trim().parse().unwrap();
            let mut body = answer.split_off(end + 4);
            let have = body.len();
            body.resize(length, 0);
            stream.read_exact(&mut body[have..]).await.unwrap();
            return body;
        }
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "the answer ends in its head");
    }
}

/// The body of a whole answer.
pub fn body_of(answer: &[u8]) -> &[u8] {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    &answer[end..]
}
