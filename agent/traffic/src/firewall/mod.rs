//! The nftables rules that put the redirector in front of the web server: the table
//! `inet ferry_redirect`, and, where sites shall see their visitors' own addresses, the policy
//! route that brings the web server's answers back to the redirector.
//!
//! It owns that table, one routing table and one routing rule per address family, and touches no
//! other. It must not know accounts: rules cannot see names, so while armed the redirector is in
//! the path of every site of the server.
//!
//! What is armed does not survive a reboot or a `flush ruleset`; the agent arms again from its
//! ledger. Nothing is opened by the loss: what a fence denies is denied by the services
//! themselves.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use ferry_proto::Fault;

use crate::client::Redirector;

mod kernel;

use kernel::{MARK, add_routing, families, has_routing, has_rule, nft, remove_routing};
pub use kernel::{StandingRule, list};

/// The only nftables table that this module touches.
pub const TABLE: &str = "ferry_redirect";

/// The user that `ferry-redirector` runs as.
pub const REDIRECTOR_USER: &str = "ferry-redirector";

/// How often [`withdraw`] asks the redirector.
const LOOK_AFTER: Duration = Duration::from_millis(100);

/// Only a connection that opens now. Arming may be what makes the kernel follow connections at all; to
/// it the next packet of one that was made before is then the first, and would be sent to a socket
/// that does not know it. One that matches no rule stays where it is, for good.
const OPENS: &str = "tcp flags & (fin | syn | rst | ack) == syn";

/// Before other tables' destination NAT (-100), so that a container's port mapping does not win.
const NAT_PRIORITY: i32 = -110;

/// After all destination NAT.
const STRAYS_PRIORITY: i32 = -90;

/// The conntrack zone in which the kernel files the redirector's connections that bear a visitor's
/// address.
const ZONE: u16 = 7480;

/// What is redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The web server's HTTP ports.
    pub http_ports: BTreeSet<u16>,
    /// The web server's HTTPS ports.
    pub https_ports: BTreeSet<u16>,
    /// Where the redirector accepts HTTP.
    pub redirect_http: u16,
    /// Where the redirector accepts HTTPS.
    pub redirect_https: u16,
    /// Whose own connections are let through.
    pub redirector_uid: u32,
    /// Connections that root has given this mark go to the web server itself: the agent looks
    /// whether it has taken a configuration. (Only who may administer the network can set a mark.)
    pub passing_mark: Option<u32>,
    /// The service addresses; empty: every address of this server, loopback included.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether the redirector opens connections with the visitor's address (the key
    /// `keep_visitor_address` of its configuration); answers are then routed back to it.
    pub keep_visitor_address: bool,
}

impl Rules {
    /// Ports 80 and 443 on every address, to the redirector's usual ports.
    pub fn usual(redirector_uid: u32) -> Self {
        Self {
            http_ports: BTreeSet::from([80]),
            https_ports: BTreeSet::from([443]),
            redirect_http: crate::config::HTTP_PORT,
            redirect_https: crate::config::HTTPS_PORT,
            redirector_uid,
            passing_mark: None,
            addresses: BTreeSet::new(),
            keep_visitor_address: true,
        }
    }

