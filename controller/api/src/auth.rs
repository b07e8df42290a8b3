//! Who may call the operators' service: whoever has the token. Roles come later; the check is
//! here, in one place.

use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use ferry_proto::Fault;
use ferry_proto::channel::files;
use tonic::{Request, Status};

/// The operators' token.
#[derive(Clone)]
pub struct OperatorToken(String);

impl OperatorToken {
    /// Reads the token from `path`; makes one at the first start.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().len() >= 32 => return Ok(Self(text.trim().to_owned())),
            Ok(_) => {
                return Err(Fault::precondition(format!("{} is no token", path.display()))
                    .remedy("delete it and restart the controller, which makes a new one"));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Fault::io(format!("cannot read {}", path.display()), &e)),
        }
        let mut secret = [0u8; 32];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| Fault::transient("the system gives no random numbers"))?;
        let text: String = secret.iter().map(|b| format!("{b:02x}")).collect();
        // The group of the file's directory may read it: packaging gives it to operators.
        files::create_new(path, format!("{text}\n").as_bytes(), 0o640)?;
        Ok(Self(text))
    }

    /// Lets a request pass if it carries the token.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` otherwise.
    #[allow(clippy::result_large_err)]
    pub fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let given = request
            .metadata()
            .get("authorization")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "))
            .unwrap_or_default();
        verify_slices_are_equal(given.as_bytes(), self.0.as_bytes()).map_err(|_| {
            Status::unauthenticated(
                "the operators' token is missing or wrong: give --token-file, or FERRY_TOKEN_FILE",
            )
        })
    }
}
