//! The certificate authority: who may call themselves what. It owns the authority's key and the
//! key that grants are signed with, issues the agents' certificates and the controller's own, and
//! makes enrolment tokens.
//!
//! It must not know who is enrolled, what is revoked or which tokens are used: the store does,
//! and whoever calls [`Authority::issue_agent`] has asked it first.

mod directory;
mod profile;
mod token;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use ferry_proto::Fault;
use ferry_proto::channel::{
    CaCertificate, Credentials, Fingerprint, Identity, Party, Serial, unix_now,
};
use ferry_proto::grant::{Grant, GrantKey, SignedGrant};
use ferry_proto::ids::ServerName;
use rcgen::{Issuer, KeyPair};
use tokio_util::sync::CancellationToken;

pub use token::token_hash;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an agent's certificate is valid unless configured; it is renewed from day 30.
pub const AGENT_LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// How long the controller's own certificate is valid; it renews it itself from day 30.
const CONTROLLER_LIFETIME: Duration = AGENT_LIFETIME;

/// The longest lifetime that may be configured: what is stolen must end some day.
const MAX_LIFETIME: Duration = Duration::from_secs(398 * 24 * 60 * 60);

/// How often the controller looks whether its own certificate is due. Not one long sleep: the
/// clock may be set.
const RENEWAL_CHECK: Duration = Duration::from_secs(60 * 60);

/// A certificate that the authority issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// The certificate, in PEM.
    pub pem: String,
    /// Its serial number, by which it can be revoked.
    pub serial: Serial,
    /// The SHA-256 of its DER.
    pub fingerprint: Fingerprint,
    /// The SHA-256 of its public key: the same key asking again is a repetition, not a second use
    /// of a token.
    pub public_key: Fingerprint,
    /// Valid from, in Unix seconds.
    pub not_before: i64,
    /// Valid until, in Unix seconds.
    pub not_after: i64,
}

/// The certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca: CaCertificate,
    ca_pem: String,
    ca_not_after: i64,
    grant_key: Ed25519KeyPair,
    controller: Arc<Identity>,
}

impl Authority {
    /// Opens the authority in `dir`, and makes it there at the first start. Blocks: call it before
    /// serving, or in `spawn_blocking`.
    ///
    /// # Errors
    /// The keys can be read by others, some of the files are missing, or they do not fit together.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        let files = directory::open_or_make(dir)?;
        let context = |fault: Fault| {
            fault.context(format!("the certificate authority in {} cannot be used", dir.display()))
        };
        let ca = CaCertificate::from_pem(&files.ca_pem).map_err(context)?;
        let ca_not_after = profile::check_authority(&ca, &files.ca_key).map_err(context)?;
        let issuer = Issuer::from_ca_cert_der(ca.der(), files.ca_key)
            .map_err(|e| context(Fault::precondition("ca.pem cannot be read").caused_by(&e)))?;
        let controller = controller_credentials(&issuer, &ca, &files.ca_pem, ca_not_after)?;
        let controller = Identity::new(&controller)?;
        Ok(Self {
            issuer,
            ca,
            ca_pem: files.ca_pem,
            ca_not_after,
            grant_key: files.grant_key,
            controller,
        })
    }

    /// The SHA-256 of the authority's certificate.
    pub fn fingerprint(&self) -> &Fingerprint {
        self.ca.fingerprint()
    }

    /// The authority's certificate.
    pub fn ca(&self) -> &CaCertificate {
        &self.ca
    }

    /// The authority's certificate, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The controller's own identity, for its listener.
    pub fn controller_identity(&self) -> Arc<Identity> {
        Arc::clone(&self.controller)
    }

    /// Issues a certificate for the agent of `server`, valid for `lifetime` from now (but no
    /// longer than the authority itself). Of the request only the public key is used, after its
    /// signature has shown that the requester holds the private one.
    ///
    /// # Errors
    /// The request is not one, or the lifetime is out of range.
    pub fn issue_agent(
        &self,
        csr_pem: &str,
        server: &ServerName,
        lifetime: Duration,
    ) -> Result<IssuedCertificate, Fault> {
        if lifetime > MAX_LIFETIME {
            return Err(Fault::precondition(format!(
                "certificates may be valid for at most {} days",
                MAX_LIFETIME.as_secs() / DAY.as_secs()
            ))
            .remedy("configure a shorter lifetime"));
        }
        let key = profile::requested_key(csr_pem).map_err(|fault| {
            fault.context(format!("the certificate request of {server} was refused"))
        })?;
        profile::issue(
            &self.issuer,
            &self.ca,
            &Party::Agent(server.clone()),
            &key,
            profile::Validity::from_now(lifetime, self.ca_not_after)?,
        )
    }

    /// Signs a grant.
    ///
    /// # Errors
    /// It is not a sensible grant.
    pub fn sign_grant(&self, grant: &Grant) -> Result<SignedGrant, Fault> {
        grant.sign(&self.grant_key)
    }

    /// The public half of the grant key, which agents pin when they enrol.
    pub fn grant_public_key(&self) -> GrantKey {
        // An Ed25519 public key has 32 bytes, always.
        GrantKey::from_bytes(self.grant_key.public_key().as_ref())
            .expect("an Ed25519 public key has 32 bytes")
    }

    /// Gives the controller a new certificate if its own is due; connections go on. Returns
    /// whether it did.
    fn renew_controller_at(&self, now: i64) -> Result<bool, Fault> {
        if !self.controller.leaf().renewal_due(now) {
            return Ok(false);
        }
        let new = controller_credentials(&self.issuer, &self.ca, &self.ca_pem, self.ca_not_after)?;
        self.controller.replace(&new)?;
        Ok(true)
    }

    /// Keeps the controller's own certificate fresh until stopped.
    pub async fn keep_controller_fresh(&self, stop: CancellationToken) {
        loop {
            match self.renew_controller_at(unix_now()) {
                Ok(false) => {}
                Ok(true) => {
                    let not_after = self.controller.leaf().not_after;
                    tracing::info!(not_after, "the controller's certificate was renewed");
                }
                Err(fault) => {
                    tracing::error!(%fault, "the controller's certificate cannot be renewed");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RENEWAL_CHECK) => {}
            }
        }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// The controller's key lives in memory only: the authority beside it can make another.
fn controller_credentials(
    issuer: &Issuer<'static, KeyPair>,
    ca: &CaCertificate,
    ca_pem: &str,
    ca_not_after: i64,
) -> Result<Credentials, Fault> {
    let key = profile::NewKey::p256()?;
    let validity = profile::Validity::from_now(CONTROLLER_LIFETIME, ca_not_after)?;
    let issued = profile::issue(issuer, ca, &Party::Controller, key.pair(), validity)?;
    Ok(Credentials::new(&key.pem(), &issued.pem, ca_pem))
}

#[cfg(test)]
mod tests;