    /// The service ports, each with the port of the redirector that takes them.
    fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        let http = self.http_ports.iter().map(|port| (*port, self.redirect_http));
        http.chain(self.https_ports.iter().map(|port| (*port, self.redirect_https)))
    }

    /// What selects the destination, once per rule needed, and the family of its addresses if it names
    /// them.
    fn destinations(&self) -> Vec<(&'static str, String)> {
        if self.addresses.is_empty() {
            return vec![("", "fib daddr type local".to_owned())];
        }
        let family = |name: &'static str, wanted: fn(&IpAddr) -> bool| {
            let list: Vec<_> =
                self.addresses.iter().filter(|a| wanted(a)).map(ToString::to_string).collect();
            (!list.is_empty()).then(|| {
                (name, format!("{name} daddr {{ {} }} fib daddr type local", list.join(", ")))
            })
        };
        [family("ip", IpAddr::is_ipv4), family("ip6", IpAddr::is_ipv6)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Rules that bring what opens now to the redirector, by `way`.
    fn redirects(&self, text: &mut String, way: impl Fn(&str) -> String, comment: &str) {
        for (family, destination) in self.destinations() {
            let way = way(family);
            for (port, to) in self.pairs() {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "    {destination} tcp dport {port} {OPENS} {way} to :{to} comment \"{comment}\""
                );
            }
        }
    }

    /// Rules that translate the address of what opens now.
    fn translates(&self, text: &mut String, comment: &str) {
        self.redirects(text, |_| "redirect".to_owned(), comment);
    }

    /// Addresses are translated once a connection. Of one that was made before arming and ended after
    /// it the kernel has seen the end only, and remembers it for up to minutes, untranslated; a new
    /// one from the same port takes its place, or is taken for nonsense, and would pass by. It is given
    /// to the redirector's socket as it is. Not by way of `lo`: there the redirector's own come by, too.
    fn strays(&self, text: &mut String, comment: &str) {
        let _ = writeln!(
            text,
            "  }}\n  chain strays {{\n    type filter hook prerouting priority {STRAYS_PRIORITY}; policy accept;\n\
             \x20   iifname \"lo\" return comment \"{comment}\"\n\
             \x20   ct status & dnat == dnat return comment \"{comment}\""
        );
        self.redirects(text, |family| format!("tproxy {family}"), comment);
    }

    /// The whole table, replacing what was there in one transaction. It is made of numbers and
    /// addresses only.
    fn script(&self, redirecting: bool) -> String {
        self.table(redirecting, &self.comment())
    }

    fn table(&self, redirecting: bool, comment: &str) -> String {
        let mut text = format!(
            "add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n\
             \x20 chain prerouting {{\n\
             \x20   type nat hook prerouting priority {NAT_PRIORITY}; policy accept;\n"
        );
        if redirecting {
            self.translates(&mut text, comment);
            self.strays(&mut text, comment);
        }
        let _ = write!(
            text,
            "  }}\n  chain output {{\n    type nat hook output priority {NAT_PRIORITY}; policy accept;\n\
             \x20   meta skuid {} return comment \"{comment}\"\n",
            self.redirector_uid
        );
        if let Some(mark) = self.passing_mark {
            let _ =
                writeln!(text, "    meta skuid 0 meta mark {mark:#x} return comment \"{comment}\"");
        }
        if redirecting {
            self.translates(&mut text, comment);
        }
        text.push_str("  }\n");
        if self.keep_visitor_address {
            // A connection whose source is a visitor's address but whose owner is the redirector
            // is marked; packets of the web server that answer it carry the mark to the routing
            // rule, which delivers them here instead of sending them to the visitor.
            let _ = write!(
                text,
                "  chain answers {{\n    type route hook output priority -150; policy accept;\n\
                 \x20   meta skuid {uid} fib saddr type != local ct mark set {MARK:#x} comment \"{comment}\"\n\
                 \x20   ct mark {MARK:#x} ct direction reply meta mark set {MARK:#x} comment \"{comment}\"\n  }}\n",
                uid = self.redirector_uid
            );
            // The port that such a connection has may be one that the visitor takes next, and the
            // kernel would take the two for one: they are told apart by zone, the answers to them by
            // the ports that they come from. Not by owner: what a socket sends whose process has
            // closed it has none.
            text.push_str(
                "  chain own {\n    type filter hook output priority -300; policy accept;\n",
            );
            for (_, destination) in self.destinations() {
                for (port, _) in self.pairs() {
                    let _ = writeln!(
                        text,
                        "    fib saddr type != local {destination} tcp dport {port} \
                         ct original zone set {ZONE} comment \"{comment}\""
                    );
                }
            }
            text.push_str("  }\n");
        }
        text.push_str("}\n");
        text
    }

    /// Identifies these rules in a listing, and those that an older version made of the same.
    fn comment(&self) -> String {
        // FNV-1a: it only has to tell different rules apart, and must not change with the compiler.
        let hash = self.table(true, "").bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("ferry {hash:016x}")
    }

    fn check(&self) -> Result<(), Fault> {
        let listening = [self.redirect_http, self.redirect_https];
        if self.pairs().next().is_none() {
            return Err(Fault::precondition("no service port is named for the redirector")
                .remedy("name at least one HTTP or HTTPS port"));
        }
        if self.pairs().any(|(port, _)| port == 0 || listening.contains(&port)) {
            return Err(Fault::precondition(
                "a port of the redirector itself cannot be redirected to it",
            )
            .remedy("name the ports of the web server"));
        }
        if self.redirector_uid == 0 {
            return Err(Fault::precondition(
                "the redirector must not run as root: connections of root would not be redirected",
            )
            .remedy("run it as the user ferry-redirector"));
        }
        Ok(())
    }
}

/// The number of the redirector's user.
///
/// # Errors
/// There is no such user.
pub fn redirector_uid() -> Result<u32, Fault> {
    let user = nix::unistd::User::from_name(REDIRECTOR_USER).map_err(|e| {
        Fault::transient(format!("user {REDIRECTOR_USER} cannot be looked up")).caused_by(&e)
    })?;
    user.map(|user| user.uid.as_raw()).ok_or_else(|| {
        Fault::precondition(format!("user {REDIRECTOR_USER} does not exist"))
            .remedy("install the package ferry-agent again, or run systemd-sysusers")
    })
}

