//! What is outside the hostile account, on both servers: planted before anything moves, and compared by
//! the usual tools with what it was, bit for bit and times included.

use anyhow::{Result, ensure};

use crate::exec::EXEC_LIMIT;
use crate::host::Host;

const NEIGHBOUR: &str = include_str!("files/neighbour.sh");
const LOOK: &str = include_str!("files/look.sh");

/// Plants a neighbour, secrets, and programs with rights of their own.
pub(super) fn plant(host: &Host) -> Result<()> {
    host.sh(NEIGHBOUR).map(|_| ())
}

/// All of it, a line each.
pub(super) struct Outside([(String, Vec<String>); 2]);

impl Outside {
    /// Looks at both servers.
    pub(super) fn look(hosts: [&Host; 2]) -> Result<Outside> {
        let look = |host: &Host| -> Result<_> {
            let said = host.exec_with(&["bash", "-uc", LOOK], &[], EXEC_LIMIT)?.ok()?;
            let lines: Vec<String> = said.lines().map(str::to_owned).collect();
            for sign in
                ["/home/neighbour/secret|f|640", "right /usr/local/bin/canary-setuid|f|4755"]
            {
                ensure!(
                    lines.iter().any(|line| line.starts_with(sign)),
                    "{} does not show {sign}, so nothing would be seen: {said}",
                    host.name()
                );
            }
            Ok((host.name().to_owned(), lines))
        };
        Ok(Outside([look(hosts[0])?, look(hosts[1])?]))
    }

    /// Fails with the lines that came or went.
    pub(super) fn expect_same(&self, now: &Outside, when: &str) -> Result<()> {
        for ((name, before), (_, now)) in self.0.iter().zip(&now.0) {
            let only = |these: &[String], those: &[String]| -> Vec<String> {
                these.iter().filter(|line| !those.contains(line)).cloned().collect()
            };
            let (gone, new) = (only(before, now), only(now, before));
            ensure!(
                gone.is_empty() && new.is_empty() && before.len() == now.len(),
                "{when}: something outside the account changed on {name}; gone: {gone:#?}, new: {new:#?}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside(line: &str) -> Outside {
        let both = |line: &str| vec!["same".to_owned(), line.to_owned()];
        Outside([("client".to_owned(), both("kept")), ("transit".to_owned(), both(line))])
    }

    #[test]
    fn a_line_that_came_went_or_was_doubled_is_found() {
        outside("kept").expect_same(&outside("kept"), "at rest").unwrap();
        for other in ["changed", "same"] {
            let fault = outside("kept").expect_same(&outside(other), "then").unwrap_err();
            assert!(fault.to_string().contains("on transit"), "{fault}");
            assert!(outside(other).expect_same(&outside("kept"), "then").is_err(), "{other}");
        }
    }
}
