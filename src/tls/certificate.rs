//! One certificate: made for an exit, read from files, and what is in it. Who keeps it and when it is renewed is in
//! `kept.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nostr::RelayUrl;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TlsError, pem};
use crate::name::{DNS_LABEL_MAX, DNS_NAME_MAX, NostrName};
use crate::pinned::sha256;

/// How long a certificate of ours is valid.
pub const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long before it is made it counts: clocks differ.
pub const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Certificates that are read of one file: a chain has three or four.
const CHAIN_MAX: usize = 10;

/// Single relays of a name that get a form of their own.
const RELAYS_MAX: usize = 16;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The names that it is for.
    pub names: Vec<String>,
    /// Seconds since 1970 from which on it counts.
    pub not_before: i64,
    /// Seconds since 1970 until which it counts.
    pub not_after: i64,
    /// The same two, for people.
    pub validity: String,
    /// The SHA-256 of its public key (SPKI), by which curl pins.
    pub key_sha256: [u8; 32],
}

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| format!("it is no X.509 certificate: {error}"))?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|extension| &extension.value.general_names).into_iter().flatten();
        let dns = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let validity = parsed.validity();
        Ok(Self {
            names: dns.collect(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            validity: format!("{} to {}", validity.not_before, validity.not_after),
            key_sha256: sha256(parsed.public_key().raw),
        })
    }

    /// Whether a client that compares names takes it for this host.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let below = host.split_once('.').map(|(_, rest)| rest);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(rest) => below.is_some_and(|below| below.eq_ignore_ascii_case(rest)),
            None => name.eq_ignore_ascii_case(&host),
        })
    }

    /// Whether a client that looks at dates takes it now.
    #[must_use]
    pub fn is_valid_at(&self, now: i64) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// Seconds since 1970.
#[must_use]
pub fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Whether a certificate can hold a name, and a client ask for it: 253 characters, and 63 in a label.
#[must_use]
pub fn fits(name: &str) -> bool {
    name.len() <= DNS_NAME_MAX && name.split('.').all(|label| (1..=DNS_LABEL_MAX).contains(&label.len()))
}

