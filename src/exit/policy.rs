//! What a public exit connects to: the open internet on the ports of the web, and nothing else unless a rule says so.
//! Every address is judged after resolution, so no name can lead to where its owner must not get.
//!
//! Not here: who may use the exit, and connecting itself (`dial.rs`). How addresses are reserved is in
//! [`crate::addresses`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::addresses::{Reserved, hidden_v4, is_nat64, reserved};
use crate::destination::{Destination, Host};
use crate::error::{Error, ErrorKind};
use crate::pattern::{Pattern, Ports};

/// Ports that are open unless a rule says otherwise: the web's.
pub const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Connect.
    Accept,
    /// Refuse.
    Reject,
}

/// One `[[exit.rule]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which hosts.
    pub to: Pattern,
    /// Which ports; all, if none is named.
    #[serde(default, skip_serializing_if = "Ports::is_all")]
    pub ports: Ports,
    /// What to do.
    pub action: Action,
}

/// The rules of an exit, and the defaults behind them.
///
/// The first rule that is about a destination decides. A name is matched as the client wrote it, ranges against every
/// address that it resolves to. `accept` opens a reserved address only where the rule names its range or a part of it
/// ([`Pattern::is_within`]); for others such a rule is passed over.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// A policy of these rules before the defaults.
    #[must_use]
    pub const fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// Whether a port can be reached anywhere: what cannot need not be resolved.
    ///
    /// # Errors
    /// `denied` when it cannot.
    pub fn check_port(&self, port: u16) -> Result<(), Error> {
        let opened = |rule: &Rule| rule.action == Action::Accept && rule.ports.has(port);
        if DEFAULT_PORTS.contains(&port) || self.rules.iter().any(opened) { Ok(()) } else { Err(closed(port)) }
    }

    /// Which of the addresses of a destination may be connected to; `own` are those of this machine.
    ///
    /// # Errors
    /// `denied` when a single one may not be: a name with a public and a private address is an attempt to be let in,
    /// or a mistake. Translations of public IPv4 addresses by a NAT64 are left out instead, since such a network adds
    /// them to every name.
    pub fn admit(&self, destination: &Destination, found: &[IpAddr], own: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        let name = match &destination.host {
            Host::Name(name) => Some(name.as_str()),
            Host::Ip(_) => None,
        };
        let mut admitted = Vec::new();
        let mut refused = None;
        for &ip in found {
            match (self.judge(name, ip, destination.port, own), hidden_v4(ip)) {
                (Ok(()), _) => admitted.push(ip),
                (Err(error), Some(v4)) if is_nat64(ip) => {
                    self.judge(name, v4.into(), destination.port, own)?;
                    refused = Some(error);
                }
                (Err(error), _) => return Err(error),
            }
        }
        match refused {
            Some(error) if admitted.is_empty() => Err(error),
            _ => Ok(admitted),
        }
    }

    /// Judges one address, reached by this name if it has one.
    fn judge(&self, name: Option<&str>, ip: IpAddr, port: u16, own: &[IpAddr]) -> Result<(), Error> {
        let reserved = reserved(ip).or_else(|| {
            let itself = || Reserved { net: ip.into(), what: "an address of the exit's own machine" };
            own.contains(&ip).then(itself)
        });
        let matches = |rule: &&Rule| {
            rule.ports.has(port) && (rule.to.has_address(ip) || name.is_some_and(|name| rule.to.has_name(name)))
        };
        for rule in self.rules.iter().filter(matches) {
            match (rule.action, &reserved) {
                (Action::Reject, _) => return Err(denied("a rule of the exit's owner forbids it")),
                (Action::Accept, Some(reserved)) if !rule.to.is_within(reserved) => {}
                // What the address hides is judged for itself: a NAT64 may be opened, and private networks behind
                // it are not by that.
                (Action::Accept, _) => {
                    return hidden_v4(ip).map_or(Ok(()), |v4| self.judge(name, v4.into(), port, own));
                }
            }
        }
        match reserved {
            Some(reserved) => Err(denied(&format!("the address is reserved: {}", reserved.what))),
            None if DEFAULT_PORTS.contains(&port) => Ok(()),
            None => Err(closed(port)),
        }
    }

    /// The ports that are open on the internet at large, for the exit's announcement.
    #[must_use]
    pub fn open_ports(&self) -> Ports {
        let is_open = |port: &u16| {
            let mut everywhere = self.rules.iter().filter(|rule| rule.to == Pattern::Any && rule.ports.has(*port));
            everywhere.next().map_or(DEFAULT_PORTS.contains(port), |rule| rule.action == Action::Accept)
        };
        Ports::compressed((1..=u16::MAX).filter(is_open))
    }
}

fn denied(why: &str) -> Error {
    Error::new(ErrorKind::Denied, format!("this exit does not connect there: {why}"))
}

