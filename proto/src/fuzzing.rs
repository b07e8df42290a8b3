//! Doors for the fuzz targets (`fuzz/`): each reads bytes as this crate reads them from others, and
//! panics if what was read breaks a promise. Not part of the contract.

use std::str::FromStr;
use std::sync::OnceLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::account::Definition;
use crate::channel::token::Token;
use crate::channel::{CaCertificate, Fingerprint, Leaf};
use crate::command::{AccountFacts, AccountState, CommitRecord, Intent, Outcome, TargetFacts};
use crate::grant::{Grant, GrantKey, SignedGrant};
use crate::ids::{
    AccountName, DatabaseHost, DatabaseName, DomainName, HomePath, MailboxName, ServerName,
    SiteName, UnixName,
};
use crate::{Fault, v1};

/// A target: its name, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// The targets by name.
pub const TARGETS: &[Target] = &[
    ("names", names),
    ("grant", grant),
    ("command", command),
    ("session", session),
    ("certificate", certificate),
];

/// A value read from JSON is written as what reads as the same value.
pub fn json_keeps<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    bytes: &[u8],
) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    let text = serde_json::to_vec(&value).expect("what was read can be written");
    let again: T = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(value, again);
    Some(value)
}

/// A name of any kind holds nothing that a path, a shell, a rule or a table would obey.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let harmless = |name: &str, also: &[char]| {
        let hostile = |c: char| {
            let quote =
                ['/', '\\', '\'', '"', '`', ';', '$', '%', ':', '*', '(', '{', '<', '|', '&'];
            c.is_control() || c.is_whitespace() || (quote.contains(&c) && !also.contains(&c))
        };
        assert!(!name.is_empty() && !name.contains(hostile), "{name:?}");
        assert!(!name.starts_with('-') && name != "." && name != "..", "{name:?}");
    };
    fn plain<N: FromStr + ToString>(text: &str) -> Option<String> {
        let name = text.parse::<N>().ok()?.to_string();
        assert_eq!(name, text, "a name is what was given");
        Some(name)
    }
    let names = [
        plain::<AccountName>(text),
        plain::<UnixName>(text),
        plain::<ServerName>(text),
        plain::<MailboxName>(text),
        plain::<SiteName>(text),
    ];
    names.iter().flatten().for_each(|name| harmless(name, &[]));
    plain::<DomainName>(text).iter().for_each(|name| harmless(name, &['*']));
    plain::<DatabaseName>(text).iter().for_each(|name| harmless(name, &['$']));
    // Always quoted, for a pattern may be `%`.
    plain::<DatabaseHost>(text)
        .iter()
        .for_each(|name| assert!(!name.contains(['\'', '`', '\\', '"']), "{name:?}"));
    if let Ok(path) = HomePath::try_from(text.to_owned()) {
        let below = path.below(std::path::Path::new("/home/x"));
        let mut parts = below.components();
        assert!(below.starts_with("/home/x"), "{below:?}");
        assert!(parts.all(|part| part != std::path::Component::ParentDir), "{below:?}");
        path.as_str().split('/').for_each(|part| assert!(!part.is_empty() && part != "."));
    }
}

fn key() -> &'static (Ed25519KeyPair, GrantKey) {
    static KEY: OnceLock<(Ed25519KeyPair, GrantKey)> = OnceLock::new();
    KEY.get_or_init(|| {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes are a seed");
        let public = GrantKey::from_bytes(pair.public_key().as_ref()).expect("a public key");
        (pair, public)
    })
}

/// A grant that was not signed is none, whatever it says; one that was signed says what its bytes say.
pub fn grant(bytes: &[u8]) {
    let (pair, public) = key();
    if let Some(signed) = json_keeps::<SignedGrant>(bytes) {
        assert!(signed.verify_signature(public).is_err(), "nobody signed it");
    }
    let Some(grant) = json_keeps::<Grant>(bytes) else { return };
    let Ok(signed) = grant.sign(pair) else { return };
    let Ok(verified) = signed.verify_signature(public) else { return };
    assert_eq!(verified, grant);
    assert!(grant.source != grant.target && grant.not_before < grant.expires);
    let _ = signed.verify(public, 1_700_000_000);
    let _ = grant.check_ends(&grant.source, &grant.target);
}

