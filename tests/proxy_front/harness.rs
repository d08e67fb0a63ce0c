//! A proxy over a scripted route, small servers behind it, and clients that speak raw bytes. No test of its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use nws::limits::Limits;
use nws::proxy::connect::{BoxedIo, Connect, Host};
use nws::proxy::{Listener, Route};
use nws::{Error, ErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

/// Longest wait for anything that must happen; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for what must happen.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it did not happen in time")
}

type Opening = Pin<Box<dyn Future<Output = Result<BoxedIo, Error>> + Send>>;

/// A route that does what a closure says, and remembers what it was asked.
#[derive(Clone)]
pub(crate) struct Script {
    open: Arc<dyn Fn(Connect) -> Opening + Send + Sync>,
    seen: Arc<Mutex<Vec<Connect>>>,
}

impl Script {
    pub(crate) fn new<F, Fut>(open: F) -> Self
    where
        F: Fn(Connect) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<BoxedIo, Error>> + Send + 'static,
    {
        Self { open: Arc::new(move |connect| Box::pin(open(connect))), seen: Arc::default() }
    }

    /// Every name leads to `server`; `<code>.fail` is refused with that code.
    pub(crate) fn to(server: SocketAddr) -> Self {
        Self::new(move |connect| async move {
            if let Host::Name(name) = &connect.destination.host
                && let Some(code) = name.strip_suffix(".fail")
            {
                return Err(Error::new(ErrorKind::from_code(code), format!("<b>{name}</b> cannot be had")));
            }
            let mut stream = TcpStream::connect(server).await.map_err(|e| Error::from_io(&e, "dialling"))?;
            stream.write_all(&connect.early_data).await.map_err(|e| Error::from_io(&e, "early data"))?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }

    /// A route that must not be asked.
    pub(crate) fn unused() -> Self {
        Self::new(|connect| async move { panic!("nobody may ask for {}", connect.destination) })
    }

    /// What it was asked so far.
    pub(crate) fn seen(&self) -> Vec<Connect> {
        self.seen.lock().unwrap().clone()
    }

    /// Destinations it was asked for so far.
    pub(crate) fn destinations(&self) -> Vec<String> {
        self.seen().iter().map(|connect| connect.destination.to_string()).collect()
    }
}

impl Service<Connect> for Script {
    type Response = BoxedIo;
    type Error = Error;
    type Future = Opening;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, connect: Connect) -> Opening {
        self.seen.lock().unwrap().push(connect.clone());
        (self.open)(connect)
    }
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) cancel: CancellationToken,
    pub(crate) tracker: TaskTracker,
}

impl Proxy {
    pub(crate) async fn start<S: Route>(route: S) -> Self {
        Self::with_limits(route, Limits::default()).await
    }

    pub(crate) async fn with_limits<S: Route>(route: S, limits: Limits) -> Self {
        Self::on("127.0.0.1:0", route, limits).await
    }

    pub(crate) async fn on<S: Route>(address: &str, route: S, limits: Limits) -> Self {
        let listener = Listener::bind(address.parse().unwrap()).await.unwrap();
        let proxy =
            Self { address: listener.local_addr(), cancel: CancellationToken::new(), tracker: TaskTracker::new() };
        let serving = listener.serve(route, Arc::new(limits), proxy.cancel.clone(), proxy.tracker.clone());
        proxy.tracker.spawn(serving);
        proxy
    }

    pub(crate) async fn client(&self) -> Client {
        Client(within(TcpStream::connect(self.address)).await.unwrap())
    }

    /// A client that has sent these bytes.
    pub(crate) async fn said(&self, bytes: impl AsRef<[u8]>) -> Client {
        let mut client = self.client().await;
        client.say(bytes).await;
        client
    }
}

/// A client that speaks raw bytes.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.0.write_all(bytes.as_ref())).await.unwrap();
    }

    pub(crate) async fn hear(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        within(self.0.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// Everything up to the end of the connection, or the error that ended it.
    pub(crate) async fn hear_all(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        within(self.0.read_to_end(&mut bytes)).await.map(|_| bytes)
    }

    pub(crate) async fn end(&mut self) {
        within(self.0.shutdown()).await.unwrap();
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        self.0.set_zero_linger().unwrap();
    }

    /// The head of an HTTP message, its empty line included.
    pub(crate) async fn hear_head(&mut self) -> String {
        within(read_head(&mut self.0)).await
    }

    /// A whole HTTP response to anything but HEAD.
    pub(crate) async fn hear_response(&mut self) -> Reply {
        let head = self.hear_head().await;
        let mut reply = Reply { head, body: Vec::new() };
        if reply.header("transfer-encoding").is_some() {
            loop {
                let mut line = String::new();
                while !line.ends_with("\r\n") {
                    line.push(char::from(self.hear(1).await[0]));
                }
                let size = usize::from_str_radix(line.trim(), 16).unwrap();
                let chunk = self.hear(size + 2).await;
                reply.body.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = reply.header("content-length") {
            reply.body = self.hear(length.parse().unwrap()).await;
        } else if !reply.head.contains(" 204 ") && !reply.head.contains(" 304 ") {
            reply.body = self.hear_all().await.unwrap();
        }
        reply
    }
}

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Reads up to and including the first empty line.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a whole head"));
    }
    String::from_utf8(head).unwrap()
}

/// A server that hands every connection to `serve`.
pub(crate) async fn server<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A server that sends back what it gets, as it comes.
pub(crate) async fn echo() -> SocketAddr {
    server(|mut stream| async move {
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    })
    .await
}

/// A server that answers every connection's first request head with these bytes and closes.
pub(crate) async fn canned(response: &'static [u8]) -> SocketAddr {
    server(move |mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(response).await;
    })
    .await
}

/// Calls back when dropped.
pub(crate) struct OnDrop(pub(crate) Option<tokio::sync::oneshot::Sender<()>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(());
        }
    }
}

/// A route that never opens, a sign that it was asked, and one that the attempt was dropped.
pub(crate) fn never() -> (Script, tokio::sync::mpsc::UnboundedReceiver<()>, tokio::sync::mpsc::UnboundedReceiver<()>) {
    let (asked, is_asked) = tokio::sync::mpsc::unbounded_channel();
    let (dropped, is_dropped) = tokio::sync::mpsc::unbounded_channel();
    let route = Script::new(move |_| {
        let (asked, dropped) = (asked.clone(), dropped.clone());
        async move {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let _guard = OnDrop(Some(sender));
            tokio::spawn(async move {
                let _ = receiver.await;
                let _ = dropped.send(());
            });
            let _ = asked.send(());
            std::future::pending().await
        }
    });
    (route, is_asked, is_dropped)
}