fn closed(port: u16) -> Error {
    denied(&format!("port {port} is closed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &str) -> Policy {
        Policy::new(serde_json::from_str(rules).unwrap())
    }

    fn judge(policy: &Policy, host: &str, addresses: &[&str], port: u16) -> Result<usize, String> {
        let found: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let own = ["9.9.9.9".parse().unwrap()];
        let destination = Destination { host: Host::parse(host), port };
        policy.admit(&destination, &found, &own).map(|ips| ips.len()).map_err(|error| {
            assert_eq!(error.kind(), ErrorKind::Denied);
            error.to_string()
        })
    }

    #[test]
    fn by_default_the_web_is_open_and_nothing_else() {
        let policy = Policy::default();
        assert_eq!(judge(&policy, "a.example", &["1.1.1.1", "2606:4700::1111"], 443), Ok(2));
        assert_eq!(judge(&policy, "1.1.1.1", &["1.1.1.1"], 80), Ok(1));
        assert!(judge(&policy, "a.example", &["1.1.1.1"], 25).unwrap_err().contains("port 25"));
        assert!(judge(&policy, "a.example", &["1.1.1.1", "10.0.0.1"], 80).unwrap_err().contains("private"));
        assert!(judge(&policy, "a.example", &["9.9.9.9"], 80).unwrap_err().contains("own machine"));
        assert!(policy.check_port(443).is_ok() && policy.check_port(22).is_err());
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = policy(
            r#"[{"to":"bad.example","action":"reject"}, {"to":"1.1.1.0/24","ports":[80],"action":"reject"},
                {"to":"*","ports":[22,"6000-6999"],"action":"accept"}, {"to":"*","ports":[22],"action":"reject"}]"#,
        );
        assert_eq!(judge(&policy, "a.example", &["1.2.3.4"], 22), Ok(1));
        assert_eq!(judge(&policy, "a.example", &["1.2.3.4"], 6667), Ok(1));
        assert_eq!(judge(&policy, "a.example", &["1.1.1.1"], 443), Ok(1));
        for (host, ip, port) in
            [("a.bad.example", "1.2.3.4", 443), ("a.example", "1.1.1.1", 80), ("b.example", "1.2.3.4", 25)]
        {
            assert!(judge(&policy, host, &[ip], port).is_err(), "{host}");
        }
        assert_eq!(policy.open_ports().texts().collect::<Vec<_>>(), ["22", "80", "443", "6000-6999"]);
    }

    #[test]
    fn only_a_rule_that_names_a_reserved_range_opens_it() {
        let wide = policy(
            r#"[{"to":"*","action":"accept"}, {"to":"a.example","action":"accept"},
            {"to":"0.0.0.0/0","action":"accept"}, {"to":"::/0","action":"accept"}]"#,
        );
        assert_eq!(judge(&wide, "a.example", &["1.2.3.4"], 22), Ok(1));
        for ip in ["127.0.0.1", "10.0.0.1", "9.9.9.9", "::1", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "169.254.169.254"] {
            assert!(judge(&wide, "a.example", &[ip], 22).is_err(), "{ip}");
        }
        let named =
            policy(r#"[{"to":"10.1.0.0/16","ports":[8080],"action":"accept"}, {"to":"9.9.9.9","action":"accept"}]"#);
        assert_eq!(judge(&named, "a.example", &["10.1.2.3"], 8080), Ok(1));
        assert_eq!(judge(&named, "9.9.9.9", &["9.9.9.9"], 22), Ok(1));
        for (ip, port) in [("10.2.0.1", 8080), ("10.1.2.3", 80), ("::ffff:10.1.2.3", 8080)] {
            assert!(judge(&named, "a.example", &[ip], port).is_err(), "{ip}");
        }
    }

    #[test]
    fn translations_are_left_out_and_can_be_opened_without_what_is_behind_them() {
        let default = Policy::default();
        assert_eq!(judge(&default, "a.example", &["64:ff9b::1.1.1.1", "1.1.1.1"], 443), Ok(1));
        assert!(judge(&default, "a.example", &["64:ff9b::1.1.1.1"], 443).is_err());
        assert!(judge(&default, "a.example", &["64:ff9b::10.0.0.1", "1.1.1.1"], 443).is_err());
        let opened = policy(r#"[{"to":"64:ff9b::/96","action":"accept"}]"#);
        assert_eq!(judge(&opened, "a.example", &["64:ff9b::1.1.1.1"], 443), Ok(1));
        for ip in ["64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::9.9.9.9"] {
            assert!(judge(&opened, "a.example", &[ip], 443).is_err(), "{ip}");
        }
    }

    #[test]
    fn what_is_announced_is_what_is_open_to_all() {
        assert_eq!(Policy::default().open_ports().texts().collect::<Vec<_>>(), ["80", "443"]);
        let all = policy(r#"[{"to":"10.0.0.0/8","ports":[22],"action":"accept"}, {"to":"*","action":"accept"}]"#);
        assert_eq!(all.open_ports().texts().collect::<Vec<_>>(), ["1-65535"]);
        let none = policy(r#"[{"to":"*","ports":[80, 443],"action":"reject"}]"#);
        assert_eq!(none.open_ports().texts().count(), 0);
    }
}
