//! The resolver: `.nostr` names get an address of the [`Book`], everything else is passed on to other name servers or does
//! not exist. Reading and writing messages (RFC 1035) is hickory's.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::rdata::A;
use hickory_server::proto::rr::{DNSClass, LowerName, Name, RData, Record, RecordType};
use hickory_server::resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::store::forwarder::{ForwardConfig, ForwardZoneHandler};
use hickory_server::zone_handler::{Catalog, MessageResponseBuilder, ZoneHandler};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::book::Book;
use super::connections;

/// How long programs may keep an answer, in seconds; much shorter than the book holds an address.
const TTL: u32 = 60;

/// Questions that are passed on at once at most; more are answered with a failure, and asked again.
const FORWARDED_MAX: usize = 256;

/// Largest answer over UDP that is offered (DNS flag day 2020).
const UDP_MAX: u16 = 1232;

/// Whether there can be such a name, asked of names that end in `.nostr`.
type Exists = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Name servers for other names.
pub struct Upstream(Catalog);

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upstream")
    }
}

impl Upstream {
    /// Passes questions on to these servers; `None` if there are none.
    ///
    /// # Errors
    ///
    /// What the library has against them.
    pub fn new(servers: &[SocketAddr]) -> Result<Option<Self>, String> {
        if servers.is_empty() {
            return Ok(None);
        }
        let server = |address: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = address.port();
                connection
            });
            NameServerConfig::new(address.ip(), true, connections.to_vec())
        };
        let mut options = ResolverOpts::default();
        options.preserve_intermediates = true;
        let config = ForwardConfig { name_servers: servers.iter().map(server).collect(), options: Some(options) };
        let forwarder = ForwardZoneHandler::builder_tokio(config).build()?;
        let mut catalog = Catalog::new();
        catalog.upsert(LowerName::from(Name::root()), vec![Arc::new(forwarder) as Arc<dyn ZoneHandler>]);
        Ok(Some(Self(catalog)))
    }
}

/// See the module.
pub struct Resolver {
    book: Arc<Book>,
    exists: Exists,
    upstream: Option<Upstream>,
    /// How many questions may still be passed on.
    forwarding: Semaphore,
    nostr: LowerName,
    /// Most connections for questions at once.
    connections: usize,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

/// What is answered.
enum Answer {
    /// This record; none says that the name is there and has nothing of the kind.
    Records(Option<Box<Record>>),
    /// This code alone.
    Code(ResponseCode),
}

impl Resolver {
    /// Answers from this book for those names that `exists` finds possible, over so many TCP connections at once.
    #[must_use]
    pub fn new(
        book: Arc<Book>,
        exists: impl Fn(&str) -> bool + Send + Sync + 'static,
        upstream: Option<Upstream>,
        connections: usize,
    ) -> Self {
        let nostr = LowerName::from(Name::from_labels([&b"nostr"[..]]).unwrap_or_default());
        let forwarding = Semaphore::new(FORWARDED_MAX);
        Self { book, exists: Arc::new(exists), upstream, forwarding, nostr, connections }
    }

    /// Serves these sockets until `end`.
    pub async fn serve(self, udp: Vec<UdpSocket>, tcp: Vec<TcpListener>, end: CancellationToken) {
        let places = Arc::new(Semaphore::new(self.connections.clamp(1, Semaphore::MAX_PERMITS)));
        let resolver = Shared(Arc::new(self));
        let (over_udp, over_tcp) = (!udp.is_empty(), !tcp.is_empty());
        let mut server = Server::new(resolver.clone());
        for socket in udp {
            server.register_socket(socket);
        }
        let listeners = tcp.into_iter().map(|tcp| connections::serve(tcp, resolver.clone(), Arc::clone(&places)));
        let stopped = tokio::select! {
            stopped = server.block_until_done(), if over_udp => stopped,
            _ = join_all(listeners), if over_tcp => Ok(()),
            () = end.cancelled() => Ok(()),
        };
        if let Err(error) = stopped {
            tracing::error!(%error, "the resolver has broken down");
        }
    }

    /// The answer to a question about a `.nostr` name.
    fn answer(&self, name: &LowerName, class: DNSClass, kind: RecordType) -> Answer {
        let text = name.to_string();
        let text = text.strip_suffix('.').unwrap_or(&text);
        if class != DNSClass::IN {
            return Answer::Code(ResponseCode::Refused);
        }
        // What ends in .nostr is there, as far as resolvers are concerned that ask for one label after the other.
        if *name == self.nostr {
            return Answer::Records(None);
        }
        if !(self.exists)(text) {
            return Answer::Code(ResponseCode::NXDomain);
        }
        if !matches!(kind, RecordType::A | RecordType::ANY) {
            return Answer::Records(None);
        }
        match self.book.address_of(text) {
            Some(address) => {
                Answer::Records(Some(Box::new(Record::from_rdata(name.into(), TTL, RData::A(A(address))))))
            }
            None => Answer::Code(ResponseCode::ServFail),
        }
    }
}

/// The resolver as its sockets share it.
#[derive(Clone)]
struct Shared(Arc<Resolver>);

#[async_trait]
impl RequestHandler for Shared {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let resolver = &self.0;
        let answer = match request.request_info() {
            _ if request.metadata.op_code != OpCode::Query => Answer::Code(ResponseCode::NotImp),
            Err(_) => Answer::Code(ResponseCode::FormErr),
            Ok(info) if resolver.nostr.zone_of(info.query.name()) => {
                resolver.answer(info.query.name(), info.query.query_class(), info.query.query_type())
            }
            Ok(_) => match (&resolver.upstream, resolver.forwarding.try_acquire()) {
                (Some(Upstream(catalog)), Ok(_slot)) => return catalog.handle_request::<R, T>(request, response).await,
                (Some(_), Err(_)) => Answer::Code(ResponseCode::ServFail),
                (None, _) => Answer::Code(ResponseCode::NXDomain),
            },
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        let records = match answer {
            Answer::Records(records) => {
                metadata.authoritative = true;
                records
            }
            Answer::Code(code) => {
                metadata.response_code = code;
                None
            }
        };
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX).set_version(0);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if request.edns.is_some() {
            builder.edns(&edns);
        }
        let message = builder.build(metadata, records.as_deref(), [], [], []);
        match response.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "a question could not be answered");
                failed(metadata)
            }
        }
    }
}

/// What the library wants to know of an answer that was not sent.
fn failed(metadata: Metadata) -> ResponseInfo {
    hickory_server::proto::op::Header { metadata, counts: Default::default() }.into()
}
