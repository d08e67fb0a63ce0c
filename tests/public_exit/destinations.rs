//! What a public exit never connects to, however it is written, and what it does connect to.

use std::time::Duration;

use nws::ErrorKind;
use nws::destination::{Destination, Host};
use nws::exit::{Dialer, Policy};

use super::network::TestNetwork;

/// Every reserved range at its edges and in its middle, and every spelling of it.
const REFUSED: [&str; 96] = [
    // This network, and what systems take it for.
    "0.0.0.0",
    "0.0.0.1",
    "0.255.255.255",
    "0",
    "0x0",
    // Private.
    "10.0.0.0",
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.0",
    "172.31.255.255",
    "192.168.0.0",
    "192.168.1.1",
    "192.168.255.255",
    "0xa.1",
    "012.0.0.1",
    "167772161",
    "3232235777",
    "192.168.257",
    "0xc0a80101",
    // Carriers' NAT.
    "100.64.0.0",
    "100.127.255.255",
    // Loopback in every spelling.
    "127.0.0.1",
    "127.0.0.1.",
    "127.255.255.255",
    "127.1",
    "127.0.1",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "0177.0.0.01",
    "0x7f000001",
    "0x7F.0.0.1",
    "0x7f.1",
    "0x7f.0x0.0x0.0x1",
    // Link-local and the clouds' metadata.
    "169.254.0.0",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.255.255",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    // Protocols, documentation, benchmarks, multicast, the future, broadcast.
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.0",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.0",
    "255.255.255.255",
    "4294967295",
    // The exit's own address.
    "93.184.215.14",
    "0x5db8d70e",
    "::ffff:93.184.215.14",
    // IPv6: itself, nothing, local, multicast, documentation, not given out.
    "::",
    "::1",
    "[::1]",
    "0:0:0:0:0:0:0:1",
    "fc00::1",
    "fdff:ffff::1",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "5f00::1",
    "4000::1",
    "[fe80::1%1]",
    // IPv4 hidden in IPv6, reserved or not.
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:169.254.169.254",
    "::ffff:1.1.1.1",
    "::127.0.0.1",
    "::1.1.1.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::1.1.1.1",
    "64:ff9b:1::10.0.0.1",
    "2002:7f00:1::1",
    "2002:a00:1::",
    "2001:0:1::80ff:fffe",
];

/// Names, and what they resolve to.
const NAMES: [(&str, &[&str]); 16] = [
    ("localhost", &["127.0.0.1"]),
    ("localhost.example", &["127.0.0.1", "::1"]),
    ("private.example", &["10.0.0.1"]),
    ("metadata.example", &["169.254.169.254"]),
    ("carrier.example", &["100.64.0.1"]),
    ("mapped.example", &["::ffff:127.0.0.1"]),
    ("nat64.example", &["64:ff9b::10.0.0.1"]),
    ("6to4.example", &["2002:a00:1::1"]),
    ("local6.example", &["fd00::1"]),
    ("zero.example", &["0.0.0.0"]),
    ("own.example", &["93.184.215.14"]),
    // A public address first, and the real target after it, in one answer.
    ("both.example", &["1.1.1.1", "127.0.0.1"]),
    ("both-turned.example", &["127.0.0.1", "1.1.1.1"]),
    ("both-families.example", &["2606:4700::1111", "10.0.0.1"]),
    ("both-six.example", &["1.1.1.1", "::1"]),
    ("translated.example", &["1.1.1.1", "64:ff9b::127.0.0.1"]),
];

fn network() -> TestNetwork {
    NAMES.iter().fold(TestNetwork::default(), |network, (name, addresses)| network.name(name, addresses))
}

async fn outcome(dialer: &Dialer, host: &str, port: u16) -> ErrorKind {
    let destination = Destination { host: Host::parse(host), port };
    let connecting = dialer.connect(&destination, Duration::from_secs(5));
    super::support::soon(host, connecting).await.expect_err(host).kind()
}

#[tokio::test]
async fn none_of_the_reserved_destinations_is_connected_to() {
    let network = network().shared();
    let dialer = Dialer::over(Policy::default(), network.clone());
    for host in REFUSED.into_iter().chain(NAMES.map(|(name, _)| name)) {
        for port in [80, 443] {
            let kind = outcome(&dialer, host, port).await;
            // A zone is not part of an address that anybody else could mean; such a host is no name either.
            let expected = if host.contains('%') { ErrorKind::HostUnreachable } else { ErrorKind::Denied };
            assert_eq!(kind, expected, "{host}");
        }
    }
    assert_eq!(network.connected(), []);
}

#[tokio::test]
async fn rules_for_the_open_internet_open_none_of_them() {
    let rules = r#"[{"to":"*","action":"accept"}, {"to":"example","action":"accept"},
        {"to":"0.0.0.0/0","action":"accept"}, {"to":"::/0","action":"accept"}]"#;
    let network = network().shared();
    let dialer = Dialer::over(Policy::new(serde_json::from_str(rules).unwrap()), network.clone());
    for host in REFUSED.into_iter().chain(NAMES.map(|(name, _)| name)) {
        outcome(&dialer, host, 22).await;
    }
    assert_eq!(network.connected(), []);
}

#[tokio::test]
async fn what_a_name_resolves_to_later_changes_nothing() {
    let network =
        TestNetwork::default().name("turns.example", &["1.1.1.1"]).name("turns.example", &["127.0.0.1"]).shared();
    let dialer = Dialer::over(Policy::default(), network.clone());
    // The first answer is judged and connected to: nothing resolves the name once more in between.
    assert_eq!(outcome(&dialer, "turns.example", 80).await, ErrorKind::Refused);
    assert_eq!(network.connected(), ["1.1.1.1:80".parse().unwrap()]);
    assert_eq!(outcome(&dialer, "turns.example", 80).await, ErrorKind::Denied);
    assert_eq!(network.connected().len(), 1);
}

#[tokio::test]
async fn the_open_internet_is_connected_to_at_exactly_the_addresses_that_were_judged() {
    let network = TestNetwork::default().name("a.example", &["1.1.1.1", "2606:4700::1111"]).shared();
    let dialer = Dialer::over(Policy::default(), network.clone());
    assert_eq!(outcome(&dialer, "A.Example.", 443).await, ErrorKind::Refused);
    assert_eq!(network.connected(), ["[2606:4700::1111]:443", "1.1.1.1:443"].map(|text| text.parse().unwrap()));
    for (host, connected) in
        [("8.8.8.8", "8.8.8.8:80"), ("134744072", "8.8.8.8:80"), ("2606:4700::1", "[2606:4700::1]:80")]
    {
        assert_eq!(outcome(&dialer, host, 80).await, ErrorKind::Refused);
        assert_eq!(network.connected().last(), Some(&connected.parse().unwrap()), "{host}");
    }
}

#[tokio::test]
async fn a_closed_port_is_refused_before_the_name_is_resolved() {
    let network = TestNetwork::default().shared();
    let dialer = Dialer::over(Policy::default(), network.clone());
    assert_eq!(outcome(&dialer, "a.example", 25).await, ErrorKind::Denied);
    assert_eq!(outcome(&dialer, "a.example", 80).await, ErrorKind::HostUnreachable);
    assert_eq!(network.connected(), []);
}
