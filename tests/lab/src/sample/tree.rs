//! What of the home must be the same wherever the account lives, looked at by the usual tools and
//! not by Ferry's.

use anyhow::{Result, bail, ensure};

use crate::host::Host;

/// Lists what does not change while visitors are served, one line per fact. Numeric ids may be
/// mapped, so owners are told by name; the size of a directory is the file system's own affair.
const LIST: &str = r#"
cd /home/demo
export LC_ALL=C
prune='( -path ./data -o -path ./mail ) -prune -o'
{
    find . $prune ! -type d -printf 'file %p|%y|%m|%u|%g|%n|%s|%T@|%l\0'
    find . $prune -type d -printf 'directory %p|%m|%u|%g|%T@\0'
} | sort -z | tr '\0\n' '\n~'
find . $prune -type f -links +1 -printf '%i %p\0' | sort -z |
    awk 'BEGIN { RS = "\0" } { g = g ($1 == last ? " = " : "\nlinked ") $2; last = $1 } END { print g }' | sort
find . $prune -type f -print0 | sort -z | xargs -0 sha256sum --
getfacl -R -s site kinds private 2>/dev/null
getfattr -R -h -d -m '^user\.' site kinds private 2>/dev/null
getent passwd demo | cut -d: -f5-
getent shadow demo | cut -d: -f2
id -Gn demo | tr ' ' '\n' | sort
"#;

/// The lines of one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(Vec<String>);

impl Tree {
    /// Looks at the home on this host.
    pub fn of(host: &Host) -> Result<Tree> {
        let output = host.exec(&["bash", "-uc", LIST])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        ensure!(
            output.status.success() && lines.len() > 1000,
            "cannot list the home on {}: {} lines, {}",
            host.name(),
            lines.len(),
            output.error_text()
        );
        Ok(Tree(lines))
    }

    /// How many facts were compared.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails with the first differences.
    pub fn expect_same(&self, other: &Tree, what: &str) -> Result<()> {
        let missing: Vec<&String> =
            self.0.iter().filter(|l| !other.0.contains(l)).take(8).collect();
        let new: Vec<&String> = other.0.iter().filter(|l| !self.0.contains(l)).take(8).collect();
        if missing.is_empty() && new.is_empty() && self.0.len() == other.0.len() {
            return Ok(());
        }
        bail!("the home is not the same {what}; gone: {missing:#?}; new: {new:#?}")
    }
}

/// What a list of facts does not show: that holes are still holes, and the FIFO is one.
pub fn check_kinds(host: &Host) -> Result<()> {
    let blocks = host.sh("stat -c %b /home/demo/kinds/sparse")?;
    let blocks: u64 = blocks.trim().parse()?;
    ensure!(blocks * 512 < 1 << 20, "the sparse file has {blocks} blocks on {}", host.name());
    host.sh("test -p /home/demo/kinds/fifo")?;
    Ok(())
}
