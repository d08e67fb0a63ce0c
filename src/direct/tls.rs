//! TLS 1.3 between two that have met over the relays: the certificate is made for one connection and known by its
//! fingerprint, which came encrypted. Names, dates and authorities mean nothing here.

use std::sync::{Arc, OnceLock};

use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{NoServerSessionStorage, ResolvesServerCertUsingSni};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, ClientConfig, ServerConfig, version};

use crate::error::{Error, ErrorKind};
use crate::message::SECRET_LEN;
use crate::pinned::{Fingerprint, Pinned};

/// The server's half of one connection.
pub(super) struct Identity {
    pub(super) config: Arc<ServerConfig>,
    pub(super) fingerprint: [u8; SECRET_LEN],
}

/// What TLS is made of: the cipher first that this machine does in hardware.
fn crypto() -> Arc<CryptoProvider> {
    static CRYPTO: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let mut crypto = provider::default_provider();
        crypto.cipher_suites.sort_by_key(|suite| match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => usize::from(!has_aes()),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => usize::from(has_aes()),
            _ => 2,
        });
        Arc::new(crypto)
    };
    Arc::clone(CRYPTO.get_or_init(make))
}

/// Whether AES is done in hardware here; without, ChaCha20 is several times faster.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Internal, format!("TLS cannot be set up: {error}"))
}

/// Makes a key and a certificate for one connection; some 100 µs.
pub(super) fn one_time() -> Result<Identity, Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|error| failed(&error))?;
    let certificate = rcgen::CertificateParams::default().self_signed(&key).map_err(|error| failed(&error))?;
    let certificate = certificate.der().clone();
    let Fingerprint(fingerprint) = Fingerprint::of(&certificate);
    let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(key.serialize_der())).map_err(|error| failed(&error))?;
    let mut config = server()?;
    config.cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key)));
    Ok(Identity { config: Arc::new(config), fingerprint })
}

/// What all servers have in common; copied, since making it anew takes longer than all the rest.
fn server() -> Result<ServerConfig, Error> {
    static SERVER: OnceLock<ServerConfig> = OnceLock::new();
    if let Some(server) = SERVER.get() {
        return Ok(server.clone());
    }
    let mut config = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| failed(&error))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
    // Nobody comes a second time.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(SERVER.get_or_init(|| config).clone())
}

/// The client's half, which accepts one certificate.
pub(super) fn pinned(fingerprint: [u8; SECRET_LEN]) -> Result<Arc<ClientConfig>, Error> {
    let pinned = Pinned::to(vec![Fingerprint(fingerprint)], crypto());
    Ok(Arc::new(pinned.client(&[&version::TLS13]).map_err(|error| failed(&error))?))
}