/// Puts the redirector in front of the web server, in one transaction that replaces what stood.
/// Connections made before go on where they are. Repeating it changes nothing.
///
/// # Errors
/// Rules that make no sense, or `nft` or `ip` failed; then what was armed before is still armed.
pub async fn arm(rules: &Rules) -> Result<(), Fault> {
    rules.check()?;
    if is_armed(rules).await? {
        return Ok(());
    }
    if rules.keep_visitor_address {
        for family in families() {
            add_routing(family).await?;
        }
    }
    nft(&rules.script(true)).await
}

/// Stops redirecting new connections, while running ones go on through the redirector. To be
/// followed by [`disarm`] when they have ended: the kernel stops translating addresses of running
/// connections when the last such table goes.
///
/// # Errors
/// `nft` failed.
pub async fn stand_down(rules: &Rules) -> Result<(), Fault> {
    rules.check()?;
    nft(&rules.script(false)).await
}

/// The gentle end: [`stand_down`], a wait of at most `within` for the visitors that are still on
/// their way through the redirector, then [`disarm`].
///
/// # Errors
/// `nft` or `ip` failed.
pub async fn withdraw(
    rules: &Rules,
    redirector: &Redirector,
    within: Duration,
) -> Result<(), Fault> {
    if !list().await?.is_empty() {
        stand_down(rules).await?;
        let gone = async {
            // One that cannot be asked passes nobody on.
            while redirector.overview().await.is_ok_and(|overview| overview.visitors > 0) {
                tokio::time::sleep(LOOK_AFTER).await;
            }
        };
        // Those that take longer are broken off.
        let _ = tokio::time::timeout(within, gone).await;
    }
    disarm().await
}

/// Takes the table and the policy route away. Disarming what is not armed succeeds.
///
/// # Errors
/// `nft` or `ip` failed.
pub async fn disarm() -> Result<(), Fault> {
    nft(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")).await?;
    for family in families() {
        remove_routing(family).await?;
    }
    Ok(())
}

/// Whether exactly these rules stand.
///
/// # Errors
/// `nft` or `ip` failed.
pub async fn is_armed(rules: &Rules) -> Result<bool, Fault> {
    let comment = rules.comment();
    let each = rules.destinations().len() * rules.pairs().count();
    let (answers, own) = if rules.keep_visitor_address { (2, each) } else { (0, 0) };
    let standing = list().await?;
    let stand = |chain: &str, wanted: usize| {
        let ours = |r: &&StandingRule| r.chain == chain && r.comment == comment;
        standing.iter().filter(ours).count() == wanted
    };
    // The redirector's own connections pass, and those with the mark.
    let passing = 1 + usize::from(rules.passing_mark.is_some());
    let wanted = [
        ("prerouting", each),
        ("strays", 2 + each),
        ("output", each + passing),
        ("answers", answers),
        ("own", own),
    ];
    if !wanted.iter().all(|(chain, rules)| stand(chain, *rules)) {
        return Ok(false);
    }
    if rules.keep_visitor_address {
        for family in families() {
            if !has_rule(family).await? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// What of the rules stands in the kernel, whoever has put it there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// The table; whether it redirects new connections.
    pub table: Option<bool>,
    /// The policy routes, by what they are in the words of `ip`.
    pub routing: Vec<String>,
}

/// Looks what stands. Changes nothing.
///
/// # Errors
/// `nft` or `ip` failed.
pub async fn standing() -> Result<Standing, Fault> {
    let mut standing = Standing::default();
    if kernel::table_stands().await? {
        let redirects = list().await?.iter().any(|rule| rule.chain == "prerouting");
        standing.table = Some(redirects);
    }
    for family in families() {
        standing.routing.extend(has_routing(family).await?);
    }
    Ok(standing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_cannot_work_are_refused() {
        let good = Rules::usual(990);
        assert!(good.check().is_ok());
        assert!(Rules { redirector_uid: 0, ..good.clone() }.check().is_err());
        assert!(Rules { http_ports: BTreeSet::from([7480]), ..good.clone() }.check().is_err());
        let none = Rules { http_ports: BTreeSet::new(), https_ports: BTreeSet::new(), ..good };
        assert!(none.check().is_err());
    }

    #[test]
    fn different_rules_have_different_comments() {
        let one = Rules::usual(990);
        let other = Rules { redirector_uid: 991, ..one.clone() };
        assert_ne!(one.comment(), other.comment());
        assert!(one.script(true).contains(&one.comment()));
        assert!(!one.script(false).contains("redirect to"));
    }

    #[test]
    fn addresses_restrict_each_family_by_itself() {
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap());
        let rules = Rules { addresses: BTreeSet::from(addresses), ..Rules::usual(990) };
        let script = rules.script(true);
        assert!(script.contains("ip daddr { 192.0.2.1 } fib daddr type local tcp dport 80 "));
        assert!(script.contains("ip6 daddr { 2001:db8::1 } fib daddr type local tcp dport 443 "));
    }
}
