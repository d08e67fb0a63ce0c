//! TLS to an exit that must show one of the certificates it has published, and no other. Names and dates are not looked
//! at: the exit's own key has signed that it is this certificate, which says more, and the Go program's are expired from
//! the first second on.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::{Fingerprint, provider};

/// The certificates that may be shown, and what was shown instead.
pub struct Pinned {
    certificates: Vec<CertificateDer<'static>>,
    stranger: Mutex<Option<Fingerprint>>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("certificates", &self.fingerprints()).finish_non_exhaustive()
    }
}

impl Pinned {
    /// These and no others. Each connection has its own.
    #[must_use]
    pub fn to(certificates: Vec<CertificateDer<'static>>) -> Arc<Self> {
        Arc::new(Self { certificates, stranger: Mutex::default(), provider: provider() })
    }

    /// The fingerprints of those that may be shown.
    #[must_use]
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.certificates.iter().map(Fingerprint::of).collect()
    }

    /// The fingerprint of a certificate that was shown and is none of them.
    #[must_use]
    pub fn stranger(&self) -> Option<Fingerprint> {
        *self.stranger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How to connect, offering these protocols (ALPN).
    ///
    /// # Errors
    /// The library knows no TLS that it could speak.
    pub fn client(self: &Arc<Self>, alpn: Vec<Vec<u8>>) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        config.alpn_protocols = alpn;
        // A resumed session shows no certificate.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificates.iter().any(|certificate| certificate.as_ref() == end_entity.as_ref()) {
            return Ok(ServerCertVerified::assertion());
        }
        *self.stranger.lock().unwrap_or_else(PoisonError::into_inner) = Some(Fingerprint::of(end_entity));
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    // That it holds the key of the certificate is what a handshake's signature shows.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
