//! The decision in a handshake: is the certificate that the other end shows Ferry's, valid, of
//! the party that was expected, and not revoked.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::certificate::{CaCertificate, Fingerprint, Leaf};
use super::connections::Connections;
use super::names::Party;
use super::{provider, refusal};
use crate::Fault;

fn roots(ca: &CaCertificate) -> Result<Arc<RootCertStore>, Fault> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).map_err(|e| {
        Fault::permanent("the authority's certificate cannot be used").caused_by(&e)
    })?;
    Ok(Arc::new(roots))
}

fn refuse(fault: Fault) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
}

/// Reads the names of a certificate that verified, and looks at the revocations.
fn accept(
    der: &CertificateDer<'_>,
    ca: &Fingerprint,
    connections: Option<&Connections>,
) -> Result<Party, Error> {
    let leaf = Leaf::parse(der, ca).map_err(refuse)?;
    if let (Some(connections), Party::Agent(name)) = (connections, &leaf.party)
        && connections.is_revoked(name, &leaf.serial)
    {
        return Err(Error::InvalidCertificate(CertificateError::Revoked));
    }
    Ok(leaf.party)
}

/// What a client checks: the server is exactly `expected`.
pub(crate) struct ServerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    ca: Fingerprint,
    expected: Party,
    connections: Option<Arc<Connections>>,
}

impl ServerVerifier {
    pub(crate) fn new(
        ca: &CaCertificate,
        expected: Party,
        connections: Option<Arc<Connections>>,
    ) -> Result<Self, Fault> {
        let inner = WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider())
            .build()
            .map_err(|e| Fault::bug("no verifier could be made").caused_by(&e))?;
        Ok(Self { inner, ca: *ca.fingerprint(), expected, connections })
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier")
            .field("ca", &self.ca)
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let party = accept(end_entity, &self.ca, self.connections.as_deref())?;
        if party != self.expected {
            return Err(refuse(Fault::permanent(format!(
                "the certificate is of {party}, not of {}",
                self.expected
            ))));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refusal::only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// What one who is about to enrol checks: the server is the controller under the authority whose
/// fingerprint stands in the token. The server sends that authority's certificate along.
pub(crate) struct PinnedVerifier {
    pub(crate) pin: Fingerprint,
}

impl fmt::Debug for PinnedVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PinnedVerifier").field(&self.pin).finish()
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The fingerprint makes it trustworthy; that it came from the server does not matter.
        let Some(ca) = intermediates.iter().find(|der| Fingerprint::of(der) == self.pin) else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let ca = CaCertificate::from_der(ca.clone().into_owned()).map_err(refuse)?;
        ServerVerifier::new(&ca, Party::Controller, None).map_err(refuse)?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refusal::only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a server checks: whoever shows a certificate is an agent that is not revoked.
pub(crate) struct AgentVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    ca: Fingerprint,
    connections: Arc<Connections>,
}

impl AgentVerifier {
    pub(crate) fn new(
        ca: &CaCertificate,
        connections: Arc<Connections>,
        certificate_mandatory: bool,
    ) -> Result<Self, Fault> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider());
        let builder = if certificate_mandatory { builder } else { builder.allow_unauthenticated() };
        let inner =
            builder.build().map_err(|e| Fault::bug("no verifier could be made").caused_by(&e))?;
        Ok(Self { inner, ca: *ca.fingerprint(), connections })
    }
}

impl fmt::Debug for AgentVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentVerifier").field("ca", &self.ca).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for AgentVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        match accept(end_entity, &self.ca, Some(&self.connections))? {
            Party::Agent(_) => Ok(verified),
            Party::Controller => Err(refuse(Fault::permanent(
                "the controller's certificate is not one to call with",
            ))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refusal::only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
