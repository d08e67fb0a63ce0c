//! The authority of this machine: a root certificate that a browser may be told to trust, for names that end in `.nostr`
//! and for no others, and the certificates that a proxy makes with it. Its key stays in a file of its owner.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::certificate::{BACKDATED, Facts, fits, seconds};
use super::{TlsError, pem, provider};
use crate::pinned::Fingerprint;
use crate::private_file::{self, PrivateFileError};

/// The file of the root certificate, for everybody to read.
pub const ROOT_FILE: &str = "nws-root.pem";

/// The file of its key, for its owner alone.
pub const KEY_FILE: &str = "nws-root.key";

/// What all names end in that the root may vouch for (RFC 5280 section 4.2.1.10: the name itself and all below it).
const SUFFIX: &str = "nostr";

/// How long the root is valid: whoever installed it does not want to do so every year.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a certificate for a name is valid, and after half of it another is made.
const LEAF_LIFETIME: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Names whose certificates are kept at most; making one takes a fraction of a millisecond.
const LEAVES_MAX: usize = 1024;

/// Most bytes that are read of a file.
const FILE_MAX: u64 = 64 * 1024;

/// See the module.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    not_after: i64,
    /// One key for all names: they are all of this process.
    leaf_key: KeyPair,
    leaves: Mutex<HashMap<String, Leaf>>,
}

/// A certificate for a name.
struct Leaf {
    certified: Arc<CertifiedKey>,
    made: SystemTime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key never reaches a log.
        f.debug_struct("Authority").field("root", &self.fingerprint()).finish_non_exhaustive()
    }
}

/// The path of the root certificate in a directory.
#[must_use]
pub fn root_path(directory: &Path) -> PathBuf {
    directory.join(ROOT_FILE)
}

/// The name of the root certificate, under which certificate stores list it.
///
/// # Errors
///
/// It is no certificate.
pub fn title(root: &CertificateDer<'_>) -> Result<String, String> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) =
        X509Certificate::from_der(root).map_err(|error| format!("it is no X.509 certificate: {error}"))?;
    let mut names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    names.next().map(str::to_owned).ok_or_else(|| "it has no name".to_owned())
}

/// Reads the root certificate alone, which is no secret.
///
/// # Errors
///
/// There is none, or something else in its place.
pub fn read_root(directory: &Path) -> Result<CertificateDer<'static>, TlsError> {
    let path = root_path(directory);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = "there is no local authority; make one with `nws trust init`";
            return Err(TlsError::content(path.display().to_string(), why));
        }
        Err(source) => return Err(PrivateFileError::Io { path, source }.into()),
    };
    let found = pem::read(&text, 1).map_err(|why| TlsError::content(path.display().to_string(), why))?;
    found.into_iter().next().ok_or_else(|| TlsError::content(path.display().to_string(), "it is empty"))
}

impl Authority {
    /// Makes an authority and keeps it in a directory, which is made for its owner alone.
    ///
    /// # Errors
    ///
    /// There is one already, or the files cannot be written.
    pub fn init(directory: &Path, now: SystemTime) -> Result<Self, TlsError> {
        let (path, key_path) = (root_path(directory), directory.join(KEY_FILE));
        for path in [&path, &key_path] {
            if path.exists() {
                let why = "there is a local authority already; to have a new one, remove the old one from the stores \
                           with `nws trust remove`, then delete its directory";
                return Err(TlsError::content(path.display().to_string(), why));
            }
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let root = root_params(now).self_signed(&key)?.der().clone();
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| PrivateFileError::Io { path, source }
        };
        private_file::create(&key_path, key.serialize_pem().as_bytes()).map_err(failed(&key_path))?;
        fs::write(&path, pem::write(std::slice::from_ref(&root))).map_err(failed(&path))?;
        Self::new(root, key)
    }

