//! Enrolment tokens on the controller's side: made once, and kept only as a hash. Until when one
//! is good and whether it was used already is for the store to know.

use ferry_proto::Fault;
use ferry_proto::channel::Fingerprint;
use ferry_proto::channel::token::Token;
use ferry_proto::ids::ServerName;
use zeroize::Zeroizing;

use super::Authority;

/// What the controller keeps of a token: the SHA-256 of its secret, in hexadecimal. The secret has
/// 256 random bits, so that neither the hash nor the time that comparing it takes tells anything.
pub fn token_hash(token: &Token) -> String {
    Fingerprint(token.secret_hash()).to_string()
}

impl Authority {
    /// Makes a token that enrols `server`: the hash to store, and the text to show once and keep
    /// nowhere.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new_token(&self, server: &ServerName) -> Result<(String, String), Fault> {
        let mut secret = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *secret)
            .map_err(|e| Fault::bug("the system has no randomness").caused_by(&e))?;
        let token = Token::new(*self.fingerprint(), server.clone(), *secret);
        Ok((token_hash(&token), token.to_text().to_string()))
    }

    /// Reads a token that somebody presents and checks that this authority made it. Whether it is
    /// the one stored under its server's name is left to compare: [`token_hash`].
    ///
    /// # Errors
    /// It is no token, or another controller's.
    pub fn parse_token(&self, text: &str) -> Result<Token, Fault> {
        let token = Token::parse(text)?;
        if token.ca != *self.fingerprint() {
            return Err(Fault::permanent(format!(
                "the enrolment token for server {} was made by another controller",
                token.server
            ))
            .remedy(format!(
                "check the controller's address, or make a new token here: ferry server add {}",
                token.server
            )));
        }
        Ok(token)
    }
}
