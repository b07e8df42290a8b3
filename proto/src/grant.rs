//! The grant: the controller's signed word that two agents may exchange one account for one move.
//! An agent that is called by another does what a grant names and nothing else.
//!
//! The signature covers the very bytes that are carried; nobody serialises a grant a second time
//! to check it. The grant key is not the authority's: who can sign grants cannot make identities.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Fault;
use crate::approval::{self, Approval};
use crate::command::{Direction, Forced};
use crate::ids::{AccountName, Epoch, JobId, ServerName};

/// What stands before a grant's bytes when they are signed, so that a signature for something
/// else can never pass for a grant's.
const CONTEXT: &[u8] = b"ferry grant 1\0";

/// No grant is longer.
const MAX_LEN: usize = 4096 + approval::MAX_LEN;

/// How far the clocks of controller and agent may differ at a grant's beginning.
const SKEW_SECONDS: i64 = 300;

/// What two agents may do together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Its own number, for logs.
    pub id: uuid::Uuid,
    /// The job that it is for.
    pub job: JobId,
    /// The account.
    pub account: AccountName,
    /// Which way the move goes.
    pub direction: Direction,
    /// The server that serves the account before the move.
    pub source: ServerName,
    /// The server that serves it after.
    pub target: ServerName,
    /// The account's epoch when the move started.
    pub epoch: Epoch,
    /// Not before this, in Unix seconds.
    pub not_before: i64,
    /// Nothing new starts after this, in Unix seconds. What runs or stands goes on.
    pub expires: i64,
    /// Rises with each start of the controller, so that what an older one said can be told apart.
    pub controller_generation: u64,
    /// That the target may open the account without hearing from the source, and whose word that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<Forced>,
    /// What the target lets in although an account may not have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
}

impl Grant {
    /// Signs it.
    ///
    /// # Errors
    /// It is not a sensible grant.
    pub fn sign(&self, key: &Ed25519KeyPair) -> Result<SignedGrant, Fault> {
        self.check()?;
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Fault::bug("a grant could not be written down").caused_by(&e))?;
        let signature = key
            .try_sign(&signed_bytes(&bytes))
            .map_err(|e| Fault::bug("a grant could not be signed").caused_by(&e))?
            .as_ref()
            .to_vec();
        Ok(SignedGrant { bytes, signature })
    }

    /// Whether `me` and `peer` are the two ends that it names, whichever is which.
    ///
    /// # Errors
    /// They are not.
    pub fn check_ends(&self, me: &ServerName, peer: &ServerName) -> Result<(), Fault> {
        let ends = [&self.source, &self.target];
        if ends.contains(&me) && ends.contains(&peer) && me != peer {
            return Ok(());
        }
        Err(Fault::permanent(format!(
            "the grant for account {} is for {} and {}, not for {me} and {peer}",
            self.account, self.source, self.target
        ))
        .remedy("look in the journal of both agents: somebody uses a grant that is not theirs"))
    }

    fn check(&self) -> Result<(), Fault> {
        if self.source == self.target {
            return Err(Fault::bug(format!(
                "the grant for account {} has {} at both ends",
                self.account, self.source
            )));
        }
        if self.expires <= self.not_before {
            return Err(Fault::bug(format!(
                "the grant for account {} ends before it begins",
                self.account
            )));
        }
        approval::check(&self.approvals)
    }
}

/// A grant as it is carried: its bytes and their signature, each base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedGrant {
    /// The grant's bytes.
    #[serde(with = "base64_bytes")]
    pub bytes: Vec<u8>,
    /// The Ed25519 signature over them.
    #[serde(with = "base64_bytes")]
    pub signature: Vec<u8>,
}

impl SignedGrant {
    /// The grant, if the controller signed it and something may start under it at `now`
    /// (Unix seconds).
    ///
    /// # Errors
    /// The signature is not the controller's, or its time is not now.
    pub fn verify(&self, key: &GrantKey, now: i64) -> Result<Grant, Fault> {
        let grant = self.verify_signature(key)?;
        let about = format!("the grant for account {} of job {}", grant.account, grant.job);
        if now > grant.expires {
            return Err(Fault::precondition(format!(
                "{about} expired {} s ago",
                now.saturating_sub(grant.expires)
            ))
            .remedy("let the controller repeat the step, which makes a new grant; if it was new, compare the servers' clocks"));
        }
        if now.saturating_add(SKEW_SECONDS) < grant.not_before {
            return Err(Fault::precondition(format!(
                "{about} begins only in {} s",
                grant.not_before.saturating_sub(now)
            ))
            .remedy("compare the clocks of this server and the controller"));
        }
        Ok(grant)
    }

