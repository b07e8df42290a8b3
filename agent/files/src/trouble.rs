//! Errors of the target's file system: which end the pass, and which cost one entry only. It must not
//! know which operation met them.

use ferry_proto::Fault;
use rustix::io::Errno;

/// What an error number means for the pass: the reason why one entry is refused, or
///
/// # Errors
/// the fault that ends it, because every other entry would meet it too.
pub fn judge(path: &str, doing: &str, errno: Errno) -> Result<String, Fault> {
    let fault = |remedy: &str| {
        let error = std::io::Error::from(errno);
        Err(Fault::io(format!("{path} cannot be {doing} at the target"), &error).remedy(remedy))
    };
    let reason = match errno {
        Errno::NOSPC => return fault("make room on the target's file system, then run it again"),
        Errno::DQUOT => return fault("raise the account's quota at the target, then run it again"),
        Errno::ROFS => return fault("mount the target's file system writable, then run it again"),
        Errno::IO | Errno::NODEV | Errno::NXIO => {
            return fault("check the target's disk and file system");
        }
        Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NOBUFS => {
            return fault("free memory or file descriptors at the target, then run it again");
        }
        Errno::PERM => "the target does not permit it; an immutable or append-only flag does this \
                        (lsattr shows it)"
            .to_owned(),
        Errno::BUSY | Errno::XDEV => {
            "something is mounted there at the target, which is not crossed".to_owned()
        }
        Errno::NAMETOOLONG => "its name is too long for the target's file system".to_owned(),
        Errno::NOTSUP => "the target's file system cannot hold it".to_owned(),
        Errno::TOOBIG => "its extended attributes are too large for the target".to_owned(),
        Errno::FBIG => "it is too large for the target's file system".to_owned(),
        Errno::MLINK => "it has more names than the target's file system allows".to_owned(),
        Errno::STALE | Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NOTEMPTY => {
            "somebody changed it at the target while the pass ran".to_owned()
        }
        other => std::io::Error::from(other).to_string(),
    };
    Ok(format!("it cannot be {doing}: {reason}"))
}
