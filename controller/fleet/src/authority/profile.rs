//! What stands in the certificates: names, uses, validity. Nothing of a request is copied into
//! one but the public key.

use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::channel::{CaCertificate, Fingerprint, Leaf, Party, unix_now};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKey, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm,
};
use time::OffsetDateTime;
use zeroize::{Zeroize, Zeroizing};

use super::IssuedCertificate;

/// No certificate request of ours is longer.
const MAX_REQUEST: usize = 16 * 1024;

/// An uncompressed point of P-256.
const P256_POINT_LEN: usize = 65;

/// Certificates begin a little in the past, for servers whose clocks are behind.
const BACKDATE: i64 = 10 * 60;

/// The authority lives ten years. Its keys are in files on one machine; whoever outlives it
/// enrols anew.
const AUTHORITY_LIFETIME: i64 = 3652 * 24 * 60 * 60;

/// A certificate's time, in Unix seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Validity {
    /// From now for `lifetime`, cut where the authority ends.
    pub(super) fn from_now(lifetime: Duration, authority_ends: i64) -> Result<Self, Fault> {
        let now = unix_now();
        if now >= authority_ends {
            return Err(Fault::permanent("the certificate authority itself has expired")
                .remedy("set up a new authority and enrol every server again"));
        }
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        Self::of(now - BACKDATE, now.saturating_add(lifetime).min(authority_ends))
    }

    fn of(not_before: i64, not_after: i64) -> Result<Self, Fault> {
        let time = |seconds| {
            OffsetDateTime::from_unix_timestamp(seconds)
                .map_err(|e| Fault::precondition("this server's clock is wrong").caused_by(&e))
        };
        Ok(Self { not_before: time(not_before)?, not_after: time(not_after)? })
    }
}

/// A new key that is wiped when dropped.
pub(super) struct NewKey(KeyPair);

impl NewKey {
    /// ECDSA on P-256, for certificates.
    pub(super) fn p256() -> Result<Self, Fault> {
        Self::of(&PKCS_ECDSA_P256_SHA256)
    }

    /// Ed25519, for grants.
    pub(super) fn ed25519() -> Result<Self, Fault> {
        Self::of(&PKCS_ED25519)
    }

    fn of(algorithm: &'static SignatureAlgorithm) -> Result<Self, Fault> {
        KeyPair::generate_for(algorithm)
            .map(Self)
            .map_err(|e| Fault::bug("no new key could be made").caused_by(&e))
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
    }

    /// PKCS#8 in PEM.
    pub(super) fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
}

impl Drop for NewKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The authority's own certificate, in PEM.
pub(super) fn self_signed(key: &KeyPair) -> Result<String, Fault> {
    let now = unix_now();
    let validity = Validity::of(now - BACKDATE, now + AUTHORITY_LIFETIME)?;
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Ferry certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .self_signed(key)
        .map(|certificate| certificate.pem())
        .map_err(|e| Fault::bug("the authority's certificate could not be made").caused_by(&e))
}

/// Checks that the authority's key belongs to its certificate; returns when it ends.
pub(super) fn check_authority(ca: &CaCertificate, key: &KeyPair) -> Result<i64, Fault> {
    let (public_key, not_after) = ca.public_key_and_end()?;
    if public_key != key.subject_public_key_info() {
        return Err(Fault::precondition("ca.key is not the key of ca.pem")
            .remedy("put both back from the same backup"));
    }
    Ok(not_after)
}

/// The public key of a request whose signature proves that the requester holds the private one.
pub(super) fn requested_key(csr_pem: &str) -> Result<PublicKey, Fault> {
    if csr_pem.len() > MAX_REQUEST {
        return Err(Fault::permanent(format!(
            "a certificate request is longer than {MAX_REQUEST} bytes"
        )));
    }
    let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| {
        Fault::permanent("that is not a certificate request signed by its key").caused_by(&e)
    })?;
    let key = request.public_key;
    // The algorithm alone is taken from the signature; the key itself tells the curve.
    let p256 = PublicKeyData::algorithm(&key) == &PKCS_ECDSA_P256_SHA256
        && key.der_bytes().len() == P256_POINT_LEN;
    if !p256 {
        return Err(Fault::permanent("a certificate request has a key other than ECDSA P-256"));
    }
    Ok(key)
}

/// The SHA-256 of a public key with its algorithm.
pub(super) fn key_fingerprint(key: &impl PublicKeyData) -> Fingerprint {
    Fingerprint::of(&key.subject_public_key_info())
}

/// Issues a certificate for `party`.
pub(super) fn issue(
    issuer: &Issuer<'static, KeyPair>,
    ca: &CaCertificate,
    party: &Party,
    key: &impl PublicKeyData,
    validity: Validity,
) -> Result<IssuedCertificate, Fault> {
    let bug = |e: rcgen::Error| {
        Fault::bug(format!("no certificate could be made for {party}")).caused_by(&e)
    };
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![
        SanType::DnsName(party.dns_name().try_into().map_err(bug)?),
        SanType::URI(party.uri(ca.fingerprint()).try_into().map_err(bug)?),
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match party {
        // The controller calls nobody.
        Party::Controller => vec![ExtendedKeyUsagePurpose::ServerAuth],
        // Agents call the controller and each other.
        Party::Agent(_) => {
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
        }
    };
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(key, issuer).map_err(bug)?;
    let leaf = Leaf::parse(certificate.der(), ca.fingerprint())?;
    Ok(IssuedCertificate {
        pem: certificate.pem(),
        serial: leaf.serial,
        fingerprint: leaf.fingerprint,
        public_key: key_fingerprint(key),
        not_before: leaf.not_before,
        not_after: leaf.not_after,
    })
}

/// 127 random bits: positive, and never with a leading zero byte.
fn serial() -> Result<SerialNumber, Fault> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|e| Fault::bug("the system has no randomness").caused_by(&e))?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
