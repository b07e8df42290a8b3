//! Tokens into certificates, and certificates into new ones.

use std::net::SocketAddr;
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::ids::ServerName;
use ferry_proto::v1;
use ferry_proto::v1::enrolment_service_server::EnrolmentService;
use ferry_store::{CertificateRow, Role, ServerRow, ServerState};
use tonic::{Request, Response, Status};

use crate::authority::IssuedCertificate;
use crate::session::{AgentEndpoint, status};
use crate::{Fleet, now_ms};

/// The longest that an enrolment token may be good for: whoever finds a forgotten one is that server.
const LONGEST_TOKEN: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Fleet {
    /// Registers a server and makes its one-time token: the text, and until when it is good (Unix
    /// milliseconds).
    ///
    /// # Errors
    /// If a server of that name is enrolled already, or the token would be good for too long.
    pub async fn add_server(
        &self,
        name: &ServerName,
        role: Role,
        valid: Option<Duration>,
    ) -> Result<(String, i64), Fault> {
        let valid = valid.unwrap_or(self.settings.token_lifetime);
        if valid > LONGEST_TOKEN {
            return Err(Fault::precondition(format!(
                "an enrolment token may be good for at most {} days",
                LONGEST_TOKEN.as_secs() / 86_400
            ))
            .remedy(
                "ask for a shorter time (--valid 1h, say); a new token can be made at any time",
            ));
        }
        let (token, text) = self.authority.new_token(name)?;
        let now = now_ms();
        let expires = now.saturating_add(i64::try_from(valid.as_millis()).unwrap_or(i64::MAX));
        let row = ServerRow {
            name: name.clone(),
            role,
            state: ServerState::Added,
            token_hash: Some(token),
            token_expires_ms: Some(expires),
            not_after_ms: None,
            peer_address: String::new(),
            version: String::new(),
            facts: "{}".to_owned(),
            last_seen_ms: None,
        };
        self.store.add_server(&row, now).await?;
        self.apply_revocations().await?;
        // A server that was cut off and comes back must not stay cut off at its peers.
        self.tell_revocations().await?;
        Ok((text, expires))
    }

    /// Exchanges a token and a certificate request for a certificate.
    async fn enrol(&self, request: v1::EnrolRequest) -> Result<v1::EnrolResponse, Fault> {
        let token = self.authority.parse_token(&request.token)?;
        let refused = |problem: &str| {
            Fault::permanent(format!("the enrolment token for {} {problem}", token.server))
                .remedy(format!("make a new one: ferry server add {} --role ROLE", token.server))
        };
        let row = self.store.server(&token.server).await?.ok_or_else(|| refused("is unknown"))?;
        // Signed before the token is spent: a bad request must not cost the token.
        let issued = self.authority.issue_agent(
            &request.csr_pem,
            &token.server,
            self.settings.certificate_lifetime,
        )?;
        let hash = crate::authority::token_hash(&token);
        let taken = self
            .store
            .take_token(
                &token.server,
                &hash,
                &issued.public_key.to_string(),
                &certificate_row(&issued),
                now_ms(),
            )
            .await?;
        if !taken {
            let expired = row.token_expires_ms.is_some_and(|e| e <= now_ms());
            return Err(match (row.state, expired) {
                (ServerState::Revoked, _) => refused("was revoked"),
                (ServerState::Enrolled, _) => refused("was used already"),
                (ServerState::Added, true) => refused("has expired"),
                (ServerState::Added, false) => refused("is not the one issued last"),
            });
        }
        if request.peer_address.parse::<SocketAddr>().is_ok() {
            self.store.set_seen(&token.server, &request.peer_address, "", "{}", now_ms()).await?;
        }
        tracing::info!(server = %token.server, serial = %issued.serial, "server enrolled");
        Ok(v1::EnrolResponse {
            server: token.server.to_string(),
            role: row.role.as_str().to_owned(),
            certificate_pem: issued.pem,
            ca_pem: self.authority.ca_pem().to_owned(),
            grant_key: self.authority.grant_public_key().as_bytes().to_vec(),
        })
    }

    /// A new certificate for an agent that has a good one.
    pub(crate) async fn renew(&self, server: &ServerName, csr_pem: &str) -> Result<String, Fault> {
        let issued =
            self.authority.issue_agent(csr_pem, server, self.settings.certificate_lifetime)?;
        self.store.add_certificate(server, &certificate_row(&issued)).await?;
        tracing::info!(%server, serial = %issued.serial, "certificate renewed");
        Ok(issued.pem)
    }
}

fn certificate_row(issued: &IssuedCertificate) -> CertificateRow {
    CertificateRow {
        serial: issued.serial.to_string(),
        not_after_ms: issued.not_after.saturating_mul(1000),
    }
}

#[tonic::async_trait]
impl EnrolmentService for AgentEndpoint {
    async fn enrol(
        &self,
        request: Request<v1::EnrolRequest>,
    ) -> Result<Response<v1::EnrolResponse>, Status> {
        match self.0.enrol(request.into_inner()).await {
            Ok(response) => Ok(Response::new(response)),
            Err(fault) => {
                tracing::warn!("enrolment refused: {fault}");
                Err(status(&fault))
            }
        }
    }
}