    /// The grant, if the controller signed it, whatever its time: for what has started already.
    ///
    /// # Errors
    /// The signature is not the controller's.
    pub fn verify_signature(&self, key: &GrantKey) -> Result<Grant, Fault> {
        if self.bytes.len() > MAX_LEN {
            return Err(Fault::permanent(format!("the grant is longer than {MAX_LEN} bytes")));
        }
        UnparsedPublicKey::new(&ED25519, &key.0)
            .verify(&signed_bytes(&self.bytes), &self.signature)
            .map_err(|_| {
                Fault::permanent("the grant is not signed by this server's controller")
                    .remedy("if the controller was set up anew, enrol both servers again")
            })?;
        let grant: Grant = serde_json::from_slice(&self.bytes).map_err(|e| {
            Fault::permanent("the controller signed a grant that this version cannot read")
                .remedy("bring agent and controller to the same version")
                .caused_by(&e)
        })?;
        grant.check()?;
        Ok(grant)
    }
}

fn signed_bytes(bytes: &[u8]) -> Vec<u8> {
    [CONTEXT, bytes].concat()
}

/// The public half of the key that grants are signed with; pinned when a server is enrolled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GrantKey([u8; 32]);

impl GrantKey {
    /// From its 32 bytes.
    ///
    /// # Errors
    /// There are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Fault> {
        bytes.try_into().map(Self).map_err(|_| {
            Fault::permanent(format!("a grant key has 32 bytes, not {}", bytes.len()))
                .remedy("enrol the server again")
        })
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for GrantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrantKey({})", STANDARD.encode(self.0))
    }
}

impl Serialize for GrantKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        base64_bytes::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for GrantKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = base64_bytes::deserialize(deserializer)?;
        Self::from_bytes(&bytes).map_err(de::Error::custom)
    }
}

mod base64_bytes {
    use base64::Engine as _;

