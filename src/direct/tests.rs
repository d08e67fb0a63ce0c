//! The door at a public address, with real sockets: who is let in, once, and who is cut.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::message::Offer;

/// Longest time that anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

async fn door(strangers: usize) -> (Arc<Rendezvous>, CancellationToken) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), strangers).await.unwrap();
    let rendezvous = Rendezvous::new(listener.local_addr().to_string(), 100);
    let end = CancellationToken::new();
    tokio::spawn(listener.serve(Arc::clone(&rendezvous), end.clone()));
    (rendezvous, end)
}

async fn connect(rendezvous: &Rendezvous) -> TcpStream {
    TcpStream::connect(rendezvous.address()).await.unwrap()
}

async fn prove_to(offer: &Offer) -> io::Result<Connection> {
    let tcp = TcpStream::connect(&offer.address).await?;
    tokio::time::timeout(PATIENCE, prove(tcp, offer)).await?
}

/// Waits for the connection of a ticket and welcomes it.
async fn meet(ticket: &mut Ticket) -> Connection {
    let mut connection = tokio::time::timeout(PATIENCE, ticket.arrival()).await.unwrap().unwrap();
    welcome(&mut connection).await.unwrap();
    connection
}

/// Whether the other end ends the connection.
async fn is_cut(stream: &mut TcpStream) -> bool {
    // TLS says an alert first.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.is_ok()
}

#[tokio::test]
async fn a_token_opens_the_door_once_and_both_ends_pass_on_their_ends() {
    let (rendezvous, _end) = door(10).await;
    let (offer, mut ticket) = rendezvous.issue().unwrap();
    let (here, there) = tokio::join!(prove_to(&offer), meet(&mut ticket));
    let (mut here, mut there) = (here.unwrap(), there);
    here.write_all(b"up").await.unwrap();
    here.shutdown().await.unwrap();
    let mut up = String::new();
    there.read_to_string(&mut up).await.unwrap();
    there.write_all(b"down").await.unwrap();
    there.shutdown().await.unwrap();
    let mut down = String::new();
    here.read_to_string(&mut down).await.unwrap();
    assert_eq!((&*up, &*down), ("up", "down"), "a direction goes on when the other has ended");
    assert!(prove_to(&offer).await.is_err(), "the token counts once");
    assert_eq!(rendezvous.waiting(), 0);
}

#[tokio::test]
async fn a_connection_that_breaks_does_not_look_like_one_that_ends() {
    let (rendezvous, _end) = door(10).await;
    let (offer, mut ticket) = rendezvous.issue().unwrap();
    let (here, mut there) = tokio::join!(prove_to(&offer), meet(&mut ticket));
    drop(here);
    assert!(there.read(&mut [0]).await.is_err(), "in TLS");
    let key = Uuid::new_v4();
    let mut ticket = rendezvous.issue_in_clear(key).unwrap();
    let (here, mut there) = tokio::join!(prove_in_clear(connect(&rendezvous).await, key), meet(&mut ticket));
    drop(here);
    assert!(there.read(&mut [0]).await.is_err(), "in clear");
}

#[tokio::test]
async fn a_wrong_token_a_wrong_certificate_and_a_wrong_key_open_nothing() {
    let (rendezvous, _end) = door(10).await;
    let (offer, mut ticket) = rendezvous.issue().unwrap();
    let (another, _another) = rendezvous.issue().unwrap();
    assert!(prove_to(&Offer { token: [7; 32], ..offer.clone() }).await.is_err(), "the token of nobody");
    assert!(prove_to(&Offer { token: another.token, ..offer.clone() }).await.is_err(), "another one's certificate");
    assert!(prove_in_clear(connect(&rendezvous).await, Uuid::new_v4()).await.is_err(), "the key of no stream");
    let (here, there) = tokio::join!(prove_to(&offer), meet(&mut ticket));
    drop((here.unwrap(), there));
}

#[tokio::test]
async fn what_is_not_taken_in_time_or_wanted_no_more_opens_nothing() {
    let (rendezvous, _end) = door(10).await;
    let (offer, ticket) = rendezvous.issue().unwrap();
    drop(ticket);
    assert!(prove_to(&offer).await.is_err());
    assert_eq!(rendezvous.waiting(), 0);
    let tickets: Vec<_> = (0..100).map(|_| rendezvous.issue().unwrap()).collect();
    assert!(rendezvous.issue().is_err() && rendezvous.issue_in_clear(Uuid::new_v4()).is_err(), "there is a bound");
    drop(tickets);
    tokio::time::pause();
    let (_, mut ticket) = rendezvous.issue().unwrap();
    let start = tokio::time::Instant::now();
    assert!(ticket.arrival().await.is_none());
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn strangers_are_cut_at_the_first_byte_that_cannot_be_right() {
    let (rendezvous, _end) = door(100).await;
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], &[0; 100], &[0x16, 3, 1, 255, 255, 1], b"xx", &[b'a'; 36], &[b'-'; 400]] {
        let mut stranger = connect(&rendezvous).await;
        stranger.write_all(bytes).await.unwrap();
        assert!(is_cut(&mut stranger).await, "{bytes:?}");
    }
}

#[tokio::test]
async fn silent_ones_are_cut_after_a_while_and_a_thousand_of_them_keep_nobody_out() {
    let (rendezvous, _end) = door(50).await;
    let mut strangers = Vec::new();
    for n in 0..1_000_usize {
        let mut stranger = connect(&rendezvous).await;
        // Some say what could become a key, or a greeting.
        let said: &[u8] = [&b""[..], b"0123", &[0x16, 3, 1]][n % 3];
        stranger.write_all(said).await.unwrap();
        strangers.push(stranger);
    }
    let (offer, mut ticket) = rendezvous.issue().unwrap();
    let (here, there) = tokio::join!(prove_to(&offer), meet(&mut ticket));
    drop((here.unwrap(), there));
    assert!(is_cut(&mut strangers[0]).await, "the oldest made room");
    // The last ones have their ten seconds; with nothing else to do, the clock goes there by itself.
    tokio::time::pause();
    assert!(is_cut(strangers.last_mut().unwrap()).await);
}

#[test]
fn the_clear_form_passes_where_it_may() {
    assert!(!Plaintext::Never.allows(443));
    assert!(Plaintext::TlsOnly.allows(443) && !Plaintext::TlsOnly.allows(80));
    assert!(Plaintext::Always.allows(80));
}
