//! What went wrong in a handshake or on a connection, as a sentence with a remedy. One place
//! knows rustls's errors and alerts; nobody else reads them.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError, Error, OtherError, PeerIncompatible};

use crate::Fault;

/// How deep a chain of causes is followed.
const MAX_DEPTH: usize = 32;

/// The answer where TLS 1.2 is asked for, which the configurations already exclude.
pub(crate) fn only_tls13() -> Error {
    Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)
}

/// The fault of an error on the way to `other`, which stands for "the controller at
/// 192.0.2.1:7443" or the like.
pub(crate) fn fault(other: &str, error: &io::Error) -> Fault {
    match find::<Error>(error) {
        Some(tls) => of_tls(other, tls),
        None => Fault::io(format!("no connection to {other}"), error),
    }
}

/// Why a channel that was open could not dial again, if that is why a call failed.
pub fn status_fault(status: &tonic::Status) -> Option<Fault> {
    find::<Fault>(status).cloned()
}

/// Finds an error of one type in a chain of causes. An `io::Error` hides what it wraps from
/// `source`.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    for _ in 0..MAX_DEPTH {
        let cause = next?;
        if let Some(found) = cause.downcast_ref::<E>() {
            return Some(found);
        }
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    None
}

fn of_tls(other: &str, error: &Error) -> Fault {
    match error {
        Error::InvalidCertificate(CertificateError::Other(ours)) => {
            return of_our_check(other, ours);
        }
        Error::InvalidCertificate(problem) => of_certificate(other, problem),
        Error::AlertReceived(alert) => of_alert(other, *alert),
        Error::NoCertificatesPresented => {
            Fault::permanent(format!("{other} showed no certificate"))
        }
        Error::NoApplicationProtocol => {
            Fault::permanent(format!("{other} speaks another protocol than Ferry's"))
                .remedy("check the address and the port")
        }
        Error::PeerIncompatible(_) | Error::InvalidMessage(_) => {
            Fault::permanent(format!("{other} does not speak TLS 1.3"))
                .remedy("check the address and the port, and for a proxy in between")
        }
        _ => Fault::transient(format!("the connection to {other} failed")),
    }
    .caused_by(error)
}

/// One of our own checks refused; rustls carries its fault but cannot show it.
fn of_our_check(other: &str, refusal: &OtherError) -> Fault {
    let message = format!("the certificate of {other} was refused");
    match refusal.0.downcast_ref::<Fault>() {
        Some(fault) => fault.clone().context(message),
        None => Fault::permanent(message).caused_by(refusal),
    }
}

fn of_certificate(other: &str, problem: &CertificateError) -> Fault {
    use CertificateError as E;
    match problem {
        E::UnknownIssuer | E::BadSignature => Fault::permanent(format!(
            "the certificate of {other} is not from our certificate authority"
        ))
        .remedy("check the address; if the controller was set up anew, enrol the server again"),
        E::Expired | E::ExpiredContext { .. } => {
            Fault::precondition(format!("the certificate of {other} has expired"))
                .remedy("compare the clocks of both servers; a server whose certificate has expired must be enrolled again")
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            Fault::precondition(format!("the certificate of {other} is not valid yet"))
                .remedy("compare the clocks of both servers")
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            Fault::permanent(format!("another party than {other} answered"))
                .remedy("check the address: it leads to another server of this fleet")
        }
        E::Revoked => Fault::permanent(format!("the certificate of {other} is revoked"))
            .remedy("enrol that server again if it is to come back"),
        _ => Fault::permanent(format!("the certificate of {other} was refused")),
    }
}

fn of_alert(other: &str, alert: AlertDescription) -> Fault {
    use AlertDescription as A;
    let enrol = "enrol this server again with a new token";
    match alert {
        A::CertificateRevoked => {
            Fault::permanent(format!("{other} refused us: our certificate is revoked"))
                .remedy(enrol)
        }
        A::CertificateExpired => Fault::permanent(format!(
            "{other} refused us: our certificate is not valid at this time"
        ))
        .remedy("compare the clocks of both servers; if it has expired, enrol this server again"),
        A::UnknownCA | A::DecryptError => Fault::permanent(format!(
            "{other} refused us: our certificate is from another authority"
        ))
        .remedy(enrol),
        A::CertificateRequired => {
            Fault::permanent(format!("{other} refused us: we showed no certificate")).remedy(enrol)
        }
        A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown | A::AccessDenied => {
            Fault::permanent(format!("{other} refused our certificate")).remedy(enrol)
        }
        A::ProtocolVersion | A::NoApplicationProtocol => {
            Fault::permanent(format!("{other} speaks another protocol than Ferry's"))
                .remedy("check the address and the port, and that both run compatible versions")
        }
        _ => Fault::transient(format!("{other} ended the connection")),
    }
}
