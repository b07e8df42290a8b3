//! What Ferry reads out of certificates: fingerprints, serial numbers, validity, and whose they
//! are. It decides nothing about trust except the shape: a certificate whose names are not
//! exactly those that the authority writes belongs to nobody.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::names::Party;
use crate::Fault;
use crate::ids::InvalidName;

/// The SHA-256 of a certificate's or a public key's DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of these bytes.
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }

    /// The first 16 hexadecimal digits: enough to tell authorities apart in a name.
    pub fn short(&self) -> String {
        hex(&self.0[..8])
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        unhex(text).and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(|| InvalidName {
            what: "fingerprint",
            value: text.chars().take(80).collect(),
            rule: "64 hexadecimal digits",
        })
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

/// A certificate's serial number, without leading zeros.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(Vec<u8>);

impl Serial {
    /// From the bytes of the number, highest first.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes[zeros..].to_vec())
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Serial {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        unhex(text)
            .filter(|bytes| (1..=20).contains(&bytes.len()))
            .map(|bytes| Self::from_bytes(&bytes))
            .ok_or_else(|| InvalidName {
                what: "serial number",
                value: text.chars().take(80).collect(),
                rule: "2 to 40 hexadecimal digits",
            })
    }
}

impl TryFrom<String> for Serial {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() > 128 || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            // from_str_radix alone would take a sign.
            let digits = pair.iter().all(u8::is_ascii_hexdigit);
            let pair = std::str::from_utf8(pair).ok().filter(|_| digits)?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect()
}

/// The authority's certificate: the only thing either end trusts.
#[derive(Clone, PartialEq, Eq)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    fingerprint: Fingerprint,
}

impl CaCertificate {
    /// From PEM text that holds exactly one certificate.
    ///
    /// # Errors
    /// It is none, more than one, or no authority's.
    pub fn from_pem(pem: &str) -> Result<Self, Fault> {
        let mut found = CertificateDer::pem_slice_iter(pem.as_bytes());
        match (found.next(), found.next()) {
            (Some(Ok(der)), None) => Self::from_der(der),
            _ => Err(Fault::permanent("the authority's certificate is not one PEM certificate")
                .remedy("enrol the server again, or put ca.pem back from a backup")),
        }
    }

    /// From DER.
    ///
    /// # Errors
    /// It is not an authority's certificate.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, Fault> {
        let is_ca = matches!(X509Certificate::from_der(&der), Ok((rest, cert)) if rest.is_empty() && cert.is_ca());
        if !is_ca {
            return Err(Fault::permanent(
                "the certificate given as the authority's is not an authority's",
            ));
        }
        let fingerprint = Fingerprint::of(&der);
        Ok(Self { der, fingerprint })
    }

    /// The SHA-256 of its DER.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Its DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// It as PEM text.
    pub fn to_pem(&self) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(&self.der);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for (at, digit) in text.char_indices() {
            if at > 0 && at % 64 == 0 {
                pem.push('\n');
            }
            pem.push(digit);
        }
        pem.push_str("\n-----END CERTIFICATE-----\n");
        pem
    }

    /// Its public key (as SubjectPublicKeyInfo), and when it ends, in Unix seconds.
    ///
    /// # Errors
    /// Never, for one that could be made.
    pub fn public_key_and_end(&self) -> Result<(Vec<u8>, i64), Fault> {
        let (_, cert) = X509Certificate::from_der(&self.der)
            .map_err(|e| Fault::bug("the authority's certificate cannot be read").caused_by(&e))?;
        Ok((cert.public_key().raw.to_vec(), cert.validity().not_after.timestamp()))
    }
}

impl fmt::Debug for CaCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CaCertificate").field(&self.fingerprint).finish()
    }
}

/// What a party's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Whose it is.
    pub party: Party,
    /// Its serial number.
    pub serial: Serial,
    /// The SHA-256 of its DER.
    pub fingerprint: Fingerprint,
    /// Not valid before this, in Unix seconds.
    pub not_before: i64,
    /// Not valid after this, in Unix seconds.
    pub not_after: i64,
}

