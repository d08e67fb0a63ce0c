//! `nws name find`: the key that a domain gives to a name (NIP-05). What is found is shown before it is kept, since a domain
//! can say one thing today and another tomorrow.

use std::collections::HashMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::str::FromStr;

use serde::Deserialize;
use url::Url;

use super::progress::Progress;
use super::{RunError, names};
use crate::config::{Settings, ValueError};
use crate::destination::Host;
use crate::name::{Alias, NostrName, parse_public_key, parse_relay};
use crate::relay::http;

/// The name of a domain itself (NIP-05).
const ROOT: &str = "_";

/// `alice@example.com`, or a domain alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    name: String,
    url: Url,
}

impl FromStr for Address {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = |why: &str| ValueError::new(format!("{text:?} {why}; write NAME@DOMAIN, as alice@example.com"));
        let (name, domain) = text.split_once('@').unwrap_or((ROOT, text));
        let name = name.to_ascii_lowercase();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(wrong("has no name of letters, digits, '-', '_' and '.'"));
        }
        let url = Url::parse(&format!("https://{domain}/.well-known/nostr.json?name={name}"));
        let url = url.map_err(|_| wrong("has no domain"))?;
        let is_domain = |host: &str| Host::is_plain_name(host) && url.path() == "/.well-known/nostr.json";
        if !url.host_str().is_some_and(is_domain) || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("has no domain"));
        }
        Ok(Self { name, url })
    }
}

/// What a domain answers.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    names: HashMap<String, String>,
    #[serde(default)]
    relays: HashMap<String, Vec<String>>,
}

/// Looks an address up.
///
/// # Errors
/// The domain cannot be asked, or does not know the name.
pub async fn look_up(settings: &Settings, address: &Address) -> Result<NostrName, RunError> {
    let Address { name, url } = address;
    let domain = url.host_str().unwrap_or_default();
    let limits = &settings.config.limits;
    let progress = Progress::start("asking the domain");
    let upstream = settings.config.relay_proxy.upstream();
    let answer = http::get(url, upstream.as_deref(), "application/json", limits.relay_connect_timeout).await;
    drop(progress);
    let answer = answer.map_err(|error| RunError::Failed(format!("cannot ask {domain}: {error}")))?;
    if !answer.status.is_success() {
        let way_out = "is the address right, and does the domain give out keys (NIP-05)?";
        return Err(RunError::Failed(format!("{domain} answers {}; {way_out}", answer.status)));
    }
    read(&answer.body, name, limits.relays_per_name).map_err(|why| RunError::Failed(format!("{domain}: {why}")))
}

/// What a document says of a name.
fn read(body: &[u8], name: &str, relays_max: usize) -> Result<NostrName, String> {
    let document: Document =
        serde_json::from_slice(body).map_err(|_| "what it answers is not of the form of NIP-05".to_owned())?;
    let hex = document.names.get(name).ok_or_else(|| format!("it knows no {name:?}"))?;
    let key = parse_public_key(hex).map_err(|error| format!("what it says of {name:?} is no key: {error}"))?;
    let relays = document.relays.get(hex).into_iter().flatten().filter_map(|relay| parse_relay(relay).ok());
    Ok(NostrName::new(key, relays.take(relays_max)))
}

/// Shows what an address leads to, and keeps it under a name if that is wanted and agreed to.
///
/// # Errors
/// It is not found, or not to be kept.
pub async fn run(
    settings: &Settings,
    address: &Address,
    keep: Option<&Alias>,
    replace: bool,
    agreed: bool,
) -> Result<String, RunError> {
    let name = look_up(settings, address).await?;
    let found = names::described(&name);
    let Some(alias) = keep else { return Ok(found) };
    if !agreed {
        let _ = writeln!(io::stdout(), "{found}");
        if !agrees(alias) {
            return Err(RunError::Failed(format!("{alias} is not kept: nobody agreed (--yes does)")));
        }
    }
    names::add(settings, alias, &name, replace)
}

/// Asks whoever sits at the terminal.
fn agrees(alias: &Alias) -> bool {
    if !io::stdin().is_terminal() {
        return false;
    }
    let _ = write!(io::stderr(), "keep this key as {alias}? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;

    #[test]
    fn an_address_is_a_name_at_a_domain() {
        for (text, url) in [
            ("alice@example.com", "https://example.com/.well-known/nostr.json?name=alice"),
            ("Alice@Example.com", "https://example.com/.well-known/nostr.json?name=alice"),
            ("example.com", "https://example.com/.well-known/nostr.json?name=_"),
            ("a.b-c_d@localhost:8443", "https://localhost:8443/.well-known/nostr.json?name=a.b-c_d"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().url.as_str(), url);
        }
        for text in ["", "@", "alice@", "al ice@example.com", "a@b@c", "alice@example.com/x", "a&b@c", "alice@[::1]x"] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_document_names_a_key_and_its_relays() {
        let key = Keys::generate().public_key();
        let hex = key.to_hex();
        let json = format!(
            r#"{{"names":{{"alice":"{hex}","bob":"x"}},"relays":{{"{hex}":["wss://a","nonsense://","wss://b","wss://c"]}}}}"#
        );
        let name = read(json.as_bytes(), "alice", 2).unwrap();
        assert_eq!(name, NostrName::new(key, ["wss://a", "wss://b"].map(|relay| parse_relay(relay).unwrap())));
        for (body, name, why) in [
            (&*json, "carol", "knows no"),
            (&json, "bob", "is no key"),
            ("7", "alice", "NIP-05"),
            ("{}", "alice", "knows no"),
        ] {
            assert!(read(body.as_bytes(), name, 2).unwrap_err().contains(why), "{body}");
        }
    }
}
