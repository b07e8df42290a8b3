//! Whether the other server can be reached where a move needs it: its agent, and its redirector,
//! which takes the visitors that this one passes on, now or after a rollback.

use std::net::SocketAddr;
use std::time::Duration;

use ferry_proto::command::Severity;

use super::findings::Findings;
use crate::work::arm::ingress;

/// How long a connection may take.
const REACH: Duration = Duration::from_secs(5);

/// Looks whether the agent that listens at `peer` and the redirector beside it can be reached; whether
/// the agent can.
pub async fn peer(findings: &mut Findings, peer: Option<SocketAddr>) -> bool {
    let Some(peer) = peer else { return true };
    let (agent, redirector) = tokio::join!(problem(peer), problem(ingress(peer.ip())));
    report(findings, peer, agent.as_deref(), redirector.as_deref());
    agent.is_none()
}

fn report(
    findings: &mut Findings,
    peer: SocketAddr,
    agent: Option<&str>,
    redirector: Option<&str>,
) {
    if let Some(problem) = agent {
        findings.add(
            Severity::Blocker,
            format!("the peer's agent cannot be reached at {peer}: {problem}"),
            format!("open port {} between the two servers", peer.port()),
        );
    }
    if let Some(problem) = redirector {
        let ingress = ingress(peer.ip());
        findings.add(
            Severity::Blocker,
            format!(
                "the peer's redirector cannot be reached at {ingress}, where visitors are passed on: {problem}"
            ),
            format!(
                "open port {} between the two servers; on the peer, see: systemctl status ferry-redirector-peer.socket",
                ingress.port()
            ),
        );
    }
}

/// Why no connection to `address` can be made; none: one can.
async fn problem(address: SocketAddr) -> Option<String> {
    match tokio::time::timeout(REACH, tokio::net::TcpStream::connect(address)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", REACH.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_of_agent_or_redirector_blocks_and_says_which_to_open() {
        let mut findings = Findings::new(&"client".parse().unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        assert_eq!(problem(open).await, None);
        drop(listener);
        let refused = problem(open).await.unwrap();
        report(&mut findings, open, None, None);
        assert!(!peer(&mut findings, Some(open)).await);
        report(&mut findings, open, None, Some(&refused));
        let list = findings.into_list();
        assert!(list.iter().all(|f| f.severity == Severity::Blocker), "{list:?}");
        let says = |text: &str| list.iter().any(|f| f.remedy.starts_with(text));
        assert!(says(&format!("open port {}", open.port())), "{list:?}");
        assert!(says("open port 7481"), "{list:?}");
    }
}
