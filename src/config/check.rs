//! What no type can say: values that are impossible only together, or senseless at zero. Each finding names the key,
//! so that [`super::Sources`] can name the file.

use std::collections::BTreeSet;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;

use super::{Config, DnsConfig, ExitConfig, ListenAddr, NameServer, PublicConfig, TlsPort};
use crate::addresses::reserved;
use crate::destination::Host;
use crate::limits::Limits;

/// Longest duration that is taken: timers add it to the clock, which overflows on what some would write for "never".
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Smallest receive window: a proxy may send so much before it knows the window (`docs/protocol.md`, "Opening").
const WINDOW_MIN: ByteSize = ByteSize::kib(64);

/// Smallest limit of an event: a `CONNECT` alone takes a kilobyte after encryption and base64.
const EVENT_MIN: ByteSize = ByteSize::kib(4);

/// Smallest budget of a relay for an hour: below it not even a page would pass at once.
const BUDGET_MIN: ByteSize = ByteSize::mib(16);

/// Largest message that the embedded relay can be told to take: the websocket library beneath ends there.
const MESSAGE_MAX: ByteSize = ByteSize::mib(16);

/// Shortest time between two announcements.
const ANNOUNCE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Longest time between two announcements: proxies ask for those of the last hour.
const ANNOUNCE_INTERVAL_MAX: Duration = Duration::from_secs(60 * 60);

/// Longest text for people in an announcement, in characters: it is shown in a list.
const TEXT_MAX: usize = 100;

/// Shortest prefix of the range of addresses that stand for names.
const POOL_PREFIX_MIN: u8 = 10;

/// Longest one: it leaves six addresses.
const POOL_PREFIX_MAX: u8 = 29;
/// What is wrong with a direct connection where a proxy stands before the relays.
pub(super) const SHOWN: &str =
    "shows peers this machine's address, which relay_proxy.url is to hide; unset this key or relay_proxy.url";

/// Something impossible.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The keys that it is about, dotted; whichever is set first in this order is to blame.
    pub(super) keys: Vec<&'static str>,
    /// What is wrong and what would be right.
    pub(super) reason: String,
}

/// The first impossible value, if there is one.
pub(super) fn check(config: &Config) -> Result<(), Finding> {
    if config.proxy.listen.is_empty() {
        return Err(finding(&["proxy.listen"], "is empty; name at least one address, as \"127.0.0.1:8882\""));
    }
    match (&config.proxy.identity, config.proxy.identity_for.is_empty()) {
        (Some(_), true) => {
            let reason = "is shown to no exit; name those that want it in proxy.identity_for";
            return Err(finding(&["proxy.identity", "proxy.identity_for"], reason));
        }
        (None, false) => {
            let reason =
                "names exits that are shown an identity, and there is none; set proxy.identity to its key file";
            return Err(finding(&["proxy.identity_for"], reason));
        }
        _ => {}
    }
    let waiting = [
        ("proxy.public_listen", "proxy.public_address", &config.proxy.public_listen, &config.proxy.public_address),
        ("exit.public_listen", "exit.public_address", &config.exit.public_listen, &config.exit.public_address),
    ];
    for (listen, address, at, told) in waiting {
        if at.is_some() && told.is_none() {
            let reason = format!("listens where nobody comes: set {address} to where peers reach it, too");
            return Err(finding(&[listen], reason));
        }
    }
    hidden(config)?;
    let relay = &config.relay;
    at_least_one("relay.max_connections", relay.max_connections as u64)?;
    at_least_one("relay.max_subscriptions", relay.max_subscriptions as u64)?;
    at_least("relay.max_message", relay.max_message, EVENT_MIN, "the smallest that an event fits into")?;
    if relay.max_message > MESSAGE_MAX {
        let reason = format!("is {}; it must be {MESSAGE_MAX} or less", relay.max_message);
        return Err(finding(&["relay.max_message"], reason));
    }
    public(&config.exit.public)?;
    dns(&config.dns)?;
    tls(&config.exit)?;
    limits(&config.limits)
}

/// Relays are reached through a proxy so that nobody learns this machine's address, which a direct connection shows.
fn hidden(config: &Config) -> Result<(), Finding> {
    if config.relay_proxy.url.is_none() {
        return Ok(());
    }
    let (proxy, exit) = (&config.proxy, &config.exit);
    for (key, set) in [
        ("proxy.public_address", proxy.public_address.is_some()),
        ("proxy.dial_exits.enabled", proxy.dial_exits.enabled),
        ("exit.public_address", exit.public_address.is_some()),
        ("exit.dial_back.enabled", exit.dial_back.enabled),
    ] {
        if set {
            return Err(finding(&[key], SHOWN));
        }
    }
    Ok(())
}