    /// Reads the authority of a directory.
    ///
    /// # Errors
    ///
    /// There is none, others can get at its key, or it is no authority for `.nostr` alone.
    pub fn load(directory: &Path) -> Result<Self, TlsError> {
        let root = read_root(directory)?;
        let key_path = directory.join(KEY_FILE);
        let text = private_file::read(&key_path, FILE_MAX)?;
        let key = std::str::from_utf8(&text).ok().and_then(|text| KeyPair::from_pem(text).ok());
        let wrong = |why: &str| TlsError::content(key_path.display().to_string(), why);
        let key = key.ok_or_else(|| wrong("there is no private key in it"))?;
        let path = root_path(directory).display().to_string();
        let certified = CertifiedKey::from_der(vec![root.clone()], private_key(&key), &provider());
        certified.map_err(|error| TlsError::content(path, error.to_string()))?;
        Self::new(root, key)
    }

    fn new(root: CertificateDer<'static>, key: KeyPair) -> Result<Self, TlsError> {
        let facts = Facts::of(&root).map_err(|why| TlsError::content("the root certificate", why))?;
        let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issuer = Issuer::from_ca_cert_der(&root, key)?;
        Ok(Self { issuer, not_after: facts.not_after, root, leaf_key, leaves: Mutex::default() })
    }

    /// The root certificate.
    #[must_use]
    pub const fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The fingerprint of the root certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.root)
    }

    /// Whether a host can have a certificate of this authority: it ends in `.nostr`, and a certificate can hold it.
    #[must_use]
    pub fn serves(host: &str) -> bool {
        let below =
            host.to_ascii_lowercase().strip_suffix(SUFFIX).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
        below && fits(host) && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    }

    /// A certificate for a host that is [served](Self::serves).
    ///
    /// # Errors
    ///
    /// It cannot be made, or the root is no longer valid.
    pub fn leaf(&self, host: &str, now: SystemTime) -> Result<Arc<CertifiedKey>, TlsError> {
        let host = host.to_ascii_lowercase();
        if !Self::serves(&host) {
            return Err(TlsError::content(host, "the local authority is for names that end in .nostr"));
        }
        if seconds(now) >= self.not_after {
            let why = "the root certificate has expired; make another one with `nws trust remove` and `nws trust init`";
            return Err(TlsError::content("the local authority", why));
        }
        let is_fresh = |leaf: &Leaf| now.duration_since(leaf.made).is_ok_and(|age| age < LEAF_LIFETIME / 2);
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get(&host).filter(|leaf| is_fresh(leaf)) {
            return Ok(Arc::clone(&leaf.certified));
        }
        if leaves.len() >= LEAVES_MAX {
            leaves.retain(|_, leaf| is_fresh(leaf));
        }
        if leaves.len() >= LEAVES_MAX {
            leaves.clear();
        }
        let certified = Arc::new(self.make(&host, now)?);
        leaves.insert(host, Leaf { certified: Arc::clone(&certified), made: now });
        Ok(certified)
    }

    fn make(&self, host: &str, now: SystemTime) -> Result<CertifiedKey, TlsError> {
        let mut params = CertificateParams::new([host.to_owned()])?;
        let left = Duration::from_secs(u64::try_from(self.not_after - seconds(now)).unwrap_or(0));
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LEAF_LIFETIME.min(left)).into();
        params.distinguished_name = DistinguishedName::new();
        // A name may be longer than the 64 characters of a common name.
        params.distinguished_name.push(DnType::CommonName, "a .nostr name on this machine");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&self.leaf_key, &self.issuer)?.der().clone();
        Ok(CertifiedKey::from_der(vec![leaf], private_key(&self.leaf_key), &provider())?)
    }
}

fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(key.serialize_der().into())
}

