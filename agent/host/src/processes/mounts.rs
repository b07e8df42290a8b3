//! Where a path lies, in terms that hold across mount namespaces and bind mounts: the device of the
//! filesystem and the path inside it. Knows no processes.

use std::path::{Path, PathBuf};

use ferry_proto::Fault;

/// The device of the filesystem that holds `path`, as mountinfo says it: the same for all subvolumes
/// of one btrfs, whose files do not say so.
pub(crate) fn device_of(path: &Path) -> Result<String, Fault> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| Fault::io("the mounts could not be read", &e))?;
    let place = Mounts::parse(&text).place(path, None);
    place
        .map(|p| p.device)
        .ok_or_else(|| Fault::permanent(format!("{} is below no mount", path.display())))
}

/// A place in a filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    device: String,
    path: PathBuf,
}

impl Place {
    /// Whether it is `root` or lies below it.
    pub(super) fn is_below(&self, root: &Self) -> bool {
        self.device == root.device && self.path.starts_with(&root.path)
    }
}

/// One line of mountinfo.
#[derive(Debug)]
struct Mount {
    id: u64,
    device: String,
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    fn place(&self, path: &Path) -> Option<Place> {
        let inside = path.strip_prefix(&self.point).ok()?;
        Some(Place { device: self.device.clone(), path: self.root.join(inside) })
    }
}

/// The mounts that a process sees.
#[derive(Debug, Default)]
pub(super) struct Mounts(Vec<Mount>);

impl Mounts {
    /// From the text of a mountinfo file.
    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(mount).collect())
    }

    /// Where `path` lies, by the mount `id` where it is known, else by the mount nearest above it.
    pub(super) fn place(&self, path: &Path, id: Option<u64>) -> Option<Place> {
        let known = id.and_then(|id| self.0.iter().find(|m| m.id == id));
        if let Some(place) = known.and_then(|m| m.place(path)) {
            return Some(place);
        }
        // Of several at one point the last one covers the others.
        self.0
            .iter()
            .filter(|m| path.starts_with(&m.point))
            .max_by_key(|m| m.point.components().count())
            .and_then(|m| m.place(path))
    }

    /// The places of `root` and of all that is mounted below it.
    pub(super) fn places_of(&self, root: &Path) -> Vec<Place> {
        let below = self.0.iter().filter(|m| m.point != root && m.point.starts_with(root));
        let mounted = below.map(|m| Place { device: m.device.clone(), path: m.root.clone() });
        self.place(root, None).into_iter().chain(mounted).collect()
    }
}

fn mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let id = fields.next()?.parse().ok()?;
    let _parent = fields.next()?;
    let device = fields.next()?.to_owned();
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    Some(Mount { id, device, root, point })
}

/// Undoes the kernel's `\040` for a space and its like.
pub(super) fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|d| bytes[at] == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        if let Some(d) = octal {
            let value = d.iter().fold(0u32, |v, c| v * 8 + u32::from(c - b'0'));
            plain.push((value & 0xff) as u8);
            at += 4;
        } else {
            plain.push(bytes[at]);
            at += 1;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 / /home rw - ext4 /dev/sda2 rw
22 20 8:2 /shop /chroot/with\\040space rw - ext4 /dev/sda2 rw
23 21 0:40 / /home/shop/tmp rw - tmpfs tmpfs rw
24 20 8:2 /other /over rw - ext4 /dev/sda2 rw
25 20 0:41 / /over rw - tmpfs tmpfs rw";

    #[test]
    fn a_bind_mount_is_the_same_place() {
        let mounts = Mounts::parse(INFO);
        let roots = mounts.places_of(Path::new("/home/shop"));
        let below = |path: &str| {
            let place = mounts.place(Path::new(path), None).unwrap();
            roots.iter().any(|root| place.is_below(root))
        };
        assert!(below("/home/shop/www/index.php"));
        assert!(below("/chroot/with space/www/index.php"));
        assert!(below("/home/shop/tmp/file"));
        assert!(!below("/home/shop2/file"));
        assert!(!below("/etc/passwd"));
    }

    #[test]
    fn the_mount_id_decides_where_one_mount_covers_another() {
        let mounts = Mounts::parse(INFO);
        let covered = mounts.place(Path::new("/over/x"), Some(24)).unwrap();
        assert_eq!(
            (covered.device.as_str(), covered.path.as_path()),
            ("8:2", Path::new("/other/x"))
        );
        let top = mounts.place(Path::new("/over/x"), None).unwrap();
        assert_eq!(top.device, "0:41");
    }
}