/// The checks of `[exit.public]`.
fn public(public: &PublicConfig) -> Result<(), Finding> {
    let interval = public.announce_interval;
    if interval < ANNOUNCE_INTERVAL_MIN || interval > ANNOUNCE_INTERVAL_MAX {
        let reason =
            "must be between 1s and 1h: relays do not like more, and nobody finds what is announced less often";
        return Err(finding(&["exit.public.announce_interval"], reason));
    }
    for (key, text) in [("exit.public.name", &public.name), ("exit.public.contact", &public.contact)] {
        let wrong = |text: &String| text.chars().count() > TEXT_MAX || text.chars().any(char::is_control);
        if text.as_ref().is_some_and(wrong) {
            return Err(finding(&[key], format!("must be one line of at most {TEXT_MAX} characters")));
        }
    }
    Ok(())
}

/// The checks of `[dns]`.
fn dns(dns: &DnsConfig) -> Result<(), Finding> {
    let net = dns.pool;
    let is_reserved = reserved(net.network().into()).is_some_and(|range| range.net.contains(&IpNet::V4(net)));
    if !is_reserved || net.network().is_loopback() {
        let reason = "covers addresses of the internet or of this machine, which nobody could reach any more; take a part \
                      of a private range";
        return Err(finding(&["dns.pool"], reason));
    }
    if net.prefix_len() < POOL_PREFIX_MIN || net.prefix_len() > POOL_PREFIX_MAX {
        let reason = format!("must be between a /{POOL_PREFIX_MAX} and a /{POOL_PREFIX_MIN}");
        return Err(finding(&["dns.pool"], reason));
    }
    let itself = |server: &NameServer| {
        let same = |listen: &ListenAddr| *listen.host() == Host::Ip(server.0.ip()) && listen.port() == server.0.port();
        dns.listen.iter().any(same)
    };
    if dns.forward.iter().any(itself) {
        return Err(finding(&["dns.forward", "dns.listen"], "passes questions on to itself (dns.listen)"));
    }
    Ok(())
}

/// The checks of `[exit.tls]` and of services with TLS.
fn tls(exit: &ExitConfig) -> Result<(), Finding> {
    let tls = &exit.tls;
    if tls.certificate.is_none() && tls.key.is_some() {
        let reason = "is the key of no certificate; set exit.tls.certificate, too";
        return Err(finding(&["exit.tls.key"], reason));
    }
    let protocol = |name: &String| (1..=255).contains(&name.len());
    if !tls.alpn.iter().all(protocol) {
        return Err(finding(&["exit.tls.alpn"], "has a name that is empty or too long; write such as \"http/1.1\""));
    }
    let mut ports = BTreeSet::new();
    for (port, TlsPort(with_tls)) in exit.service.iter().filter_map(|(port, service)| Some((port, service.tls?))) {
        let reason = if tls.certificate.is_some() && tls.key.is_none() {
            format!("service {port} is to have TLS, and exit.tls.certificate has no key; set exit.tls.key")
        } else if with_tls != *port && exit.service.contains_key(&with_tls) {
            format!("service {port} is to have TLS on port {with_tls}, which is another service")
        } else if !ports.insert(with_tls) {
            format!("two services are to have TLS on port {with_tls}")
        } else {
            continue;
        };
        return Err(finding(&["exit.service", "exit.tls.certificate"], reason));
    }
    Ok(())
}