/// What the root says of itself: a server of any `.nostr` name, no other name, no address, and no authority below it.
fn root_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.distinguished_name = DistinguishedName::new();
    // Stores list it by this name, so it should tell one machine's from another's.
    let number = uuid::Uuid::new_v4().simple().to_string();
    params.distinguished_name.push(DnType::CommonName, format!("nws local authority {}", &number[..8]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(SUFFIX.to_owned())],
        // A kind of name without a constraint would be free.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    params
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    fn authority() -> (tempfile::TempDir, Authority) {
        let home = tempfile::tempdir().unwrap();
        let made = Authority::init(&home.path().join("trust"), SystemTime::now()).unwrap();
        (home, made)
    }

    /// Whether a client that trusts the root and nothing else takes a certificate for a host.
    fn is_taken(root: &CertificateDer<'static>, leaf: &CertificateDer<'static>, host: &str) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let outcome = verifier.verify_server_cert(leaf, &[], &host, &[], UnixTime::now());
        outcome.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_authority_is_kept_with_its_key_for_its_owner_alone() {
        let (home, made) = authority();
        let directory = home.path().join("trust");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join(KEY_FILE))), (0o700, 0o600));
        assert_eq!(Authority::load(&directory).unwrap().fingerprint(), made.fingerprint());
        assert!(!fs::read_to_string(root_path(&directory)).unwrap().contains("PRIVATE"));
        assert!(!format!("{made:?}").contains("PRIVATE"));
        let again = Authority::init(&directory, SystemTime::now()).unwrap_err().to_string();
        assert!(again.contains("nws trust remove"), "{again}");
        fs::set_permissions(directory.join(KEY_FILE), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Authority::load(&directory).unwrap_err().to_string().contains("chmod 600"));
        let none = Authority::load(home.path()).unwrap_err().to_string();
        assert!(none.contains("nws trust init"), "{none}");
    }

    #[test]
    fn the_root_is_for_servers_of_nostr_names_and_nothing_else() {
        let (_home, made) = authority();
        let (_, root) = X509Certificate::from_der(made.root()).unwrap();
        let basic = root.basic_constraints().unwrap().unwrap();
        assert!(basic.critical && basic.value.ca && basic.value.path_len_constraint == Some(0));
        let names = root.name_constraints().unwrap().unwrap();
        assert!(names.critical);
        assert_eq!(names.value.permitted_subtrees.as_ref().unwrap().len(), 1);
        assert_eq!(names.value.excluded_subtrees.as_ref().unwrap().len(), 2);
        assert!(title(made.root()).unwrap().starts_with("nws local authority "));
    }

    #[test]
    fn a_client_that_trusts_the_root_takes_its_certificates_for_nostr_names_alone() {
        let (_home, made) = authority();
        let now = SystemTime::now();
        let host = "label.3vfr9ad1b5k3hfpmnatqh3kmnhsqfcuq9gl6dq7i7l5cqqmu5lb0.nostr";
        let leaf = |host: &str| made.leaf(host, now).unwrap().cert[0].clone();
        is_taken(made.root(), &leaf(host), host).unwrap();
        assert!(is_taken(made.root(), &leaf(host), "other.nostr").is_err());
        // Even if somebody got hold of its key.
        for other in ["bank.example", "nostr.example", "127.0.0.1", "::1", "notnostr"] {
            assert!(!Authority::serves(other) && made.leaf(other, now).is_err(), "{other}");
            let stolen = made.make(other, now).unwrap();
            let error = is_taken(made.root(), &stolen.cert[0], other).unwrap_err();
            assert!(error.contains("NameConstraint") || error.contains("name constraint"), "{other}: {error}");
        }
    }

    #[test]
    fn certificates_are_made_once_for_a_while_and_their_number_is_bounded() {
        let (_home, made) = authority();
        let now = SystemTime::now();
        let leaf = |host: &str, at: SystemTime| made.leaf(host, at).unwrap().cert[0].clone();
        let first = leaf("a.nostr", now);
        assert_eq!(leaf("A.nostr", now + LEAF_LIFETIME / 3), first);
        assert_ne!(leaf("a.nostr", now + LEAF_LIFETIME), first);
        for number in 0..LEAVES_MAX + 10 {
            leaf(&format!("x{number}.nostr"), now);
        }
        assert!(made.leaves.lock().unwrap().len() <= LEAVES_MAX);
        let end = now + ROOT_LIFETIME - Duration::from_secs(60);
        assert_eq!(Facts::of(&leaf("a.nostr", end)).unwrap().not_after, made.not_after);
        assert!(made.leaf("a.nostr", now + ROOT_LIFETIME).unwrap_err().to_string().contains("expired"));
        for host in [&"a".repeat(64), ".nostr", "nostr", "a..nostr", "a b.nostr", "npub1x"] {
            assert!(!Authority::serves(&format!("{host}{}", if host.len() == 64 { ".nostr" } else { "" })), "{host}");
        }
    }
}
