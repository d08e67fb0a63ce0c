//! Certificates as text (RFC 7468). Keys are written by the library that makes them.

use std::fmt::Write;

use base64_simd::STANDARD as BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Characters of a line (RFC 7468 section 2).
const LINE: usize = 64;

/// Certificates one after the other, each with its marks.
#[must_use]
pub fn write(certificates: &[CertificateDer<'_>]) -> String {
    let mut out = String::new();
    for certificate in certificates {
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = BASE64.encode_to_string(certificate.as_ref());
        for line in text.as_bytes().chunks(LINE) {
            let _ = writeln!(out, "{}", String::from_utf8_lossy(line));
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out
}

/// All certificates of a text, `max` at most; whatever else stands in it is passed over.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn read(text: &str, max: usize) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).take(max).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| format!("no PEM: {error}"))?;
    if found.is_empty() {
        Err("there is no certificate in it (-----BEGIN CERTIFICATE-----)".to_owned())
    } else {
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_rest_is_passed_over() {
        let certificates = [vec![1; 100], vec![2; 48], vec![3; 1]].map(CertificateDer::from);
        let text = format!("words\n{}more words\n", write(&certificates));
        assert!(text.lines().all(|line| line.len() <= LINE));
        assert_eq!(read(&text, 9).unwrap(), certificates);
        assert_eq!(read(&text, 2).unwrap(), certificates[..2]);
        assert!(read("words", 9).unwrap_err().contains("no certificate"));
        assert!(read("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", 9).is_err());
    }
}