/// The checks of `[limits]`. Every field is named, so that a new one cannot be forgotten.
fn limits(limits: &Limits) -> Result<(), Finding> {
    let Limits {
        handshake_timeout,
        open_timeout,
        dial_timeout,
        stall_timeout,
        idle_probe_after,
        old_idle_timeout,
        drain_timeout,
        window_initial,
        window_max,
        streams_memory,
        path_window_max,
        path_events_max,
        session_streams,
        peer_streams_per_second,
        exit_streams_per_second,
        exit_strangers_per_second,
        exit_streams,
        // No limit is 0, and every other value is possible.
        peer_bytes_per_second: _,
        stream_idle,
        exit_sessions,
        relays_per_name,
        known_exits,
        proxy_connections,
        dns_names,
        dns_connections,
        client_streams,
        client_streams_per_second,
        client_bytes_per_second: _,
        proxy_streams_per_second,
        proxy_sessions,
        session_lifetime,
        session_idle,
        message_age,
        direct_timeout,
        direct_pause,
        direct_waiting,
        direct_strangers,
        direct_dials_per_second,
        event_max,
        relay_bytes_per_hour,
        relay_connect_timeout,
        relay_ping_after,
        relay_ping_timeout,
        relay_retry_max,
    } = limits;
    for (key, value) in [
        ("limits.handshake_timeout", handshake_timeout),
        ("limits.open_timeout", open_timeout),
        ("limits.dial_timeout", dial_timeout),
        ("limits.stall_timeout", stall_timeout),
        ("limits.old_idle_timeout", old_idle_timeout),
        ("limits.idle_probe_after", idle_probe_after),
        ("limits.message_age", message_age),
        ("limits.direct_timeout", direct_timeout),
        ("limits.relay_connect_timeout", relay_connect_timeout),
        ("limits.relay_ping_after", relay_ping_after),
        ("limits.relay_ping_timeout", relay_ping_timeout),
        ("limits.relay_retry_max", relay_retry_max),
    ] {
        if value.is_zero() {
            return Err(finding(&[key], "is zero; nothing can be done in no time, write a duration such as \"30s\""));
        }
        not_too_long(key, *value)?;
    }
    // These may be zero: end at once, forget at once, a key for each stream, never.
    not_too_long("limits.drain_timeout", *drain_timeout)?;
    not_too_long("limits.session_idle", *session_idle)?;
    not_too_long("limits.stream_idle", *stream_idle)?;
    not_too_long("limits.session_lifetime", *session_lifetime)?;
    not_too_long("limits.direct_pause", *direct_pause)?;

    for (key, count) in [
        ("limits.path_events_max", *path_events_max as u64),
        ("limits.session_streams", *session_streams as u64),
        ("limits.peer_streams_per_second", u64::from(*peer_streams_per_second)),
        ("limits.exit_streams_per_second", u64::from(*exit_streams_per_second)),
        ("limits.exit_strangers_per_second", u64::from(*exit_strangers_per_second)),
        ("limits.exit_streams", *exit_streams as u64),
        ("limits.exit_sessions", *exit_sessions as u64),
        ("limits.relays_per_name", *relays_per_name as u64),
        ("limits.known_exits", *known_exits as u64),
        ("limits.proxy_connections", *proxy_connections as u64),
        ("limits.dns_names", *dns_names as u64),
        ("limits.dns_connections", *dns_connections as u64),
        ("limits.client_streams", *client_streams as u64),
        ("limits.client_streams_per_second", u64::from(*client_streams_per_second)),
        ("limits.proxy_streams_per_second", u64::from(*proxy_streams_per_second)),
        ("limits.proxy_sessions", *proxy_sessions as u64),
        ("limits.direct_waiting", *direct_waiting as u64),
        ("limits.direct_strangers", *direct_strangers as u64),
        ("limits.direct_dials_per_second", u64::from(*direct_dials_per_second)),
    ] {
        at_least_one(key, count)?;
    }

    at_least(
        "limits.window_initial",
        *window_initial,
        WINDOW_MIN,
        "which a proxy may send before it knows the window",
    )?;
    if window_initial > window_max {
        return Err(finding(
            &["limits.window_initial", "limits.window_max"],
            format!("limits.window_initial ({window_initial}) is above limits.window_max ({window_max})"),
        ));
    }
    at_least("limits.streams_memory", *streams_memory, WINDOW_MIN, "or hardly a stream could be served")?;
    if relay_bytes_per_hour.as_u64() > 0 {
        at_least("limits.relay_bytes_per_hour", *relay_bytes_per_hour, BUDGET_MIN, "or 0 for no limit")?;
    }
    at_least("limits.path_window_max", *path_window_max, WINDOW_MIN, "or no event would ever be under way")?;
    at_least("limits.event_max", *event_max, EVENT_MIN, "the smallest that a message fits into")
}

