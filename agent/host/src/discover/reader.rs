//! Reads configuration of services: bounded, symlinks among it followed, for it is root's.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Layout, durable};

/// The largest file of configuration, the most of them, and how deep they include one another.
const FILE_CAP: u64 = 4 << 20;
const FILES: usize = 10_000;
pub(super) const NESTED: usize = 12;

/// Reads the configuration files of one service.
pub(super) struct Reader<'a> {
    layout: &'a Layout,
    left: usize,
    /// What could not be read.
    pub(super) doubts: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(layout: &'a Layout) -> Self {
        Self { layout, left: FILES, doubts: Vec::new() }
    }

    /// What a file says; bytes that are not UTF-8 are replaced, and no name survives that.
    pub(super) fn read(&mut self, path: &Path) -> Option<String> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        if self.left == 0 {
            self.doubts
                .push(format!("more than {FILES} files of configuration: not all were read"));
        }
        // Enabled files are symlinks; what they point to is root's.
        let real = fs::canonicalize(self.layout.path(path)).ok()?;
        match durable::read(&real, FILE_CAP) {
            Ok(bytes) => bytes.map(|b| String::from_utf8_lossy(&b).into_owned()),
            Err(fault) => {
                self.doubts.push(format!("{}: {fault}", path.display()));
                None
            }
        }
    }

    /// The files that a pattern of an include names, sorted. A directory stands for its files.
    pub(super) fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        let mut found = vec![PathBuf::from("/")];
        for component in pattern.components().skip(1) {
            let name = component.as_os_str().to_string_lossy();
            if !name.contains(['*', '?']) {
                found.iter_mut().for_each(|path| path.push(component));
                continue;
            }
            found = found
                .iter()
                .flat_map(|directory| names_in(self.layout, directory))
                .filter(|path| {
                    let entry = path.file_name().unwrap_or_default().to_string_lossy();
                    matches(name.as_bytes(), entry.as_bytes())
                })
                .take(FILES)
                .collect();
        }
        found
    }

    /// The files of a directory, where an include may name one; the path itself elsewhere.
    pub(super) fn flattened(&self, path: PathBuf) -> Vec<PathBuf> {
        if self.layout.path(&path).is_dir() { names_in(self.layout, &path) } else { vec![path] }
    }
}

fn names_in(layout: &Layout, directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(layout.path(directory)).into_iter().flatten().flatten();
    let mut names: Vec<PathBuf> =
        entries.take(FILES).map(|entry| directory.join(entry.file_name())).collect();
    names.sort();
    names
}

/// Whether a name matches a pattern of `*` and `?`. As in a shell, no pattern matches a hidden name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                n = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, yes) in [
            ("*", "shop", true),
            ("*", ".hidden", false),
            ("*.conf", "shop.conf", true),
            ("*.conf", "shop.conf.bak", false),
            ("a?c*", "abcd", true),
            ("a?c*", "ac", false),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), yes, "{pattern} {name}");
        }
    }
}
