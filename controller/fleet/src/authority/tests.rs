//! The authority on a real disk and behind a real port.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferry_proto::channel::{
    Connections, Credentials, Identity, Limits, Listener, Party, connect, new_key_and_csr,
    pinned_connect, token::Token, unix_now,
};
use ferry_proto::command::Direction;
use ferry_proto::grant::Grant;
use ferry_proto::ids::{Epoch, JobId, ServerName};
use ferry_proto::{Fault, FaultClass};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

use super::*;

struct Place {
    _root: tempfile::TempDir,
    dir: PathBuf,
}

fn place() -> Place {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("ca");
    Place { _root: root, dir }
}

fn server(name: &str) -> ServerName {
    name.parse().unwrap()
}

fn enrol(authority: &Authority, name: &str) -> Arc<Identity> {
    let key = new_key_and_csr(&server(name)).unwrap();
    let issued = authority.issue_agent(&key.csr_pem, &server(name), AGENT_LIFETIME).unwrap();
    Identity::new(&Credentials::new(&key.key_pem, &issued.pem, authority.ca_pem())).unwrap()
}

#[track_caller]
fn says(fault: &Fault, text: &str) {
    assert!(fault.to_string().contains(text), "{text:?} is not in: {fault}");
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn it_is_made_once_and_only_we_can_read_it() {
    let place = place();
    let first = Authority::open(&place.dir).unwrap();
    assert_eq!(fs::metadata(&place.dir).unwrap().mode() & 0o7777, 0o700);
    for (name, mode) in [("ca.key", 0o600), ("grant.key", 0o600), ("ca.pem", 0o644)] {
        let path = place.dir.join(name);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "{name}");
    }
    let second = Authority::open(&place.dir).unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
    assert_eq!(first.grant_public_key(), second.grant_public_key());
    assert_eq!(fs::read_dir(place.dir.parent().unwrap()).unwrap().count(), 1, "nothing is left");
    // The controller's certificate is new at each start, under the same authority.
    let (one, two) = (first.controller_identity(), second.controller_identity());
    assert_ne!(one.leaf().serial, two.leaf().serial);
    assert_eq!(one.ca().fingerprint(), two.ca().fingerprint());
    assert_eq!(one.party(), &Party::Controller);
}