fn finding(keys: &[&'static str], reason: impl Into<String>) -> Finding {
    Finding { keys: keys.to_vec(), reason: reason.into() }
}

fn at_least_one(key: &'static str, count: u64) -> Result<(), Finding> {
    if count == 0 { Err(finding(&[key], "is zero; it must be 1 or more")) } else { Ok(()) }
}

fn at_least(key: &'static str, size: ByteSize, least: ByteSize, why: &str) -> Result<(), Finding> {
    if size < least { Err(finding(&[key], format!("is {size}; it must be {least} or more, {why}"))) } else { Ok(()) }
}

fn not_too_long(key: &'static str, value: Duration) -> Result<(), Finding> {
    if value > DURATION_MAX { Err(finding(&[key], "is longer than a year")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change to the configuration, under test.
    type Change = fn(&mut Config);

    #[test]
    fn the_defaults_are_possible() {
        assert_eq!(check(&Config::default()), Ok(()));
    }

    #[test]
    fn values_at_their_bounds_are_possible() {
        let changes: [Change; 12] = [
            |c| c.dns.pool = "100.64.0.0/10".parse().unwrap(),
            |c| c.dns.pool = "10.0.0.0/29".parse().unwrap(),
            |c| c.limits.window_initial = WINDOW_MIN,
            |c| c.limits.window_initial = c.limits.window_max,
            |c| c.limits.drain_timeout = Duration::ZERO,
            |c| c.limits.session_idle = Duration::ZERO,
            |c| c.limits.open_timeout = DURATION_MAX,
            |c| c.limits.session_streams = 1,
            |c| c.relay.max_message = EVENT_MIN,
            |c| c.relay.max_message = MESSAGE_MAX,
            |c| c.exit.public.announce_interval = ANNOUNCE_INTERVAL_MIN,
            |c| c.exit.public.name = Some("x".repeat(TEXT_MAX)),
        ];
        for change in changes {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(check(&config), Ok(()));
        }
    }

    #[test]
    fn impossible_values_name_their_key() {
        let changes: [(&str, Change); 23] = [
            ("dns.pool", |c| c.dns.pool = "9.9.9.0/24".parse().unwrap()),
            ("dns.pool", |c| c.dns.pool = "127.1.0.0/16".parse().unwrap()),
            ("dns.pool", |c| c.dns.pool = "10.0.0.0/9".parse().unwrap()),
            ("dns.pool", |c| c.dns.pool = "10.0.0.0/30".parse().unwrap()),
            ("dns.forward", |c| {
                c.dns.listen = vec!["127.0.0.1:53".parse().unwrap()];
                c.dns.forward = vec!["127.0.0.1".parse().unwrap()];
            }),
            ("proxy.listen", |c| c.proxy.listen.clear()),
            ("proxy.identity", |c| c.proxy.identity = Some("me.key".into())),
            ("proxy.identity_for", |c| {
                c.proxy.identity_for = vec![nostr::Keys::generate().public_key().to_hex().parse().unwrap()];
            }),
            ("relay.max_connections", |c| c.relay.max_connections = 0),
            ("relay.max_subscriptions", |c| c.relay.max_subscriptions = 0),
            ("relay.max_message", |c| c.relay.max_message = ByteSize::b(EVENT_MIN.as_u64() - 1)),
            ("relay.max_message", |c| c.relay.max_message = ByteSize::b(MESSAGE_MAX.as_u64() + 1)),
            ("limits.stall_timeout", |c| c.limits.stall_timeout = Duration::ZERO),
            ("limits.relay_retry_max", |c| c.limits.relay_retry_max = Duration::ZERO),
            ("limits.session_idle", |c| c.limits.session_idle = DURATION_MAX + Duration::from_nanos(1)),
            ("limits.session_streams", |c| c.limits.session_streams = 0),
            ("limits.window_initial", |c| c.limits.window_initial = ByteSize::b(0)),
            ("limits.window_initial", |c| c.limits.window_max = ByteSize::b(c.limits.window_initial.as_u64() - 1)),
            ("limits.path_window_max", |c| c.limits.path_window_max = ByteSize::b(0)),
            ("limits.event_max", |c| c.limits.event_max = ByteSize::b(100)),
            ("exit.public.announce_interval", |c| c.exit.public.announce_interval = Duration::from_millis(999)),
            ("exit.public.name", |c| c.exit.public.name = Some("x".repeat(TEXT_MAX + 1))),
            ("exit.public.contact", |c| c.exit.public.contact = Some("a\nb".to_owned())),
        ];
        for (key, change) in changes {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(check(&config).unwrap_err().keys[0], key);
        }
    }

    #[test]
    fn nothing_shows_the_address_that_a_proxy_before_the_relays_hides() {
        let hidden: Change = |c| c.relay_proxy.url = Some("socks5://127.0.0.1:9050".parse().unwrap());
        let changes: [(&str, Change); 4] = [
            ("proxy.public_address", |c| c.proxy.public_address = Some("192.0.2.1:4443".parse().unwrap())),
            ("proxy.dial_exits.enabled", |c| c.proxy.dial_exits.enabled = true),
            ("exit.public_address", |c| c.exit.public_address = Some("192.0.2.1:4443".parse().unwrap())),
            ("exit.dial_back.enabled", |c| c.exit.dial_back.enabled = true),
        ];
        for (key, change) in changes {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(check(&config), Ok(()));
            hidden(&mut config);
            let Finding { keys, reason } = check(&config).unwrap_err();
            assert_eq!(keys, [key]);
            assert!(reason.contains("relay_proxy.url"), "{reason}");
        }
        let mut config = Config::default();
        hidden(&mut config);
        assert_eq!(check(&config), Ok(()));
    }
}