/// Commands and what comes of them.
pub fn command(bytes: &[u8]) {
    if let Some(intent) = json_keeps::<Intent>(bytes) {
        let named = intent.of().is_none_or(|of| of.account == *intent.account());
        assert!(named && !intent.kind().is_empty());
    }
    json_keeps::<CommitRecord>(bytes);
    json_keeps::<AccountFacts>(bytes);
    json_keeps::<TargetFacts>(bytes);
    json_keeps::<AccountState>(bytes);
    json_keeps::<Fault>(bytes);
    // Figures may be NaN, which is not equal to itself: written, it is read again.
    if let Ok(outcome) = serde_json::from_slice::<Outcome>(bytes) {
        let text = serde_json::to_vec(&outcome).expect("what was read can be written");
        assert!(serde_json::from_slice::<Outcome>(&text).is_ok());
    }
    if let Some(definition) = json_keeps::<Definition>(bytes) {
        checked(&definition);
    }
}

/// What a definition that passes its check never has.
pub fn checked(definition: &Definition) {
    if definition.check().is_err() {
        return;
    }
    let home = &definition.home;
    let mut parts = home.components();
    assert_eq!(parts.next(), Some(std::path::Component::RootDir));
    assert!(parts.all(|part| matches!(part, std::path::Component::Normal(_))), "{home:?}");
    for system in
        ["/bin", "/boot", "/dev", "/etc", "/lib", "/proc", "/root", "/run", "/sys", "/usr"]
    {
        assert!(!home.starts_with(system), "{home:?}");
    }
    assert_ne!(definition.user.as_str(), "root");
    for site in &definition.sites {
        assert!(!site.domains.is_empty());
        assert!(site.config.iter().all(|path| path.starts_with("/etc")));
    }
}

/// The messages of a session, as prost reads them.
pub fn session(bytes: &[u8]) {
    use prost::Message as _;
    if let Ok(message) = v1::SessionResponse::decode(bytes) {
        assert_eq!(v1::SessionResponse::decode(message.encode_to_vec().as_slice()), Ok(message));
    }
    let Ok(message) = v1::SessionRequest::decode(bytes) else { return };
    assert_eq!(
        v1::SessionRequest::decode(message.encode_to_vec().as_slice()).as_ref(),
        Ok(&message)
    );
    let Some(v1::session_request::Body::Event(v1::Event { body: Some(body), .. })) = message.body
    else {
        return;
    };
    match body {
        v1::event::Body::CommandDone(done) => {
            [done.receipt, done.fault].iter().for_each(|b| command(b))
        }
        v1::event::Body::AccountStates(states) => states.accounts.iter().for_each(|b| command(b)),
        _ => {}
    }
}

/// Certificates before anybody has verified them, and tokens.
pub fn certificate(bytes: &[u8]) {
    let der = CertificateDer::from(bytes.to_vec());
    let authority = Fingerprint([0; 32]);
    if let Ok(leaf) = Leaf::parse(&der, &authority) {
        assert!(!leaf.party.to_string().contains(char::is_control));
        let _ = leaf.serial.to_string().parse::<crate::channel::Serial>();
    }
    if let Ok(ca) = CaCertificate::from_der(der) {
        assert!(CaCertificate::from_pem(&ca.to_pem()).is_ok_and(|again| again == ca));
        assert!(ca.public_key_and_end().is_ok());
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = CaCertificate::from_pem(text);
    if let Ok(token) = Token::parse(text) {
        assert_eq!(*token.to_text(), text.trim());
    }
}
