//! Where things are on a host, and by which programs they are changed. Knows no account content.
//! Tests give a root of their own, and wrappers as programs.

use std::path::{Path, PathBuf};

use ferry_proto::ids::AccountName;

/// The programs that differ between a host and a private tree.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `systemctl`.
    pub systemctl: PathBuf,
    /// `nginx`.
    pub nginx: PathBuf,
    /// What stands before the version in the name of a PHP-FPM: `/usr/sbin/php-fpm` for
    /// `/usr/sbin/php-fpm8.2`.
    pub php_fpm: PathBuf,
}

/// A host's tree and programs.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    /// The programs.
    pub programs: Programs,
    /// Ports on which the sites of this host take connections from the redirector.
    pub redirector_ports: RedirectorPorts,
    /// The port of plain HTTP for visitors; 80 on a host.
    pub http_port: u16,
    /// The port of HTTPS for visitors; 443 on a host.
    pub https_port: u16,
}

/// The loopback ports on which nginx takes a moved account's connections from the redirector, each
/// with the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedirectorPorts {
    /// Plain HTTP.
    pub http: u16,
    /// HTTPS.
    pub https: u16,
}

impl Default for RedirectorPorts {
    fn default() -> Self {
        Self { http: 7482, https: 7483 }
    }
}

impl Layout {
    /// The host itself.
    pub fn system() -> Self {
        Self {
            root: PathBuf::from("/"),
            programs: Programs {
                systemctl: "/usr/bin/systemctl".into(),
                nginx: "/usr/sbin/nginx".into(),
                php_fpm: "/usr/sbin/php-fpm".into(),
            },
            redirector_ports: RedirectorPorts::default(),
            http_port: 80,
            https_port: 443,
        }
    }

    /// A tree of its own below `root`.
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned(), ..Self::system() }
    }

    /// Whether this is the host itself.
    pub fn is_system(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The root of the tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the host's absolute path `path` is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Where service configuration of an account is kept while it is moved aside. Below `/etc`, as
    /// the configuration is: moving it there and back is a rename, which needs no free disk.
    pub fn aside(&self, account: &AccountName) -> PathBuf {
        self.path("/etc/ferry/aside").join(account.as_str())
    }

    /// Where copies of an account's certificates are kept for the web server.
    pub fn certificates(&self, account: &AccountName) -> PathBuf {
        self.path("/etc/ferry/certificates").join(account.as_str())
    }
}
