//! Moves that cannot be: each is refused with a clear error, and changes nothing on either server.

use anyhow::{Context, Result, ensure};

use super::refused;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::run::Output;
use crate::sample;
use crate::stage::Stage;

/// Whatever Ferry could change on a server: users, groups, files of services, databases, their users,
/// and the firewall. Counters count on by themselves.
const LOOK: &str = r#"
export LC_ALL=C
getent passwd | sed 's/^/user /'; getent group | sed 's/^/group /'
ls -A /home | sed 's/^/home /'
find /etc/nginx /etc/php /etc/postfix /etc/dovecot /etc/ferry /etc/systemd/system /var/spool/cron     -printf '%y %m %u %p %l
' -type f -exec sha256sum {} \; 2>/dev/null | sort
mariadb -N -e 'SELECT CONCAT("mariadb user ", User, "@", Host) FROM mysql.user; SHOW DATABASES' | sort
runuser -u postgres -- psql -Atc "SELECT 'role ' || rolname FROM pg_roles UNION ALL
    SELECT 'database ' || datname FROM pg_database ORDER BY 1"
nft -s list ruleset | sed 's/^/nft /'
ip rule | sed 's/^/rule /'
"#;

/// Both servers as they are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Untouched([(String, String); 2]);

impl Untouched {
    /// Looks at these servers.
    pub(super) fn look(hosts: [&Host; 2]) -> Result<Untouched> {
        let look = |host: &Host| -> Result<_> { Ok((host.name().to_owned(), host.sh(LOOK)?)) };
        Ok(Untouched([look(hosts[0])?, look(hosts[1])?]))
    }

    /// Fails with the lines that came or went.
    pub(super) fn expect_same(&self, now: &Untouched, what: &str) -> Result<()> {
        for ((name, before), (_, now)) in self.0.iter().zip(&now.0) {
            let differing = |from: &str, to: &str| -> Vec<String> {
                from.lines().filter(|l| !to.lines().any(|o| o == *l)).map(str::to_owned).collect()
            };
            let (gone, new) = (differing(before, now), differing(now, before));
            ensure!(
                gone.is_empty() && new.is_empty(),
                "{what}: {name} changed; gone: {gone:#?}, new: {new:#?}"
            );
        }
        Ok(())
    }
}

/// The two servers, and how they were.
struct Bad<'a> {
    fleet: Fleet<'a>,
    hosts: [&'a Host; 2],
    before: Untouched,
}

impl Bad<'_> {
    /// The move is refused with these words, and all is as it was.
    fn expect(&self, what: &str, account: &str, to: &str, words: &[&str]) -> Result<()> {
        let said = self.fleet.ferry(&["move", account, "--to", to, "--yes"])?;
        refused(what, &said, words)
    }

    fn expect_untouched(&self, what: &str) -> Result<()> {
        sample::visit(self.hosts[0]).with_context(|| format!("the site after {what}"))?;
        let standings = self.fleet.standings(sample::ACCOUNT)?;
        ensure!(
            standings == [("client".to_owned(), "serving".to_owned())],
            "after {what} the account stands so: {standings:?}"
        );
        self.before.expect_same(&Untouched::look(self.hosts)?, what)
    }
}

/// Tries them all.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account_alone()?;
    let hosts = [stage.host("client")?, stage.host("transit")?];
    let bad = Bad { fleet, hosts, before: Untouched::look(hosts)? };
    bad.expect(
        "an unknown account",
        "nobody-knows",
        "transit",
        &["no server serves", "nobody-knows"],
    )?;
    bad.expect("an unknown target", sample::ACCOUNT, "nowhere", &["no server is called nowhere"])?;
    bad.expect_untouched("unknown names")?;
    no_space(&bad)?;
    user_taken(&bad)?;
    missing_database(&bad)?;
    broken_definition(&bad)?;
    no_route(&bad)
}

fn no_space(bad: &Bad<'_>) -> Result<()> {
    let transit = bad.hosts[1];
    let free = transit.sh("df --output=avail -k /home | tail -1")?;
    let fill = free.trim().parse::<u64>()?.saturating_sub(30_000);
    transit.sh(&format!("fallocate -l {fill}K /home/filler"))?;
    let said = bad.expect(
        "a target without space",
        sample::ACCOUNT,
        "transit",
        &["mb free", "free space on the target"],
    );
    transit.sh("rm /home/filler")?;
    said?;
    bad.expect_untouched("the target without space")
}

fn user_taken(bad: &Bad<'_>) -> Result<()> {
    let transit = bad.hosts[1];
    transit.sh("useradd --no-create-home demo")?;
    let said = bad.expect(
        "a user taken at the target",
        sample::ACCOUNT,
        "transit",
        &["user demo", "already"],
    );
    transit.sh("userdel demo")?;
    said?;
    bad.expect_untouched("the user taken")
}

fn missing_database(bad: &Bad<'_>) -> Result<()> {
    let definition = sample::DEFINITION.replace(
        "name = \"demo_app\"\n\n[[database_users]]",
        "name = \"demo_gone\"\n\n[[database_users]]",
    );
    ensure!(definition != sample::DEFINITION, "the definition could not be changed");
    bad.hosts[0].write_file("/etc/ferry/accounts.d/demo.toml", 0o644, definition.as_bytes())?;
    let said = bad.expect(
        "a database missing at the source",
        sample::ACCOUNT,
        "transit",
        &["demo_gone", "does not have"],
    );
    sample::define(bad.hosts[0])?;
    said?;
    bad.expect_untouched("the missing database")
}

fn broken_definition(bad: &Bad<'_>) -> Result<()> {
    let (client, broken) = (bad.hosts[0], "/etc/ferry/accounts.d/broken.toml");
    client.write_file(broken, 0o644, b"name = \"broken\"\nhome = 7\n")?;
    let shown: Output = client.exec(&["ferry-agent", "accounts"])?;
    refused("a broken definition", &shown, &["broken.toml:2:", "mend this line"])?;
    let text = shown.text();
    ensure!(text.contains("demo: user demo"), "a broken definition disturbs the others: {text}");
    client.sh(&format!("rm {broken}"))?;
    bad.expect_untouched("the broken definition")
}

fn no_route(bad: &Bad<'_>) -> Result<()> {
    let [client, transit] = bad.hosts;
    bad.fleet.lab().block(client, transit)?;
    let said = bad.expect(
        "no route to the peer",
        sample::ACCOUNT,
        "transit",
        &["peer", "cannot be reached"],
    );
    bad.fleet.lab().unblock_all()?;
    said?;
    bad.expect_untouched("the cut")
}
