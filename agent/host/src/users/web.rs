//! The user that the web server runs as: it owns files in many homes, and shares its ids between all
//! accounts of a server.

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use super::WEB_USER;
use super::passwd::Database;
use crate::Layout;

/// The web server's ids on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebIds {
    /// Its user's.
    pub uid: u32,
    /// Its group's.
    pub gid: u32,
}

/// The web server's ids here; none if it has no user, or one that must not own what comes from
/// elsewhere.
///
/// # Errors
/// What reading the user database failed of.
pub fn web_ids(layout: &Layout) -> Result<Option<WebIds>, Fault> {
    let database = Database::read(layout)?;
    let (Some(user), Some(group)) = (database.user(WEB_USER), database.group(WEB_USER)) else {
        return Ok(None);
    };
    Ok((user.uid != 0 && group.gid != 0).then_some(WebIds { uid: user.uid, gid: group.gid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_web_servers_ids_are_found_by_name_and_are_never_roots() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::below(directory.path());
        let write = |passwd: &str, group: &str| {
            std::fs::create_dir_all(layout.path("/etc")).unwrap();
            std::fs::write(layout.path("/etc/passwd"), passwd).unwrap();
            std::fs::write(layout.path("/etc/group"), group).unwrap();
            web_ids(&layout).unwrap()
        };
        assert_eq!(write("root:x:0:0::/root:/bin/sh\n", "root:x:0:\n"), None);
        let user = "www-data:x:33:33::/var/www:/usr/sbin/nologin\n";
        assert_eq!(write(user, "www-data:x:35:\n"), Some(WebIds { uid: 33, gid: 35 }));
        assert_eq!(write("www-data:x:0:33::/:/bin/sh\n", "www-data:x:33:\n"), None);
        assert_eq!(write(user, "www-data:x:0:\n"), None);
    }
}