#[test]
fn the_empty_directory_of_a_package_and_what_a_crash_left_do_no_harm() {
    let place = place();
    fs::create_dir(&place.dir).unwrap();
    let staging = place.dir.with_file_name(".ca.new");
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("ca.key"), "half").unwrap();
    Authority::open(&place.dir).unwrap();
    assert!(!staging.exists());
    assert_eq!(fs::metadata(&place.dir).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn it_refuses_keys_that_others_can_read() {
    for name in ["ca.key", "grant.key"] {
        for mode in [0o640, 0o604, 0o620] {
            let place = place();
            Authority::open(&place.dir).unwrap();
            chmod(&place.dir.join(name), mode);
            let fault = Authority::open(&place.dir).unwrap_err();
            assert_eq!(fault.class, FaultClass::Precondition);
            says(&fault, "can be read by others");
        }
    }
    let place = place();
    Authority::open(&place.dir).unwrap();
    chmod(&place.dir, 0o777);
    says(&Authority::open(&place.dir).unwrap_err(), "others can replace the keys");
    chmod(&place.dir, 0o700);
    chmod(&place.dir.join("ca.pem"), 0o666);
    says(&Authority::open(&place.dir).unwrap_err(), "can be changed by others");
}

#[test]
fn it_never_makes_a_new_one_over_a_damaged_one() {
    for name in ["ca.key", "ca.pem", "grant.key"] {
        let place = place();
        Authority::open(&place.dir).unwrap();
        fs::remove_file(place.dir.join(name)).unwrap();
        says(&Authority::open(&place.dir).unwrap_err(), &format!("{name} is missing"));
        fs::write(place.dir.join(name), "nonsense").unwrap();
        chmod(&place.dir.join(name), 0o600);
        assert!(Authority::open(&place.dir).is_err(), "{name} is nonsense");
    }
    let (one, other) = (place(), place());
    Authority::open(&one.dir).unwrap();
    Authority::open(&other.dir).unwrap();
    fs::copy(other.dir.join("ca.key"), one.dir.join("ca.key")).unwrap();
    says(&Authority::open(&one.dir).unwrap_err(), "not the key of ca.pem");
    fs::remove_file(one.dir.join("ca.key")).unwrap();
    symlink(other.dir.join("ca.key"), one.dir.join("ca.key")).unwrap();
    assert!(Authority::open(&one.dir).is_err(), "a link");
}

#[test]
fn two_first_starts_at_once_make_one_authority() {
    let place = place();
    let parent = fs::File::open(place.dir.parent().unwrap()).unwrap();
    parent.lock().unwrap();
    let fault = Authority::open(&place.dir).unwrap_err();
    assert_eq!(fault.class, FaultClass::Transient);
    says(&fault, "another controller");
    drop(parent);
    Authority::open(&place.dir).unwrap();
}

#[test]
fn of_a_request_only_the_key_counts() {
    let place = place();
    let authority = Authority::open(&place.dir).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params =
        CertificateParams::new(vec!["controller.ferry.internal".to_owned(), "*".to_owned()])
            .unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Any];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let issued = authority.issue_agent(&csr, &server("web1"), AGENT_LIFETIME).unwrap();
    let credentials = Credentials::new(&key.serialize_pem(), &issued.pem, authority.ca_pem());
    let identity = Identity::new(&credentials).unwrap();
    assert_eq!(identity.party(), &Party::Agent(server("web1")));
    assert_eq!(identity.leaf().serial, issued.serial);
    assert_eq!(identity.leaf().fingerprint, issued.fingerprint);
    let lifetime = issued.not_after - issued.not_before;
    assert!((90 * 86_400..91 * 86_400).contains(&lifetime), "{lifetime} s");
    let again = authority.issue_agent(&csr, &server("web1"), AGENT_LIFETIME).unwrap();
    assert_ne!(again.serial, issued.serial);
    assert_eq!(again.public_key, issued.public_key);
}

#[test]
fn a_request_must_be_signed_by_a_key_of_our_kind() {
    let place = place();
    let authority = Authority::open(&place.dir).unwrap();
    let issue = |csr: &str| authority.issue_agent(csr, &server("web1"), AGENT_LIFETIME);
    let good = new_key_and_csr(&server("web1")).unwrap().csr_pem;
    issue(&good).unwrap();

    // Somebody else's public key under one's own signature proves nothing.
    let (der, other) = (request_der(&good), new_key_and_csr(&server("web1")).unwrap());
    let mut forged = der.clone();
    let other = request_der(&other.csr_pem);
    let (at, len) = (position(&der), 64);
    forged[at..at + len].copy_from_slice(&other[position(&other)..][..len]);
    says(&issue(&request_pem(&forged)).unwrap_err(), "not a certificate request signed by its key");

    for algorithm in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        says(&issue(&csr).unwrap_err(), "other than ECDSA P-256");
    }
    for nonsense in ["", "nonsense", &"x".repeat(100_000), &good[..200], authority.ca_pem()] {
        assert!(issue(nonsense).is_err());
    }
    let fault = authority
        .issue_agent(&good, &server("web1"), Duration::from_secs(400 * 86_400))
        .unwrap_err();
    says(&fault, "at most 398 days");
}

/// Where the 64 bytes of the public key's point begin, after the bit string's header.
fn position(der: &[u8]) -> usize {
    der.windows(4).position(|window| window == [0x03, 0x42, 0x00, 0x04]).unwrap() + 4
}

fn request_der(pem: &str) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn request_pem(der: &[u8]) -> String {
    let encoded = rcgen_pem(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{encoded}\n-----END CERTIFICATE REQUEST-----\n")
}

fn rcgen_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(der)
}

