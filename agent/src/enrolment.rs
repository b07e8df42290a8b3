//! A token into a certificate, and a certificate into a new one before it ends. The key never leaves
//! this host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::channel::token::Token;
use ferry_proto::channel::{
    self, Credentials, Party, files, new_key_and_csr, pending_key_and_csr, unix_now,
};
use ferry_proto::grant::GrantKey;
use ferry_proto::ids::ServerName;
use ferry_proto::v1;
use ferry_proto::v1::agent_service_client::AgentServiceClient;
use ferry_proto::v1::enrolment_service_client::EnrolmentServiceClient;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, blocking};
use crate::config::Config;

/// How often it is looked whether the certificate is due, at most.
const LONGEST_LOOK: Duration = Duration::from_secs(3600);
/// And at least, for short-lived ones.
const SHORTEST_LOOK: Duration = Duration::from_secs(2);

/// What enrolment told, beside the certificate.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolled {
    /// The controller, `HOST:PORT`.
    pub controller: String,
    /// Ed25519 public key that grants are signed with.
    pub grant_key: GrantKey,
    /// What this server is for.
    pub role: String,
}

impl Enrolled {
    /// Reads what [`enrol`] wrote.
    ///
    /// # Errors
    /// If this server is not enrolled.
    pub fn load(config: &Config) -> Result<Self, Fault> {
        let path = config.identity_directory().join("enrolled.json");
        let text = files::read_private(&path).map_err(|f| {
            f.context("this server is not enrolled").remedy(
                "on the controller: ferry server add NAME --role ROLE; here: ferry-agent enroll",
            )
        })?;
        serde_json::from_slice(&text).map_err(|e| {
            Fault::permanent(format!("{} is damaged", path.display()))
                .caused_by(&e)
                .remedy("enrol again")
        })
    }
}

/// Enrols this server; its name.
///
/// # Errors
/// What the controller has against the token, or why it cannot be asked. May be repeated.
pub async fn enrol(config: &Config, controller: &str, token: &str) -> Result<ServerName, Fault> {
    let token = Token::parse(token)?;
    let directory = config.identity_directory();
    files::create_directory(&directory)?;
    let key = pending_key_and_csr(&directory, &token.server)?;
    let channel = channel::pinned_connect(controller, &token.ca).await?;
    let request = v1::EnrolRequest {
        token: token.to_text().to_string(),
        csr_pem: key.csr_pem.clone(),
        peer_address: config.peer_address.map(|a: SocketAddr| a.to_string()).unwrap_or_default(),
    };
    let response = EnrolmentServiceClient::new(channel)
        .enrol(request)
        .await
        .map_err(|s| refused(&s))?
        .into_inner();
    let enrolled = Enrolled {
        controller: controller.to_owned(),
        grant_key: GrantKey::from_bytes(&response.grant_key)?,
        role: response.role,
    };
    let text = serde_json::to_vec_pretty(&enrolled)
        .map_err(|e| Fault::bug("what was enrolled has no JSON").caused_by(&e))?;
    files::write_private(&directory.join("enrolled.json"), &text)?;
    // Last: the service's condition is that these are there.
    Credentials::enrolled(&key, &response.certificate_pem, &response.ca_pem, &token)?
        .store(&directory)?;
    files::write_public(&directory.join("certificate.pem"), response.certificate_pem.as_bytes())?;
    Ok(token.server)
}

/// The fault that a status carries in its details, or one made of its message.
fn refused(status: &tonic::Status) -> Fault {
    serde_json::from_slice(status.details()).unwrap_or_else(|_| {
        channel::status_fault(status).unwrap_or_else(|| {
            Fault::transient(format!("the controller did not answer: {}", status.message()))
        })
    })
}

/// Renews the certificate when it is due, until `stop` fires. No work is dropped for it.
pub async fn keep_fresh(agent: Arc<Agent>, controller: String, stop: CancellationToken) {
    loop {
        let leaf = agent.identity.leaf();
        let lifetime = leaf.not_after.saturating_sub(leaf.not_before).max(0);
        let look = Duration::from_secs(u64::try_from(lifetime / 30).unwrap_or(0))
            .clamp(SHORTEST_LOOK, LONGEST_LOOK);
        tokio::select! {
            () = tokio::time::sleep(look) => {}
            () = stop.cancelled() => return,
        }
        if !agent.identity.leaf().renewal_due(unix_now()) {
            continue;
        }
        // A renewal that is cut off is begun again at the next start.
        match stop.run_until_cancelled(renew(&agent, &controller)).await {
            Some(Ok(())) => {
                tracing::info!(not_after = agent.identity.leaf().not_after, "certificate renewed");
            }
            Some(Err(fault)) => tracing::warn!("the certificate was not renewed: {fault}"),
            None => return,
        }
    }
}

async fn renew(agent: &Agent, controller: &str) -> Result<(), Fault> {
    let key = new_key_and_csr(&agent.name)?;
    let channel = channel::connect(controller, &agent.identity, &Party::Controller).await?;
    let response = AgentServiceClient::new(channel)
        .renew(v1::RenewRequest { csr_pem: key.csr_pem.clone() })
        .await
        .map_err(|s| refused(&s))?
        .into_inner();
    let (identity, directory) = (agent.identity.clone(), agent.config.identity_directory());
    blocking(move || {
        identity.renew(&directory, &key, &response.certificate_pem)?;
        let public = directory.join("certificate.pem");
        files::write_public(&public, response.certificate_pem.as_bytes())
    })
    .await
}
