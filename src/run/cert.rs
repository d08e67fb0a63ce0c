//! `nws cert`: the certificates that an exit has published, as PEM; what there is to know of them goes to standard error.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64_simd::STANDARD as BASE64;
use nostr::RelayUrl;
use rustls::pki_types::CertificateDer;

use super::RunError;
use super::shutdown::Shutdown;
use crate::limits::Limits;
use crate::name::NostrName;
use crate::pinned::Fingerprint;
use crate::relay::{Links, Upstream};
use crate::tls::certificate::{Facts, fits, forms, seconds};
use crate::tls::{pem, search};

/// Looks for the newest certificates of an exit on these relays and prints them; `text` is its name as it was written.
///
/// # Errors
///
/// There are none, no relay could be asked, or nobody reads the answer.
pub async fn run(
    limits: Limits,
    upstream: Option<Arc<Upstream>>,
    text: &str,
    name: &NostrName,
    relays: &[RelayUrl],
    wait: Duration,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let limits = Arc::new(limits);
    let links = Links::through(Arc::clone(&limits), upstream);
    let links: Vec<_> = relays.iter().take(limits.relays_per_name).map(|relay| links.get(relay)).collect();
    let found = tokio::select! {
        found = search(&links, name.public_key, wait) => found,
        () = shutdown.requested() => return Ok(()),
    };
    let found = found.map_err(|error| RunError::Failed(error.to_string()))?;
    let mut stderr = io::stderr();
    for why in &found.disbelieved {
        let _ = writeln!(stderr, "nws: an event was not believed: {why}");
    }
    let Some(published) = found.certificates() else {
        let why = "its exit has published no TLS certificate on these relays (exit.tls)";
        return Err(RunError::Failed(format!("{why}; without one, what it offers is reached as http://")));
    };
    for (index, certificate) in published.certificates.iter().enumerate() {
        let _ = stderr.write_all(describe(certificate, index, text, name, SystemTime::now()).as_bytes());
    }
    let text = pem::write(&published.certificates);
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|source| RunError::System { what: "cannot write the answer", source })
}

/// What people should know of a certificate before they rely on it for this name.
fn describe(certificate: &CertificateDer<'_>, index: usize, text: &str, name: &NostrName, now: SystemTime) -> String {
    let place = if index == 0 { "in use" } else { "to be used later" };
    let mut out = format!("certificate {} ({place})\n  SHA-256 {}\n", index + 1, Fingerprint::of(certificate));
    let facts = match Facts::of(certificate) {
        Ok(facts) => facts,
        Err(why) => return format!("{out}  warning: {why}\n"),
    };
    let pin = BASE64.encode_to_string(facts.key_sha256);
    out.push_str(&format!("  valid {}\n  public key sha256//{pin}\n", facts.validity));
    if !facts.is_valid_at(seconds(now)) {
        out.push_str(
            "  warning: it is not valid today, so clients that look at dates refuse it, also as --cacert; what is\n",
        );
        out.push_str(&format!("  left is its public key: curl --insecure --pinnedpubkey 'sha256//{pin}'\n"));
    }
    let shortest = || forms(name).into_iter().filter(|form| facts.covers(form)).min_by_key(String::len);
    if !fits(text) {
        out.push_str(
            "  warning: the name is longer than TLS can carry (253 characters, 63 in a label), so no client can ask for it;\n",
        );
        out.push_str(&format!("  {}\n", way_out(shortest().as_deref(), name)));
    } else if !facts.covers(text) {
        let names = if facts.names.is_empty() { "no name".to_owned() } else { facts.names.join(", ") };
        out.push_str(&format!(
            "  warning: it is not for this name, so clients that compare names refuse it; it is for {names}\n"
        ));
    }
    out
}

/// What to use in the place of a name that is too long.
fn way_out(form: Option<&str>, name: &NostrName) -> String {
    match form {
        Some(form) if name.relays.is_empty() => format!("use {form}"),
        Some(form) => {
            let relays: Vec<_> = name.relays.iter().map(|relay| format!("--relay {relay}")).collect();
            format!("use {form} and tell the proxy its relays: nws proxy {}", relays.join(" "))
        }
        None => "use a form of the name with fewer relays".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;
    use crate::name::parse_relay;
    use crate::tls::Certificate;

    #[test]
    fn what_a_client_would_refuse_is_said_beforehand() {
        let now = SystemTime::now();
        let relay = parse_relay("wss://relay.example").unwrap();
        let name = NostrName::new(Keys::generate().public_key(), [relay]);
        let certificate = Certificate::make(&name, now).unwrap();
        let say = |text: &str, at| describe(certificate.leaf(), 0, text, &name, at);
        let fine = say(&name.to_string(), now);
        assert!(fine.contains(&Fingerprint::of(certificate.leaf()).to_string()) && !fine.contains("warning"), "{fine}");
        let late = say(&name.to_string(), now + Duration::from_secs(2 * 365 * 86_400));
        assert!(late.contains("not valid today") && late.contains("--pinnedpubkey"), "{late}");
        let long = format!("{}.{name}", "a".repeat(64));
        let long = say(&long, now);
        assert!(long.contains("longer than TLS can carry") && long.contains("--relay wss://relay.example"), "{long}");
        let other = NostrName::new(Keys::generate().public_key(), []);
        assert!(say(&other.to_string(), now).contains("not for this name"));
    }
}