    use super::{Deserialize, Deserializer, STANDARD, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::KeyPair as _;

    use super::*;
    use crate::FaultClass;

    const NOW: i64 = 1_700_000_000;

    fn grant() -> Grant {
        Grant {
            id: uuid::Uuid::nil(),
            job: JobId(uuid::Uuid::nil()),
            account: "shop".parse().unwrap(),
            direction: Direction::Outbound,
            source: "web1".parse().unwrap(),
            target: "transit1".parse().unwrap(),
            epoch: Epoch(3),
            not_before: NOW,
            expires: NOW + 600,
            controller_generation: 2,
            forced: None,
            approvals: Vec::new(),
        }
    }

    fn key() -> (Ed25519KeyPair, GrantKey) {
        let key = Ed25519KeyPair::generate().unwrap();
        let public = GrantKey::from_bytes(key.public_key().as_ref()).unwrap();
        (key, public)
    }

    #[test]
    fn a_grant_survives_the_wire() {
        let (key, public) = key();
        let signed = grant().sign(&key).unwrap();
        let carried = serde_json::to_string(&signed).unwrap();
        let carried: SignedGrant = serde_json::from_str(&carried).unwrap();
        assert_eq!(carried.verify(&public, NOW).unwrap(), grant());
        let pinned = serde_json::to_string(&public).unwrap();
        assert_eq!(serde_json::from_str::<GrantKey>(&pinned).unwrap(), public);
    }

    /// What an agent of before does not know is not in what it reads.
    #[test]
    fn that_something_is_forced_is_signed_and_else_not_mentioned() {
        let (key, public) = key();
        let plain = grant().sign(&key).unwrap();
        assert!(!String::from_utf8_lossy(&plain.bytes).contains("forced"));
        let forced = Some(Forced { by: "an operator".into(), at_unix_ms: 7 });
        let signed = Grant { forced: forced.clone(), ..grant() }.sign(&key).unwrap();
        assert_eq!(signed.verify(&public, NOW).unwrap().forced, forced);
        let swapped = SignedGrant { bytes: signed.bytes, ..plain };
        assert!(swapped.verify(&public, NOW).is_err());
    }

    #[test]
    fn what_is_approved_is_signed_and_else_not_mentioned() {
        let (key, public) = key();
        let plain = grant().sign(&key).unwrap();
        assert!(!String::from_utf8_lossy(&plain.bytes).contains("approvals"));
        let approval: Approval = serde_json::from_value(serde_json::json!({
            "what": {"path": "bin/tool", "seen": {
                "kind": {"file": {"size": 5, "digest": "00".repeat(32)}}, "mode": 0o4755, "uid": 0,
                "gid": 0}},
            "ids": {"uid": 1001, "gid": 1001}, "by": "an operator", "at_unix_ms": 7,
        }))
        .unwrap();
        let approvals = vec![approval.clone()];
        let signed = Grant { approvals: approvals.clone(), ..grant() }.sign(&key).unwrap();
        assert_eq!(signed.verify(&public, NOW).unwrap().approvals, approvals);
        let swapped = SignedGrant { bytes: signed.bytes, ..plain };
        assert!(swapped.verify(&public, NOW).is_err());
        let twice = Grant { approvals: vec![approval.clone(), approval], ..grant() };
        assert!(twice.sign(&key).is_err());
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let (key, public) = key();
        let forced = Some(Forced { by: "an operator".into(), at_unix_ms: 7 });
        let signed = Grant { forced, ..grant() }.sign(&key).unwrap();
        for bit in 0..signed.bytes.len() * 8 {
            let mut wrong = signed.clone();
            wrong.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(wrong.verify(&public, NOW).is_err(), "bit {bit} of the bytes");
        }
        for bit in 0..signed.signature.len() * 8 {
            let mut wrong = signed.clone();
            wrong.signature[bit / 8] ^= 1 << (bit % 8);
            assert!(wrong.verify(&public, NOW).is_err(), "bit {bit} of the signature");
        }
        for bytes in [vec![], vec![b'x'; MAX_LEN + 1]] {
            let wrong = SignedGrant { bytes, ..signed.clone() };
            assert!(wrong.verify(&public, NOW).is_err());
        }
        let unsigned = SignedGrant { signature: Vec::new(), ..signed };
        assert!(unsigned.verify(&public, NOW).is_err());
    }

    #[test]
    fn another_key_or_another_purpose_is_refused() {
        let (key, public) = key();
        let (_, other) = self::key();
        let signed = grant().sign(&key).unwrap();
        let fault = signed.verify(&other, NOW).unwrap_err();
        assert_eq!(fault.class, FaultClass::Permanent);
        assert!(fault.message.contains("not signed by this server's controller"));
        // The same key's signature over the bare bytes is not a grant's signature.
        let bare = SignedGrant {
            signature: key.sign(&signed.bytes).as_ref().to_vec(),
            bytes: signed.bytes,
        };
        assert!(bare.verify(&public, NOW).is_err());
    }

    #[test]
    fn expiry_limits_starting_only() {
        let (key, public) = key();
        let signed = grant().sign(&key).unwrap();
        signed.verify(&public, NOW + 600).unwrap();
        let fault = signed.verify(&public, NOW + 601).unwrap_err();
        assert_eq!(fault.class, FaultClass::Precondition);
        assert!(fault.message.contains("expired 1 s ago"), "{fault}");
        assert_eq!(signed.verify_signature(&public).unwrap(), grant());
        // A clock a little behind the controller's is no reason to refuse, an hour is.
        signed.verify(&public, NOW - SKEW_SECONDS).unwrap();
        assert!(signed.verify(&public, NOW - SKEW_SECONDS - 1).is_err());
    }

    #[test]
    fn a_grant_is_for_its_two_ends() {
        let grant = grant();
        let name = |text: &str| text.parse::<ServerName>().unwrap();
        grant.check_ends(&name("web1"), &name("transit1")).unwrap();
        grant.check_ends(&name("transit1"), &name("web1")).unwrap();
        for (me, peer) in [("web1", "web1"), ("web1", "web2"), ("web2", "transit1")] {
            assert!(grant.check_ends(&name(me), &name(peer)).is_err(), "{me} {peer}");
        }
    }

    #[test]
    fn senseless_grants_are_not_signed() {
        let (key, _) = key();
        let same = Grant { target: "web1".parse().unwrap(), ..grant() };
        assert!(same.sign(&key).is_err());
        let never = Grant { expires: NOW, ..grant() };
        assert!(never.sign(&key).is_err());
    }
}
