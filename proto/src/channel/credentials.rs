//! A party's own key and certificate: made, kept on disk, and held so that new ones take the
//! place of old ones while connections go on.
//!
//! The key is made on the host that uses it and never leaves it: only the request, signed by the
//! key, goes to the authority. On disk all is one file, `identity.pem` (key, certificate,
//! authority), so that no crash can leave a key beside another key's certificate.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::{Zeroize, Zeroizing};

use super::certificate::{CaCertificate, Leaf, check_signed_by};
use super::names::Party;
use super::token::Token;
use super::{files, provider};
use crate::Fault;
use crate::ids::ServerName;

/// The file of a party's credentials in its directory.
const IDENTITY_FILE: &str = "identity.pem";

/// The file of a key whose certificate has been asked for and not yet stored.
const PENDING_FILE: &str = "pending.key";

/// A key made here, and the request that asks the authority to certify it.
pub struct NewKey {
    /// The private key, PKCS#8 in PEM.
    pub key_pem: Zeroizing<String>,
    /// The request, in PEM.
    pub csr_pem: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("csr_pem", &self.csr_pem).finish_non_exhaustive()
    }
}

/// Makes a new P-256 key and a request for `server`'s agent.
///
/// # Errors
/// The system has no randomness.
pub fn new_key_and_csr(server: &ServerName) -> Result<NewKey, Fault> {
    let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|e| Fault::bug("no new key could be made").caused_by(&e))?;
    let request = request(&key, server);
    let key_pem = Zeroizing::new(key.serialize_pem());
    key.zeroize();
    Ok(NewKey { key_pem, csr_pem: request? })
}

/// Like [`new_key_and_csr`], but keeps the key in `dir` until [`Credentials::store`] there: asked
/// again after a crash or a lost answer, it is the same key, so that the authority can tell a
/// repetition from a second use of the token.
///
/// # Errors
/// The directory cannot be used.
pub fn pending_key_and_csr(dir: &Path, server: &ServerName) -> Result<NewKey, Fault> {
    files::create_directory(dir)?;
    files::check_directory(dir)?;
    let path = dir.join(PENDING_FILE);
    if path.try_exists().map_err(|e| Fault::io(format!("cannot look at {}", path.display()), &e))? {
        let key_pem = text_of(&files::read_private(&path)?, &path)?;
        let mut key = KeyPair::from_pem(&key_pem).map_err(|e| {
            Fault::precondition(format!("{} is not a private key", path.display()))
                .remedy("delete it and enrol again with a new token")
                .caused_by(&e)
        })?;
        let request = request(&key, server);
        key.zeroize();
        return Ok(NewKey { key_pem, csr_pem: request? });
    }
    let new = new_key_and_csr(server)?;
    files::write_private(&path, new.key_pem.as_bytes())?;
    Ok(new)
}

/// The authority ignores every name in a request; this one is for people who look at it.
fn request(key: &KeyPair, server: &ServerName) -> Result<String, Fault> {
    CertificateParams::new(vec![Party::Agent(server.clone()).dns_name()])
        .and_then(|params| params.serialize_request(key))
        .and_then(|request| request.pem())
        .map_err(|e| Fault::bug("no certificate request could be made").caused_by(&e))
}

/// Key, certificate and authority as text.
#[derive(Clone)]
pub struct Credentials {
    bundle: Zeroizing<String>,
}

impl Credentials {
    /// From the three PEM texts.
    pub fn new(key_pem: &str, certificate_pem: &str, ca_pem: &str) -> Self {
        let parts = [key_pem, certificate_pem, ca_pem].map(str::trim);
        // Room for everything at once: growing would leave copies of the key in freed memory.
        let len = parts.iter().map(|part| part.len() + 1).sum();
        let mut bundle = Zeroizing::new(String::with_capacity(len));
        for part in parts {
            bundle.push_str(part);
            bundle.push('\n');
        }
        Self { bundle }
    }

    /// From what enrolment brought, checked against the token: its authority, its server.
    ///
    /// # Errors
    /// The controller answered for another authority or another server, or with a certificate for
    /// another key.
    pub fn enrolled(
        key: &NewKey,
        certificate_pem: &str,
        ca_pem: &str,
        token: &Token,
    ) -> Result<Self, Fault> {
        let credentials = Self::new(&key.key_pem, certificate_pem, ca_pem);
        let parsed = credentials.parse()?;
        if parsed.ca.fingerprint() != &token.ca {
            return Err(Fault::permanent(
                "the controller answered with another authority than the token's",
            )
            .remedy("make a new token on the controller and enrol again"));
        }
        let party = &parsed.current.leaf.party;
        if party.server() != Some(&token.server) {
            return Err(Fault::permanent(format!(
                "the token is for server {}, but the certificate for {party}",
                token.server
            ))
            .remedy("make a new token on the controller and enrol again"));
        }
        Ok(credentials)
    }

    /// Reads what [`Self::store`] wrote.
    ///
    /// # Errors
    /// There is none, or others could read it.
    pub fn load(dir: &Path) -> Result<Self, Fault> {
        let path = dir.join(IDENTITY_FILE);
        let contents = files::read_private(&path).map_err(|fault| {
            let remedy = "enrol this server: ferry server add NAME on the controller, then \
                          ferry-agent enroll here";
            if fault.remedy.is_empty() { fault.remedy(remedy) } else { fault }
        })?;
        Ok(Self { bundle: text_of(&contents, &path)? })
    }

