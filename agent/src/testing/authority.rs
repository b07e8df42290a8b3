//! A certificate authority for one test, and a key that grants are signed with.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use ferry_proto::channel::{CaCertificate, Credentials, Party, unix_now};
use ferry_proto::grant::GrantKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    certificate: CaCertificate,
    pub grants: Ed25519KeyPair,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        let certificate = CaCertificate::from_pem(&pem).unwrap();
        let grants = Ed25519KeyPair::generate().unwrap();
        Self { issuer: Issuer::new(params, key), pem, certificate, grants }
    }

    /// What agents check grants with.
    pub fn grant_key(&self) -> GrantKey {
        GrantKey::from_bytes(self.grants.public_key().as_ref()).unwrap()
    }

    /// Credentials of `party`, whose certificate began `began` seconds ago and lasts for `lasts`.
    pub fn credentials(&self, party: &Party, began: i64, lasts: i64) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let params = self.params(party, began, lasts);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Credentials::new(&key.serialize_pem(), &pem, &self.pem)
    }

    /// A certificate for the key of a request, valid for an hour.
    #[allow(dead_code)]
    pub fn certify(&self, party: &Party, csr_pem: &str) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        request.params = self.params(party, 60, 3660);
        request.signed_by(&self.issuer).unwrap().pem()
    }

    fn params(&self, party: &Party, began: i64, lasts: i64) -> CertificateParams {
        let time = |at| time::OffsetDateTime::from_unix_timestamp(at).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = time(unix_now() - began);
        params.not_after = time(unix_now() - began + lasts);
        params.subject_alt_names = vec![
            SanType::DnsName(party.dns_name().try_into().unwrap()),
            SanType::URI(party.uri(self.certificate.fingerprint()).try_into().unwrap()),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if matches!(party, Party::Agent(_)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params
    }
}
