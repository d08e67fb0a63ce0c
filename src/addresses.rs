//! Which IP addresses are not the open internet: the IANA's special-purpose registries, addresses in which another one
//! is hidden, and those by which clouds give their secrets to whoever asks from inside. A table and nothing else:
//! what follows from it is the affair of an exit's policy and of the proxy's rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A range that is not for strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// The range.
    pub net: IpNet,
    /// What it is for, for people.
    pub what: &'static str,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u8, what: &'static str) -> (Ipv4Net, &'static str) {
    (Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len), what)
}

const fn v6(segments: [u16; 8], len: u8, what: &'static str) -> (Ipv6Net, &'static str) {
    let [a, b, c, d, e, f, g, h] = segments;
    (Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), len), what)
}

/// IANA IPv4 Special-Purpose Address Registry, multicast (RFC 5771), and what clouds put elsewhere.
const V4: [(Ipv4Net, &str); 17] = [
    v4(0, 0, 0, 0, 8, "this network (RFC 791); systems take it for loopback"),
    v4(10, 0, 0, 0, 8, "private (RFC 1918)"),
    v4(100, 64, 0, 0, 10, "shared by carriers' NAT (RFC 6598)"),
    v4(127, 0, 0, 0, 8, "loopback (RFC 1122)"),
    v4(169, 254, 0, 0, 16, "link-local (RFC 3927), cloud metadata"),
    v4(172, 16, 0, 0, 12, "private (RFC 1918)"),
    v4(192, 0, 0, 0, 24, "IETF protocols (RFC 6890)"),
    v4(192, 0, 2, 0, 24, "documentation (RFC 5737)"),
    v4(192, 31, 196, 0, 24, "AS112 (RFC 7535)"),
    v4(192, 88, 99, 0, 24, "6to4 relays (RFC 7526)"),
    v4(192, 168, 0, 0, 16, "private (RFC 1918)"),
    v4(198, 18, 0, 0, 15, "benchmarks (RFC 2544)"),
    v4(198, 51, 100, 0, 24, "documentation (RFC 5737)"),
    v4(203, 0, 113, 0, 24, "documentation (RFC 5737)"),
    v4(168, 63, 129, 16, 32, "cloud metadata (Azure)"),
    v4(224, 0, 0, 0, 4, "multicast (RFC 5771)"),
    v4(240, 0, 0, 0, 4, "reserved (RFC 1112), broadcast"),
];

/// IANA IPv6 Special-Purpose Address Registry; more special ranges come first.
const V6: [(Ipv6Net, &str); 17] = [
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback (RFC 4291)"),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, "unspecified (RFC 4291)"),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, "IPv4-compatible (RFC 4291)"),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "IPv4-mapped (RFC 4291)"),
    v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96, "IPv4-translated (RFC 2765)"),
    NAT64,
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "NAT64 of a network (RFC 8215)"),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "Teredo (RFC 4380)"),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "IETF protocols (RFC 2928)"),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "documentation (RFC 3849)"),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4 (RFC 3056)"),
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, "AS112 (RFC 7534)"),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "documentation (RFC 9637)"),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "unique local (RFC 4193), cloud metadata"),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local (RFC 4291)"),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "site-local (RFC 3879)"),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast (RFC 4291)"),
];

/// Where NAT64 puts the IPv4 internet (RFC 6052).
const NAT64: (Ipv6Net, &str) = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, "NAT64 (RFC 6052)");

/// All that is given out as global unicast (RFC 4291 section 2.4); what lies outside is nobody's.
const V6_GLOBAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// The reserved range that an address lies in; `None` on the open internet.
#[must_use]
pub fn reserved(ip: IpAddr) -> Option<Reserved> {
    let entry = |net: IpNet, what| Reserved { net, what };
    match ip {
        IpAddr::V4(ip) => V4.iter().find(|(net, _)| net.contains(&ip)).map(|(net, what)| entry((*net).into(), what)),
        IpAddr::V6(ip) => match V6.iter().find(|(net, _)| net.contains(&ip)) {
            Some((net, what)) => Some(entry((*net).into(), what)),
            None if V6_GLOBAL.contains(&ip) => None,
            None => Some(entry(IpNet::V6(ip.into()), "not given out (RFC 4291)")),
        },
    }
}

/// The IPv4 address hidden in an IPv6 one: where a translator, a tunnel or the system itself would take it.
#[must_use]
pub fn hidden_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    let [.., g, h] = ip.segments();
    let at = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match ip.segments() {
        // Compatible, mapped and translated addresses.
        [0, 0, 0, 0, 0 | 0xffff, 0, _, _] | [0, 0, 0, 0, 0, 0xffff, _, _] => at(g, h),
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0x64, 0xff9b, 1, _, _, _, _, _] => at(g, h),
        [0x2002, high, low, ..] => at(high, low),
        // Teredo hides its client's address with all bits turned over.
        [0x2001, 0, ..] => at(!g, !h),
        _ => None,
    }
}

/// Whether an address is one by which a NAT64 reaches the IPv4 internet.
#[must_use]
pub fn is_nat64(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if NAT64.0.contains(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_internet_is_not_reserved() {
        for ip in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "2400::1",
        ] {
            assert_eq!(reserved(ip.parse().unwrap()), None, "{ip}");
        }
    }

    #[test]
    fn the_edges_of_a_range_belong_to_it() {
        for (first, last, what) in [
            ("10.0.0.0", "10.255.255.255", "private"),
            ("100.64.0.0", "100.127.255.255", "carriers"),
            ("172.16.0.0", "172.31.255.255", "private"),
            ("198.18.0.0", "198.19.255.255", "benchmarks"),
            ("224.0.0.0", "239.255.255.255", "multicast"),
            ("240.0.0.0", "255.255.255.255", "broadcast"),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "unique local"),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"),
            ("4000::", "ff00::", ""),
        ] {
            for ip in [first, last] {
                let found = reserved(ip.parse().unwrap()).unwrap_or_else(|| panic!("{ip}"));
                assert!(found.what.contains(what), "{ip}: {}", found.what);
                assert!(found.net.contains(&ip.parse::<IpAddr>().unwrap()));
            }
        }
    }

    #[test]
    fn what_is_hidden_is_found() {
        for ip in [
            "::ffff:10.1.2.3",
            "::10.1.2.3",
            "::ffff:0:10.1.2.3",
            "64:ff9b::10.1.2.3",
            "64:ff9b:1::10.1.2.3",
            "2002:0a01:0203::1",
            "2001:0:1:2:3:4:f5fe:fdfc",
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(hidden_v4(ip), Some(Ipv4Addr::new(10, 1, 2, 3)), "{ip}");
            assert!(reserved(ip).is_some(), "{ip}");
        }
        assert_eq!(hidden_v4("2606:4700::1111".parse().unwrap()), None);
    }
}