    /// Writes them into `dir` (made if it is missing), in one piece and durably, and forgets the
    /// pending key. May be repeated.
    ///
    /// # Errors
    /// They do not fit together, or the directory cannot be written.
    pub fn store(&self, dir: &Path) -> Result<(), Fault> {
        self.parse()?;
        files::create_directory(dir)?;
        files::check_directory(dir)?;
        files::write_private(&dir.join(IDENTITY_FILE), self.bundle.as_bytes())?;
        files::remove(&dir.join(PENDING_FILE))
    }

    fn parse(&self) -> Result<Parsed, Fault> {
        let broken = |what: &str| {
            Fault::precondition(format!("this server's credentials hold {what}"))
                .remedy("enrol the server again")
        };
        let bytes = self.bundle.as_bytes();
        let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|_| broken("no private key"))?;
        let certificates = CertificateDer::pem_slice_iter(bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| broken("a certificate that cannot be read"))?;
        let Ok([leaf, ca]) = <[CertificateDer<'static>; 2]>::try_from(certificates) else {
            return Err(broken("not exactly a certificate and its authority's"));
        };
        let ca = CaCertificate::from_der(ca)?;
        check_signed_by(&leaf, &ca)?;
        let facts = Leaf::parse(&leaf, ca.fingerprint())?;
        let key = provider()
            .key_provider
            .load_private_key(key)
            .map_err(|e| broken("a private key that cannot be used").caused_by(&e))?;
        // The authority's certificate travels along: who enrols knows only its fingerprint.
        let certified = CertifiedKey::new(vec![leaf, ca.der().clone()], key);
        certified
            .keys_match()
            .map_err(|e| broken("a certificate for another key").caused_by(&e))?;
        Ok(Parsed {
            ca,
            current: Current { certified: Arc::new(certified), leaf: Arc::new(facts) },
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

struct Parsed {
    ca: CaCertificate,
    current: Current,
}

struct Current {
    certified: Arc<CertifiedKey>,
    leaf: Arc<Leaf>,
}

/// A party's identity in use. All handshakes, of servers and clients made from it, show the
/// certificate that is current when they happen; established connections keep theirs.
pub struct Identity {
    party: Party,
    ca: CaCertificate,
    current: ArcSwap<Current>,
}

impl Identity {
    /// From credentials that fit together. An expired certificate is accepted: a party without a
    /// valid one still has promises to keep, and says at each handshake what is wrong.
    ///
    /// # Errors
    /// The key, the certificate and the authority do not fit together.
    pub fn new(credentials: &Credentials) -> Result<Arc<Self>, Fault> {
        let Parsed { ca, current } = credentials.parse()?;
        let party = current.leaf.party.clone();
        Ok(Arc::new(Self { party, ca, current: ArcSwap::from_pointee(current) }))
    }

    /// From the credentials stored in `dir`.
    ///
    /// # Errors
    /// There are none, others could read them, or they do not fit together.
    pub fn load(dir: &Path) -> Result<Arc<Self>, Fault> {
        Self::new(&Credentials::load(dir)?)
    }

    /// Takes new credentials of the same party under the same authority. No connection is lost.
    ///
    /// # Errors
    /// They are another party's, another authority's, or do not fit together; nothing changed.
    pub fn replace(&self, credentials: &Credentials) -> Result<(), Fault> {
        self.current.store(Arc::new(self.check(credentials)?));
        Ok(())
    }

    /// Takes a renewed certificate for a new key: checks it, stores both in `dir`, and then uses
    /// them. Blocks.
    ///
    /// # Errors
    /// As for [`Self::replace`] and [`Credentials::store`]; the old ones stay in use.
    pub fn renew(&self, dir: &Path, key: &NewKey, certificate_pem: &str) -> Result<(), Fault> {
        let credentials = Credentials::new(&key.key_pem, certificate_pem, &self.ca.to_pem());
        let current = self.check(&credentials)?;
        credentials.store(dir)?;
        self.current.store(Arc::new(current));
        Ok(())
    }

    /// Whether credentials are this party's under this authority.
    fn check(&self, credentials: &Credentials) -> Result<Current, Fault> {
        let Parsed { ca, current } = credentials.parse()?;
        if ca.fingerprint() != self.ca.fingerprint() {
            return Err(Fault::permanent(format!(
                "the new certificate is from authority {}, ours is {}",
                ca.fingerprint().short(),
                self.ca.fingerprint().short()
            ))
            .remedy("to change controllers, enrol the server again"));
        }
        if current.leaf.party != self.party {
            return Err(Fault::permanent(format!(
                "the new certificate is for {}, but this is {}",
                current.leaf.party, self.party
            )));
        }
        Ok(current)
    }

    /// Whose identity it is.
    pub fn party(&self) -> &Party {
        &self.party
    }

    /// The authority that both ends answer to.
    pub fn ca(&self) -> &CaCertificate {
        &self.ca
    }

    /// What the current certificate says.
    pub fn leaf(&self) -> Arc<Leaf> {
        Arc::clone(&self.current.load().leaf)
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.load().certified)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("party", &self.party)
            .field("ca", &self.ca)
            .field("leaf", &self.leaf())
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn text_of(contents: &[u8], path: &Path) -> Result<Zeroizing<String>, Fault> {
    match std::str::from_utf8(contents) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(Fault::precondition(format!("{} is not PEM text", path.display()))
            .remedy("enrol the server again")),
    }
}
