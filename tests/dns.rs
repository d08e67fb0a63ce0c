//! The resolver, asked over UDP and TCP as programs ask it.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_server::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use nws::dns::{Book, Resolver, Upstream};
use nws::name::NostrName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A resolver that serves, and its book.
struct World {
    address: SocketAddr,
    book: Arc<Book>,
    _task: AbortOnDropHandle<()>,
}

async fn resolver(pool: &str, forward: &[SocketAddr]) -> World {
    resolver_for(pool, forward, 100).await
}

/// One that takes so many TCP connections.
async fn resolver_for(pool: &str, forward: &[SocketAddr], connections: usize) -> World {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let book = Arc::new(Book::new(pool.parse().unwrap(), 1000));
    let exists = |name: &str| name.parse::<NostrName>().is_ok();
    let resolver = Resolver::new(Arc::clone(&book), exists, Upstream::new(forward).unwrap(), connections);
    let task = tokio::spawn(resolver.serve(vec![udp], vec![tcp], CancellationToken::new()));
    World { address, book, _task: AbortOnDropHandle::new(task) }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    message
}

async fn over_udp(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 4096];
    let (length, _) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn over_tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    ask(&mut stream, &message.to_vec().unwrap()).await;
    answer(&mut stream).await
}

async fn ask(stream: &mut TcpStream, message: &[u8]) {
    stream.write_u16(u16::try_from(message.len()).unwrap()).await.unwrap();
    stream.write_all(message).await.unwrap();
}

async fn answer(stream: &mut TcpStream) -> Message {
    let length = tokio::time::timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |record: &Record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

fn name() -> String {
    NostrName::new(nostr::Keys::generate().public_key(), []).to_string()
}

#[tokio::test]
async fn a_name_has_one_address_over_udp_and_tcp_in_any_letter_case() {
    let world = resolver("198.19.0.0/16", &[]).await;
    let (name, other) = (name(), name());
    let first = over_udp(world.address, &question(&name, RecordType::A)).await;
    assert_eq!(first.metadata.response_code, ResponseCode::NoError);
    assert!(first.metadata.recursion_available && first.answers[0].ttl <= 60);
    let [address] = addresses(&first)[..] else { panic!("{first}") };
    assert!("198.19.0.0/16".parse::<ipnet::Ipv4Net>().unwrap().contains(&address));
    let again = over_tcp(world.address, &question(&name.to_uppercase(), RecordType::A)).await;
    assert_eq!(addresses(&again), [address]);
    assert_ne!(addresses(&over_tcp(world.address, &question(&other, RecordType::A)).await), [address]);
    assert_eq!(world.book.name_of(address), Some(name));
}

#[tokio::test]
async fn a_name_has_nothing_but_that_address_and_wrong_names_do_not_exist() {
    let world = resolver("198.19.0.0/16", &[]).await;
    for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::MX, RecordType::TXT] {
        let answer = over_udp(world.address, &question(&name(), kind)).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0), "{kind}");
    }
    // Resolvers that ask for one label after the other must not conclude that there is nothing below.
    let answer = over_udp(world.address, &question("nostr", RecordType::NS)).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    for wrong in ["nonsense.nostr", "www.example.com", "nostr.example", "localhost"] {
        let answer = over_udp(world.address, &question(wrong, RecordType::A)).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NXDomain, 0), "{wrong}");
    }
}

