//! The enrolment token as text: what an operator carries from the controller to a new server.
//! It says which authority to trust, proves once that the bearer was sent by the operator, and
//! names the server. Making tokens and remembering which are used is the authority's business.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::certificate::Fingerprint;
use crate::Fault;
use crate::ids::ServerName;

/// The first part of every token, with the version of the format.
const PREFIX: &str = "ferry1.";

const SECRET_LEN: usize = 32;
const CHECKSUM_LEN: usize = 4;

/// No token is longer: prefix, and two hashes, a name and a checksum in base64.
const MAX_TEXT: usize = 256;

/// An enrolment token.
pub struct Token {
    /// The authority to trust: the SHA-256 of its certificate.
    pub ca: Fingerprint,
    /// The server to enrol.
    pub server: ServerName,
    secret: Zeroizing<[u8; SECRET_LEN]>,
}

impl Token {
    /// Of these parts.
    pub fn new(ca: Fingerprint, server: ServerName, secret: [u8; SECRET_LEN]) -> Self {
        Self { ca, server, secret: Zeroizing::new(secret) }
    }

    /// From its text; white space around it does not matter.
    ///
    /// # Errors
    /// It is no token, or was mistyped or cut.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let broken = |problem: &str| {
            Fault::permanent(format!("the enrolment token is not valid: {problem}"))
                .remedy("copy the whole token again, or make a new one with ferry server add")
        };
        let damaged = |how: &str| broken(&format!("it was mistyped or cut: {how}"));
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(broken("it is too long"));
        }
        let body = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| broken(&format!("it does not begin with {PREFIX:?}")))?;
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map(Zeroizing::new)
            .map_err(|_| damaged("it holds characters that no token has there"))?;
        let (payload, sum) = bytes
            .split_last_chunk::<CHECKSUM_LEN>()
            .filter(|(payload, _)| payload.len() > 32 + SECRET_LEN)
            .ok_or_else(|| damaged("it is too short"))?;
        if checksum(payload) != *sum {
            return Err(damaged("its checksum does not fit"));
        }
        let mut ca = [0; 32];
        ca.copy_from_slice(&payload[..32]);
        let mut secret = Zeroizing::new([0; SECRET_LEN]);
        secret.copy_from_slice(&payload[32..32 + SECRET_LEN]);
        let server = std::str::from_utf8(&payload[32 + SECRET_LEN..])
            .ok()
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| broken("it does not name a server"))?;
        Ok(Self { ca: Fingerprint(ca), server, secret })
    }

    /// The text to hand over. Whoever has it can enrol as the server.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut payload = Zeroizing::new(Vec::with_capacity(32 + SECRET_LEN + 63 + CHECKSUM_LEN));
        payload.extend_from_slice(&self.ca.0);
        payload.extend_from_slice(&*self.secret);
        payload.extend_from_slice(self.server.as_str().as_bytes());
        let sum = checksum(&payload);
        payload.extend_from_slice(&sum);
        let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&*payload, &mut text);
        text
    }

    /// What the controller keeps instead of the secret. The secret has 256 random bits, so a
    /// plain hash cannot be reversed.
    pub fn secret_hash(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &*self.secret).as_ref());
        hash
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("ca", &self.ca)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Against typing errors only; the secret is what protects.
fn checksum(payload: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = digest(&SHA256, payload);
    let mut sum = [0; CHECKSUM_LEN];
    sum.copy_from_slice(&hash.as_ref()[..CHECKSUM_LEN]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(server: &str) -> Token {
        Token::new(Fingerprint([7; 32]), server.parse().unwrap(), [9; 32])
    }

    #[test]
    fn a_token_survives_being_copied() {
        for name in ["a", "web1", &"z".repeat(63)] {
            let token = token(name);
            let text = token.to_text();
            assert!(text.len() <= MAX_TEXT);
            let parsed = Token::parse(&format!("  {}\n", *text)).unwrap();
            assert_eq!(parsed.ca, token.ca);
            assert_eq!(parsed.server, token.server);
            assert_eq!(parsed.secret_hash(), token.secret_hash());
        }
    }

    /// Past the prefix, whatever of it is wrong: the last character carries bits that are not
    /// the checksum's, and is refused before it.
    #[track_caller]
    fn is_blamed_on_typing(text: &str) {
        let said = Token::parse(text).unwrap_err().to_string();
        let whose = if text.starts_with(PREFIX) { "mistyped or cut" } else { "does not begin" };
        assert!(said.contains(whose), "{text}: {said}");
    }

    #[test]
    fn every_single_mistyped_character_is_noticed() {
        let text = token("web1").to_text();
        for at in 0..text.len() {
            for other in ['A', 'B', 'z', '0', '-', '.'] {
                let mut wrong: Vec<char> = text.chars().collect();
                if wrong[at] == other {
                    continue;
                }
                wrong[at] = other;
                let wrong: String = wrong.into_iter().collect();
                is_blamed_on_typing(&wrong);
            }
            is_blamed_on_typing(&text[..at]);
        }
        for bad in ["", "ferry1.", "ferry2.AAAA", "é", &"x".repeat(1000)] {
            assert!(Token::parse(bad).is_err());
        }
    }

    #[test]
    fn a_token_is_not_printed_by_accident() {
        let token = token("web1");
        let shown = format!("{token:?}");
        assert!(shown.contains("web1"));
        assert!(!shown.contains("secret") && !shown.contains("9, 9"));
    }
}
