//! Who copies, and what each is told.

/// Programs that are part of a copy.
pub const PROGRAMS: [&str; 5] = ["ferry-agent", "rsync", "ssh", "sshd", "tar"];

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Agent to agent.
    Ferry,
    /// rsync through ssh.
    RsyncSsh,
    /// rsync from one to another that listens.
    RsyncDaemon,
    /// tar through ssh: it copies everything each time.
    TarSsh,
}

impl Who {
    /// All of them.
    pub const ALL: [Who; 4] = [Who::Ferry, Who::RsyncSsh, Who::RsyncDaemon, Who::TarSsh];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Who::Ferry => "ferry",
            Who::RsyncSsh => "rsync, ssh",
            Who::RsyncDaemon => "rsync, daemon",
            Who::TarSsh => "tar, ssh",
        }
    }

    /// What is run on the source to make the target equal.
    pub fn command(self, tree: &str) -> String {
        let rsync = "rsync -aHAXS --numeric-ids --delete";
        let source = format!("/srv/source/{tree}");
        match self {
            Who::Ferry => {
                format!("ferry-agent files copy --json {source} transit:/srv/target/{tree}")
            }
            Who::RsyncSsh => format!("{rsync} {source}/ root@transit:/srv/target/{tree}/"),
            Who::RsyncDaemon => format!("{rsync} {source}/ rsync://transit/target/{tree}/"),
            Who::TarSsh => format!(
                "tar -C {source} --xattrs --acls --sparse -cf - . | \
                 ssh root@transit tar -C /srv/target/{tree} --xattrs --acls -xpf -"
            ),
        }
    }
}