#[tokio::test]
async fn when_no_address_is_left_a_new_name_fails_and_the_others_stay() {
    let world = resolver("198.19.0.0/29", &[]).await;
    let names: Vec<_> = (0..6).map(|_| name()).collect();
    let mut told = Vec::new();
    for name in &names {
        told.extend(addresses(&over_udp(world.address, &question(name, RecordType::A)).await));
    }
    assert_eq!(told.len(), 6);
    let answer = over_udp(world.address, &question(&name(), RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(addresses(&over_udp(world.address, &question(&names[0], RecordType::A)).await), told[..1]);
}

#[tokio::test]
async fn other_names_are_passed_on_as_they_are() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        let mut asked = Vec::new();
        loop {
            let (length, client) = upstream.recv_from(&mut buffer).await.unwrap();
            let message = Message::from_vec(&buffer[..length]).unwrap();
            let query = message.queries[0].clone();
            let mut answer = Message::new(message.metadata.id, MessageType::Response, OpCode::Query);
            answer.add_query(query.clone());
            if query.name().to_string().starts_with("www.") {
                answer.add_answer(Record::from_rdata(
                    query.name().clone(),
                    30,
                    RData::A(Ipv4Addr::new(192, 0, 2, 7).into()),
                ));
            } else {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            upstream.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
            asked.push(query.name().to_string());
            if query.name().to_string().starts_with("last.") {
                return asked;
            }
        }
    });
    let world = resolver("198.19.0.0/16", &[address]).await;
    let answer = over_udp(world.address, &question("www.example.com", RecordType::A)).await;
    assert_eq!(addresses(&answer), [Ipv4Addr::new(192, 0, 2, 7)]);
    assert_eq!(addresses(&over_udp(world.address, &question(&name(), RecordType::A)).await).len(), 1);
    let wrong = over_udp(world.address, &question("nonsense.nostr", RecordType::A)).await;
    assert_eq!(wrong.metadata.response_code, ResponseCode::NXDomain);
    let answer = over_tcp(world.address, &question("last.example.com", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    let asked = tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
    assert!(!asked.iter().any(|name| name.contains("nostr")), "{asked:?}");
}

#[tokio::test]
async fn what_is_no_question_is_answered_with_a_code_or_not_at_all() {
    let world = resolver("198.19.0.0/16", &[]).await;
    let mut update = question("x.nostr", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(over_udp(world.address, &update).await.metadata.response_code, ResponseCode::NotImp);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for noise in [&b"x"[..], &[0xff; 600], &[]] {
        socket.send_to(noise, world.address).await.unwrap();
    }
    let mut with_edns = question(&name(), RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    with_edns.edns = Some(edns);
    let answer = over_udp(world.address, &with_edns).await;
    assert!(answer.edns.is_some() && addresses(&answer).len() == 1);
}

/// Whether the other side has ended it without another byte.
async fn is_over(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().is_err()
}

#[tokio::test]
async fn a_connection_above_the_limit_waits_and_those_that_have_a_place_give_it_up_after_an_answer() {
    let world = resolver_for("198.19.0.0/16", &[], 2).await;
    let question = question(&name(), RecordType::A);
    let bytes = question.to_vec().unwrap();
    let mut first = TcpStream::connect(world.address).await.unwrap();
    for _ in 0..3 {
        // While there is room a connection stays.
        ask(&mut first, &bytes).await;
        assert_eq!(answer(&mut first).await.answers.len(), 1);
    }
    let mut second = TcpStream::connect(world.address).await.unwrap();
    second.write_all(&bytes[..1]).await.unwrap();
    let mut third = TcpStream::connect(world.address).await.unwrap();
    ask(&mut third, &bytes).await;
    // Others are answered meanwhile.
    for _ in 0..20 {
        assert_eq!(over_udp(world.address, &question).await.answers.len(), 1);
    }
    assert_eq!(third.try_read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    ask(&mut first, &bytes).await;
    assert_eq!(answer(&mut first).await.answers.len(), 1);
    // It asks on at once, and is not answered any more.
    let framed = [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat();
    let _ = first.write_all(&framed).await;
    assert!(is_over(&mut first).await);
    assert_eq!(answer(&mut third).await.answers.len(), 1);
    // So does one that asks nothing.
    assert!(is_over(&mut second).await);
}

#[tokio::test]
async fn what_is_no_question_over_tcp_is_an_error_or_the_end_and_harms_nobody() {
    let world = resolver("198.19.0.0/16", &[]).await;
    let name = name();
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let mut broken = question(&name, RecordType::A).to_vec().unwrap();
    broken.truncate(20);
    ask(&mut stream, &broken).await;
    let said = answer(&mut stream).await;
    assert_eq!((said.metadata.id, said.metadata.response_code), (7, ResponseCode::FormErr));
    ask(&mut stream, &question(&name, RecordType::A).to_vec().unwrap()).await;
    assert_eq!(answer(&mut stream).await.answers.len(), 1);
    // An answer is not answered, or two resolvers could go on for ever.
    ask(&mut stream, &Message::response(7, OpCode::Query).to_vec().unwrap()).await;
    assert!(is_over(&mut stream).await);
    for nothing in [&[][..], &[7]] {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        ask(&mut stream, nothing).await;
        assert!(is_over(&mut stream).await);
    }
    assert_eq!(addresses(&over_tcp(world.address, &question(&name, RecordType::A)).await).len(), 1);
}
