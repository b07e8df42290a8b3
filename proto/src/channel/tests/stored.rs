//! Credentials on disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rcgen::CertificateSigningRequestParams;

use super::support::*;
use crate::channel::*;

#[test]
fn credentials_survive_the_disk_and_only_we_can_read_them() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let credentials = ca.credentials(&agent("web1"));
    credentials.store(&state).unwrap();
    credentials.store(&state).unwrap();
    let identity = Identity::load(&state).unwrap();
    assert_eq!(identity.party(), &agent("web1"));
    assert_eq!(identity.ca().fingerprint(), ca.certificate.fingerprint());
    assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, 0o700);
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600, "{}", path.display());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    }
    says(&Identity::load(&state).unwrap_err(), "can be read by others");
}

#[test]
fn what_does_not_fit_together_is_not_stored() {
    let (ca, other) = (Ca::new(), Ca::new());
    let dir = tempfile::tempdir().unwrap();
    ca.credentials(&agent("web1")).store(dir.path()).unwrap();
    let (key, certificate) = ca.issue(&agent("web1"), Profile::default());
    let (other_key, other_certificate) = other.issue(&agent("web1"), Profile::default());
    for (broken, why) in [
        (Credentials::new(&other_key, &certificate, &ca.pem), "another key"),
        (Credentials::new(&other_key, &other_certificate, &ca.pem), "did not sign"),
        (Credentials::new("", &certificate, &ca.pem), "no private key"),
        (Credentials::new(&key, "", &ca.pem), "not exactly"),
        (Credentials::new(&key, &certificate, &certificate), "not an authority's"),
        (Credentials::new("nonsense", "", ""), "no private key"),
    ] {
        says(&broken.store(dir.path()).unwrap_err(), why);
    }
    Identity::load(dir.path()).unwrap();
}

#[test]
fn a_server_that_is_not_enrolled_is_told_how() {
    let dir = tempfile::tempdir().unwrap();
    let fault = Identity::load(dir.path()).unwrap_err();
    assert_eq!(fault.class, crate::FaultClass::Precondition);
    says(&fault, "ferry-agent enroll");
}

#[test]
fn a_pending_key_stays_the_same_until_it_is_certified() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    let web1 = server("web1");
    let first = pending_key_and_csr(dir.path(), &web1).unwrap();
    let second = pending_key_and_csr(dir.path(), &web1).unwrap();
    assert_eq!(*first.key_pem, *second.key_pem);
    let key = |csr: &str| CertificateSigningRequestParams::from_pem(csr).unwrap().public_key;
    assert_eq!(key(&first.csr_pem), key(&second.csr_pem));
    let pending = dir.path().join("pending.key");
    assert_eq!(fs::metadata(&pending).unwrap().mode() & 0o7777, 0o600);
    ca.credentials(&agent("web1")).store(dir.path()).unwrap();
    assert!(!pending.exists());
    let third = pending_key_and_csr(dir.path(), &web1).unwrap();
    assert_ne!(*first.key_pem, *third.key_pem);
}

#[test]
fn no_secret_is_printed() {
    let ca = Ca::new();
    let credentials = ca.credentials(&agent("web1"));
    let key = new_key_and_csr(&server("web1")).unwrap();
    let identity = Identity::new(&credentials).unwrap();
    for shown in [format!("{credentials:?}"), format!("{key:?}"), format!("{identity:?}")] {
        assert!(!shown.contains("PRIVATE"), "{shown}");
    }
}

#[test]
fn what_enrolment_brings_must_be_what_the_token_says() {
    let (ca, other) = (Ca::new(), Ca::new());
    let token = |ca: &Ca, name: &str| {
        token::Token::new(*ca.certificate.fingerprint(), server(name), [1; 32])
    };
    let (key_pem, certificate) = ca.issue(&agent("web1"), Profile::default());
    let key = NewKey { key_pem: key_pem.into(), csr_pem: String::new() };
    let enrolled = |token| Credentials::enrolled(&key, &certificate, &ca.pem, &token);
    let credentials = enrolled(token(&ca, "web1")).unwrap();
    assert_eq!(Identity::new(&credentials).unwrap().party(), &agent("web1"));
    says(&enrolled(token(&ca, "web2")).unwrap_err(), "is for server web2");
    says(&enrolled(token(&other, "web1")).unwrap_err(), "another authority than the token's");
    let (controller_key, controller) = ca.issue(&Party::Controller, Profile::default());
    let key = NewKey { key_pem: controller_key.into(), csr_pem: String::new() };
    let fault = Credentials::enrolled(&key, &controller, &ca.pem, &token(&ca, "web1")).unwrap_err();
    says(&fault, "the certificate for the controller");
}

#[test]
fn a_renewed_certificate_is_stored_and_used_or_neither() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    ca.credentials(&agent("web1")).store(dir.path()).unwrap();
    let identity = Identity::load(dir.path()).unwrap();
    let old = identity.leaf();
    let renewal = |party: &Party| {
        let (key_pem, certificate) = ca.issue(party, Profile::default());
        (NewKey { key_pem: key_pem.into(), csr_pem: String::new() }, certificate)
    };
    let (key, certificate) = renewal(&agent("web2"));
    assert!(identity.renew(dir.path(), &key, &certificate).is_err());
    assert_eq!(identity.leaf(), old);
    assert_eq!(Identity::load(dir.path()).unwrap().leaf(), old);

    let (key, certificate) = renewal(&agent("web1"));
    identity.renew(dir.path(), &key, &certificate).unwrap();
    let new = identity.leaf();
    assert_ne!(new.serial, old.serial);
    assert_eq!(Identity::load(dir.path()).unwrap().leaf(), new);
}

#[test]
fn an_authority_s_certificate_survives_its_text() {
    let ca = Ca::new();
    let text = ca.certificate.to_pem();
    assert_eq!(CaCertificate::from_pem(&text).unwrap(), ca.certificate);
    assert!(text.lines().all(|line| line.len() <= 64));
    assert!(CaCertificate::from_pem(&format!("{text}{text}")).is_err());
    let (_, certificate) = ca.issue(&agent("web1"), Profile::default());
    assert!(CaCertificate::from_pem(&certificate).is_err());
}