impl Leaf {
    /// Reads a certificate. Its names must be exactly one DNS name and one URI, both of the same
    /// party, the URI of the authority `ca`. The signature is not checked here.
    ///
    /// # Errors
    /// It is no certificate, or its names are not those that the authority writes.
    pub fn parse(der: &CertificateDer<'_>, ca: &Fingerprint) -> Result<Self, Fault> {
        let (rest, cert) = X509Certificate::from_der(der)
            .map_err(|e| Fault::permanent("the certificate cannot be read").caused_by(&e))?;
        if !rest.is_empty() || cert.is_ca() {
            return Err(Fault::permanent("the certificate is not a party's certificate"));
        }
        let party = party_of(&cert, ca)?;
        Ok(Self {
            party,
            serial: Serial::from_bytes(cert.raw_serial()),
            fingerprint: Fingerprint::of(der),
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
        })
    }

    /// Whether it is time for a new one.
    pub fn renewal_due(&self, now: i64) -> bool {
        renewal_due(self.not_before, self.not_after, now)
    }

    /// Whether its time is over.
    pub fn expired(&self, now: i64) -> bool {
        now > self.not_after
    }
}

fn party_of(cert: &X509Certificate<'_>, ca: &Fingerprint) -> Result<Party, Fault> {
    let strange = |problem: String| {
        Err(Fault::permanent(format!("the certificate's names are not Ferry's: {problem}"))
            .remedy("enrol the server again with this controller"))
    };
    let names = cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(san) => Some(&san.general_names),
        _ => None,
    });
    let Some([first, second]) = names.map(Vec::as_slice) else {
        return strange("there must be one DNS name and one URI".to_owned());
    };
    let (GeneralName::DNSName(dns), GeneralName::URI(uri)) = (first, second) else {
        return strange("there must be one DNS name and one URI".to_owned());
    };
    match dns.parse::<Party>() {
        Ok(party) if party.uri(ca) == *uri => Ok(party),
        Ok(party) => strange(format!("{uri:?} is not the URI of {party} under this authority")),
        Err(invalid) => strange(invalid.to_string()),
    }
}

/// Checks that the authority signed a certificate; says nothing about its validity in time.
///
/// # Errors
/// Somebody else signed it.
pub(crate) fn check_signed_by(der: &CertificateDer<'_>, ca: &CaCertificate) -> Result<(), Fault> {
    let unread = |e: x509_parser::nom::Err<x509_parser::error::X509Error>| {
        Fault::permanent("the certificate cannot be read").caused_by(&e)
    };
    let (_, leaf) = X509Certificate::from_der(der).map_err(unread)?;
    let (_, ca) = X509Certificate::from_der(&ca.der).map_err(unread)?;
    if leaf.issuer().as_raw() != ca.subject().as_raw() {
        return Err(Fault::permanent("the certificate names another authority than ours"));
    }
    leaf.verify_signature(Some(ca.public_key()))
        .map_err(|e| Fault::permanent("the authority did not sign the certificate").caused_by(&e))
}

/// Whether a certificate is to be renewed: from one third of its lifetime on (day 30 of 90), so
/// that two thirds are left for a controller that cannot be reached.
pub fn renewal_due(not_before: i64, not_after: i64, now: i64) -> bool {
    let lifetime = not_after.saturating_sub(not_before).max(0);
    now >= not_before.saturating_add(lifetime / 3)
}

/// The time in Unix seconds, as certificates and grants count it. A clock before 1970 is 1970:
/// then nothing is valid yet, which is a clear error.
pub fn unix_now() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_and_serials_survive_their_text() {
        let print = Fingerprint::of(b"x");
        assert_eq!(print.to_string().parse::<Fingerprint>().unwrap(), print);
        assert_eq!(print.short().len(), 16);
        assert!("zz".repeat(32).parse::<Fingerprint>().is_err());
        assert!("+1".repeat(32).parse::<Fingerprint>().is_err());
        assert_eq!("00ff01".parse::<Serial>().unwrap(), Serial::from_bytes(&[0xff, 1]));
        for bad in ["", "0", "+1", "é", &"11".repeat(21)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn renewal_starts_after_a_third() {
        let day = 86_400;
        assert!(!renewal_due(0, 90 * day, 30 * day - 1));
        assert!(renewal_due(0, 90 * day, 30 * day));
        assert!(renewal_due(0, 90 * day, 1000 * day));
        assert!(!renewal_due(100, 190, 0));
        assert!(renewal_due(10, 0, 10), "a certificate without lifetime is due");
    }
}
