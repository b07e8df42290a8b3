//! Text that must not appear in logs: password hashes, and passwords of temporary users.

use std::fmt;

use rand::Rng;
use serde::{Deserialize, Serialize};

/// A password hash. Crosses the wire, but is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { "(hidden)" })
    }
}

/// A random password of 160 bits in hexadecimal, safe to write anywhere unquoted.
pub(crate) fn random_password() -> String {
    let bytes: [u8; 20] = rand::rng().random();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret("*94BDCEBE19083CE2A1F959FD02F964C7AF4CFC29".to_owned());
        assert_eq!(format!("{secret:?}"), "(hidden)");
        assert_eq!(
            serde_json::to_string(&secret).expect("serialises"),
            format!("\"{}\"", secret.0)
        );
    }

    #[test]
    fn passwords_differ() {
        assert_ne!(random_password(), random_password());
        assert_eq!(random_password().len(), 40);
    }
}
