//! Who is open: each end is asked directly, part by part, past all redirects and past Ferry.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::sample::Sample;

/// How long one look may take.
const LOOK: Duration = Duration::from_secs(40);

/// Prints a word for each part of the account that lets its owner or visitors in on this host, by itself.
const SCRIPT: &str = r#"
me=$(hostname)
curl -sS -m 8 --resolve demo.example:80:127.0.0.1 http://demo.example/read 2>/dev/null |
    grep -q "^ok .* $me\$" && echo site
timeout 8 mariadb -udemo_shop -psample-shop-password demo_shop -e 'SELECT 1' >/dev/null 2>&1 && echo mariadb
PGCONNECT_TIMEOUT=8 psql -At postgresql://demo_app:sample-app-password@127.0.0.1/demo_app \
    -c 'SELECT 1' >/dev/null 2>&1 </dev/null && echo postgresql
curl -sSk -m 8 --url imaps://127.0.0.1/ -u info@demo.example:sample-info-password \
    -X 'STATUS INBOX (UIDVALIDITY)' 2>/dev/null | grep -q UIDVALIDITY && echo imap
crontab -u demo -l 2>/dev/null | grep -q . && echo cron
:
"#;

/// What must be open where an account is served. Cron begins only in the minute after the fence.
const PARTS: [&str; 4] = ["site", "mariadb", "postgresql", "imap"];

/// What of an account is open at two ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    ends: [(String, BTreeSet<String>); 2],
}

impl Ends {
    /// Looks at both.
    pub fn look(hosts: [&Host; 2], account: &Sample) -> Result<Ends> {
        let open = |host: &Host| -> Result<(String, BTreeSet<String>)> {
            let script = account.named(SCRIPT);
            let said = host.exec_with(&["sh", "-uc", &script], &[], LOOK)?.ok();
            let said = said.with_context(|| format!("looking at {}", host.name()))?;
            Ok((host.name().to_owned(), said.lines().map(str::to_owned).collect()))
        };
        Ok(Ends { ends: [open(hosts[0])?, open(hosts[1])?] })
    }

    /// The one end that serves, if one does wholly and the other in nothing.
    pub fn server(&self) -> Option<&str> {
        let whole = |open: &BTreeSet<String>| PARTS.iter().all(|part| open.contains(*part));
        match &self.ends {
            [(name, open), (_, other)] | [(_, other), (name, open)]
                if whole(open) && other.is_empty() =>
            {
                Some(name)
            }
            _ => None,
        }
    }

    /// What is open at both ends at once.
    pub fn both(&self) -> Vec<&str> {
        let [(_, one), (_, other)] = &self.ends;
        one.intersection(other).map(String::as_str).collect()
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = |open: &BTreeSet<String>| match open.len() {
            0 => "nothing".to_owned(),
            _ => open.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
        };
        let [(one, here), (other, there)] = &self.ends;
        write!(f, "open on {one}: {}; on {other}: {}", open(here), open(there))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(client: &[&str], transit: &[&str]) -> Ends {
        let set = |parts: &[&str]| parts.iter().map(|p| (*p).to_owned()).collect();
        Ends { ends: [("client".into(), set(client)), ("transit".into(), set(transit))] }
    }

    #[test]
    fn one_end_serves_only_if_it_does_wholly_and_the_other_in_nothing() {
        assert_eq!(ends(&PARTS, &[]).server(), Some("client"));
        assert_eq!(ends(&[], &PARTS).server(), Some("transit"));
        for (client, transit) in
            [(&PARTS[..], &["cron"][..]), (&PARTS[..3], &[]), (&[], &[]), (&PARTS, &PARTS)]
        {
            assert_eq!(ends(client, transit).server(), None, "{client:?} {transit:?}");
        }
    }

    #[test]
    fn what_is_open_twice_is_named() {
        assert_eq!(ends(&PARTS, &["imap"]).both(), ["imap"]);
        assert!(ends(&PARTS, &["cron"]).both().is_empty());
        let shown = ends(&["site"], &[]).to_string();
        assert_eq!(shown, "open on client: site; on transit: nothing");
    }
}