#[test]
fn a_token_is_this_controller_s_and_its_secret_is_not_kept() {
    let (here, there) = (place(), place());
    let authority = Authority::open(&here.dir).unwrap();
    let other = Authority::open(&there.dir).unwrap();
    let (hash, text) = authority.new_token(&server("web1")).unwrap();
    let (second_hash, _) = authority.new_token(&server("web1")).unwrap();
    assert_ne!(hash, second_hash);
    let token = authority.parse_token(&text).unwrap();
    assert_eq!(token.server, server("web1"));
    assert_eq!(token_hash(&token), hash);
    assert_eq!(Token::parse(&text).unwrap().ca, *authority.fingerprint());
    says(&other.parse_token(&text).unwrap_err(), "made by another controller");
    says(&authority.parse_token(&text[1..]).unwrap_err(), "not valid");
}

#[test]
fn grants_are_signed_by_a_key_of_their_own() {
    let (here, there) = (place(), place());
    let authority = Authority::open(&here.dir).unwrap();
    let now = unix_now();
    let grant = Grant {
        id: uuid::Uuid::now_v7(),
        job: JobId::new_now(),
        account: "shop".parse().unwrap(),
        direction: Direction::Outbound,
        source: server("web1"),
        target: server("transit1"),
        epoch: Epoch(0),
        not_before: now,
        expires: now + 600,
        controller_generation: 1,
        forced: None,
        approvals: Vec::new(),
    };
    let signed = authority.sign_grant(&grant).unwrap();
    // As after a restart.
    let again = Authority::open(&here.dir).unwrap();
    assert_eq!(signed.verify(&again.grant_public_key(), now).unwrap(), grant);
    let other = Authority::open(&there.dir).unwrap();
    assert!(signed.verify(&other.grant_public_key(), now).is_err());
}

#[tokio::test]
async fn a_server_enrols_by_token_and_comes_back_with_its_certificate() {
    let place = place();
    let authority = Authority::open(&place.dir).unwrap();
    let connections = Connections::new(Limits::default());
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let incoming = listener.serve(&authority.controller_identity(), &connections).unwrap();
    let address = incoming.address().to_string();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let serve =
        tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming);
    let serving = tokio::spawn(serve);

    let (_, text) = authority.new_token(&server("web1")).unwrap();
    let token = Token::parse(&text).unwrap();
    pinned_connect(&address, &token.ca).await.unwrap();
    let identity = enrol(&authority, "web1");
    connect(&address, &identity, &Party::Controller).await.unwrap();

    // Issued with no time left: refused as soon as the second is over.
    let key = new_key_and_csr(&server("web2")).unwrap();
    let issued = authority.issue_agent(&key.csr_pem, &server("web2"), Duration::ZERO).unwrap();
    let brief = Credentials::new(&key.key_pem, &issued.pem, authority.ca_pem());
    let brief = Identity::new(&brief).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let fault = loop {
        assert!(tokio::time::Instant::now() < deadline, "an expired certificate still works");
        match connect(&address, &brief, &Party::Controller).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(fault) => break fault,
        }
    };
    says(&fault, "our certificate is not valid at this time");

    // An agent of another fleet with the same name.
    let elsewhere = self::place();
    let stranger = enrol(&Authority::open(&elsewhere.dir).unwrap(), "web1");
    says(
        &connect(&address, &stranger, &Party::Controller).await.unwrap_err(),
        "not from our certificate authority",
    );
    serving.abort();
}

#[test]
fn the_controller_s_certificate_is_left_alone_until_it_is_due() {
    let place = place();
    let authority = Authority::open(&place.dir).unwrap();
    let identity = authority.controller_identity();
    let before = identity.leaf();
    assert!(!before.renewal_due(unix_now()));
    assert!(!authority.renew_controller_at(unix_now()).unwrap());
    assert_eq!(identity.leaf(), before);
    let day_31 = unix_now() + 31 * 86_400;
    assert!(authority.renew_controller_at(day_31).unwrap());
    assert_ne!(identity.leaf().serial, before.serial);
}

#[test]
fn no_secret_is_printed() {
    let place = place();
    let authority = Authority::open(&place.dir).unwrap();
    let shown = format!("{authority:?}");
    assert!(shown.contains(&authority.fingerprint().to_string()));
    assert!(!shown.contains("key"), "{shown}");
}