/// Every form of an exit's name that fits into a certificate: with all its relays, with each of them, with none, and with
/// any that takes one label; each with the key in base32 and as npub.
#[must_use]
pub fn forms(name: &NostrName) -> Vec<String> {
    let npub = name.npub();
    let bare = NostrName::new(name.public_key, []).to_string();
    let with = |relays: &[RelayUrl]| {
        let full = NostrName::new(name.public_key, relays.iter().cloned()).to_string();
        let front = full.strip_suffix(&bare).unwrap_or_default().to_owned();
        [full, format!("{front}{npub}.nostr")]
    };
    let mut forms: Vec<String> = Vec::new();
    let single = name.relays.iter().take(RELAYS_MAX).map(std::slice::from_ref);
    let all = std::iter::once(&name.relays[..]).chain(std::iter::once(&[][..])).chain(single);
    let any = [format!("*.{bare}"), format!("*.{npub}.nostr"), npub.clone()];
    for form in all.flat_map(with).chain(any) {
        if fits(&form) && !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

/// A certificate, those that vouch for it if there are any, and its private key.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    facts: Facts,
    /// As it is kept in a file; none where the files are somebody else's.
    text: Option<String>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key never reaches a log.
        f.debug_struct("Certificate").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Makes one for an exit of this name, signed by itself.
    ///
    /// # Errors
    ///
    /// The library does not make it.
    pub fn make(name: &NostrName, now: SystemTime) -> Result<Self, TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(forms(name))?;
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LIFETIME).into();
        // 63 characters, of the 64 that it may have.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.npub());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let text = format!("{}{}", pem::write(&[params.self_signed(&key)?.der().clone()]), key.serialize_pem());
        Self::read("a certificate just made", &text)
    }

    /// Reads certificate and key from one text.
    ///
    /// # Errors
    ///
    /// Either is missing or cannot be read; the text is not repeated.
    pub fn read(what: &str, text: &str) -> Result<Self, TlsError> {
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes());
        let key = key.map_err(|error| TlsError::content(what, format!("there is no private key in it: {error}")))?;
        Ok(Self { text: Some(text.to_owned()), ..Self::of(what, text, key)? })
    }

    /// Reads an operator's own certificate, with those that vouch for it behind it, and its key.
    ///
    /// # Errors
    ///
    /// Either cannot be read, or they are not of each other.
    pub fn own(what: &str, chain: &str, what_key: &str, key: &[u8]) -> Result<Self, TlsError> {
        let key = PrivateKeyDer::from_pem_slice(key);
        let key =
            key.map_err(|error| TlsError::content(what_key, format!("there is no private key in it: {error}")))?;
        Self::of(what, chain, key)
    }

    fn of(what: &str, chain: &str, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        let chain = pem::read(chain, CHAIN_MAX).map_err(|why| TlsError::content(what, why))?;
        let facts = Facts::of(&chain[0]).map_err(|why| TlsError::content(what, why))?;
        let certificate = Self { chain, key, facts, text: None };
        certificate.certified().map_err(|error| TlsError::content(what, error.to_string()))?;
        Ok(certificate)
    }

    /// The certificate itself.
    #[must_use]
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// What it says of itself.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// As it is kept in a file, the key included.
    pub(super) fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// What a TLS server shows and signs with.
    ///
    /// # Errors
    ///
    /// The key is of a kind that cannot be used, or is that of another certificate.
    pub fn certified(&self) -> Result<Arc<CertifiedKey>, rustls::Error> {
        let certified = CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &super::provider())?;
        Ok(Arc::new(certified))
    }
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;
    use crate::name::parse_relay;

    fn name(relays: &[&str]) -> NostrName {
        NostrName::new(Keys::generate().public_key(), relays.iter().map(|url| parse_relay(url).unwrap()))
    }

    #[test]
    fn every_form_of_a_name_that_fits_is_in_the_certificate() {
        let long = format!("wss://relay.example/{}", "a".repeat(150));
        let name = name(&["wss://a.example", "ws://127.0.0.1:7777", &long]);
        let certificate = Certificate::make(&name, SystemTime::now()).unwrap();
        let facts = certificate.facts();
        let of = |relays: &[usize]| {
            let relays = relays.iter().map(|index| name.relays[*index].clone());
            NostrName::new(name.public_key, relays).to_string()
        };
        assert!(!fits(&of(&[0, 1, 2])), "too long, and left out");
        assert!(facts.names.iter().all(|name| fits(name)), "{facts:?}");
        for host in [of(&[]), of(&[0]), of(&[1]), of(&[0]).to_uppercase(), format!("{}.", of(&[1]))] {
            assert!(facts.covers(&host), "{host}: {facts:?}");
        }
        let other = NostrName::new(name.public_key, [parse_relay("wss://never.seen").unwrap()]);
        assert!(facts.covers(&other.to_string()), "another relay of one label");
        assert!(facts.covers(&format!("{}.nostr", name.npub())) && facts.covers(&name.npub()));
        let stranger = self::name(&["wss://a.example"]);
        assert!(!facts.covers(&stranger.to_string()) && !facts.covers("a.b.nostr"));
        let short = self::name(&["wss://a.example", "ws://b"]);
        assert!(forms(&short).contains(&short.to_string()));
    }

    #[test]
    fn a_certificate_is_valid_for_a_year_and_comes_back_from_its_text() {
        let now = SystemTime::now();
        let made = Certificate::make(&name(&["ws://a"]), now).unwrap();
        let facts = made.facts();
        assert!(facts.is_valid_at(seconds(now)) && facts.is_valid_at(seconds(now) + 364 * 86_400));
        assert!(!facts.is_valid_at(seconds(now) + 366 * 86_400) && !facts.is_valid_at(seconds(now) - 2 * 3_600));
        let read = Certificate::read("a file", made.text().unwrap()).unwrap();
        assert_eq!((read.leaf(), read.facts()), (made.leaf(), facts));
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let now = SystemTime::now();
        let (one, other) = (name(&[]), name(&[]));
        let [one, other] = [one, other].map(|name| Certificate::make(&name, now).unwrap());
        let (chain, key) = (one.text().unwrap(), other.text().unwrap());
        assert!(Certificate::own("c.pem", chain, "k.pem", chain.as_bytes()).is_ok());
        let error = Certificate::own("c.pem", chain, "k.pem", key.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("c.pem: ") && !error.contains("PRIVATE"), "{error}");
        assert!(Certificate::own("c.pem", chain, "k.pem", b"no key").unwrap_err().to_string().starts_with("k.pem: "));
    }

    proptest::proptest! {
        #[test]
        fn no_foreign_bytes_make_reading_panic(bytes: Vec<u8>, cut in 0..2000_usize, at in 0..2000_usize, put: u8) {
            let read = |bytes: &[u8]| {
                let _ = Facts::of(&CertificateDer::from(bytes.to_vec()));
                let _ = pem::read(&String::from_utf8_lossy(bytes), 4);
            };
            read(&bytes);
            // One that is almost right gets further.
            let golden: serde_json::Value =
                serde_json::from_str(include_str!("../../tests/vectors/go-one-get.json")).unwrap();
            let text = golden[5]["event"]["content"].as_str().unwrap();
            let mut der = pem::read(text, 1).unwrap()[0].to_vec();
            let at = at % der.len();
            der[at] = put;
            read(&der);
            der.truncate(cut);
            read(&der);
            read(&text.as_bytes()[..cut.min(text.len())]);
        }
    }

    #[test]
    fn the_expired_certificate_of_the_go_program_is_read() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/go-one-get.json")).unwrap();
        let text = golden[5]["event"]["content"].as_str().unwrap();
        let facts = Facts::of(&pem::read(text, 1).unwrap()[0]).unwrap();
        assert_eq!(facts.not_before, facts.not_after);
        assert_eq!(facts.names.len(), 1);
        assert!(facts.names[0].ends_with(".nostr"));
    }
}
