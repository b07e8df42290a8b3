//! The trees that are copied: the same ones each time, made as fast as the disk takes them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, fchown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::thread;

use anyhow::{Context, Result};
use rustix::fs::XattrFlags;

/// Whose the trees are: a user that no server has.
const OWNER: u32 = 64_111;
/// A second group of theirs.
const GROUP: u32 = 64_112;
/// Threads that make one.
const MAKERS: u64 = 2;
/// The block that changes in a database-like file.
pub const BLOCK: u64 = 4096;

/// How large the trees are.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Files of the tree of mail.
    pub mails: u64,
    /// Bytes of the longest of them.
    pub mail_bytes: u64,
    /// Directories of the tree of sites; ten files each.
    pub site_directories: u64,
    /// Bytes of each of the three large files.
    pub large: u64,
}

impl Scale {
    /// What figures are told of.
    pub const FULL: Scale =
        Scale { mails: 200_000, mail_bytes: 20_000, site_directories: 6_000, large: 2 << 30 };
    /// To try the measurement itself.
    pub const QUICK: Scale =
        Scale { mails: 10_000, mail_bytes: 20_000, site_directories: 300, large: 64 << 20 };
}

/// Numbers that look random and are the same each time (splitmix64).
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// A sequence of its own for each seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next one, below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// Text as mails and pages are made of: it compresses as they do.
static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut numbers = Numbers::of(1);
    let mut text = Vec::with_capacity(4 << 20);
    while text.len() < 4 << 20 {
        let length = 2 + numbers.below(9);
        text.extend((0..length).map(|_| b'a' + (numbers.below(26).min(numbers.below(26))) as u8));
        text.push(if numbers.below(12) == 0 { b'\n' } else { b' ' });
    }
    text
});

/// What does not compress.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut numbers = Numbers::of(2);
    (0..(8 << 20) / 8).flat_map(|_| numbers.next().to_le_bytes()).collect()
});

fn slice<'a>(pool: &'a [u8], numbers: &mut Numbers, length: usize) -> &'a [u8] {
    let length = length.min(pool.len() / 2);
    let start = numbers.below((pool.len() - length) as u64) as usize;
    &pool[start..start + length]
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    lchown(path, Some(OWNER), Some(OWNER))?;
    Ok(())
}

fn make_file(path: &Path, content: &[u8]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.write_all_at(content, 0)?;
    fchown(&file, Some(OWNER), Some(OWNER))?;
    Ok(())
}

/// Lets several threads make parts of a tree.
fn in_parts(count: u64, part: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let part = &part;
        let makers: Vec<_> = (0..MAKERS)
            .map(|maker| {
                scope.spawn(move || (maker..count).step_by(MAKERS as usize).try_for_each(part))
            })
            .collect();
        makers.into_iter().try_for_each(|maker| maker.join().expect("a maker"))
    })
}

/// Mails in a Maildir each.
const MAILS_IN_BOX: u64 = 1_000;
/// Maildirs in a domain each: 100,000 mails.
const BOXES_IN_DOMAIN: u64 = 100;

/// The Maildir of this number.
fn mailbox(root: &Path, number: u64) -> PathBuf {
    root.join(format!("domain{}/box{number:04}/Maildir", number / BOXES_IN_DOMAIN))
}

fn mail_path(root: &Path, mail: u64) -> PathBuf {
    mailbox(root, mail / MAILS_IN_BOX)
        .join(if mail.is_multiple_of(10) { "new" } else { "cur" })
        .join(format!(
            "16{mail:08}.M{}P{}.mail,S={}:2,S",
            mail * 7919 % 999_983,
            mail % 30_011,
            mail * 31 % 20_000
        ))
}

/// Mailboxes: files of 1 kB or more.
pub fn mail(root: &Path, scale: Scale) -> Result<()> {
    make_directory(root)?;
    in_parts(scale.mails.div_ceil(MAILS_IN_BOX), |number| {
        let maildir = mailbox(root, number);
        for name in ["new", "cur", "tmp"] {
            make_directory(&maildir.join(name))?;
        }
        for directory in maildir.ancestors().take(3) {
            lchown(directory, Some(OWNER), Some(OWNER))?;
        }
        let first = number * MAILS_IN_BOX;
        for mail in first..(first + MAILS_IN_BOX).min(scale.mails) {
            let mut numbers = Numbers::of(mail);
            let length = 1_000 + numbers.below(scale.mail_bytes - 999) as usize;
            make_file(&mail_path(root, mail), slice(&TEXT, &mut numbers, length))?;
        }
        Ok(())
    })
}

/// Sites: files of many sizes, with hard links, symbolic links, attributes, ACLs and a sparse file.
pub fn web(root: &Path, scale: Scale) -> Result<()> {
    make_directory(root)?;
    in_parts(scale.site_directories, |number| {
        let directory = site_directory(root, number);
        make_directory(&directory)?;
        lchown(directory.parent().context("a parent")?, Some(OWNER), Some(OWNER))?;
        (0..10).try_for_each(|file| site_file(&directory, number, file))
    })?;
    let sparse = File::create(root.join("sparse.img"))?;
    sparse.set_len(1 << 30)?;
    for place in 0..8_u64 {
        sparse.write_all_at(&NOISE[..64 << 10], place << 27)?;
    }
    fchown(&sparse, Some(OWNER), Some(OWNER))?;
    Ok(())
}

fn site_directory(root: &Path, number: u64) -> PathBuf {
    root.join(format!("site{:03}/d{number:05}", number / 100))
}

fn site_file(directory: &Path, number: u64, file: u64) -> Result<()> {
    let mut numbers = Numbers::of(number * 10 + file);
    let path = directory.join(format!("f{file}.php"));
    // Most are small, a few large: a mean of 15 kB.
    let length = match numbers.below(100) {
        0 => 200_000 + numbers.below(400_000),
        1..=9 => 20_000 + numbers.below(60_000),
        _ => 200 + numbers.below(12_000),
    };
    let pool = if file == 9 { &NOISE } else { &TEXT };
    match (number % 20, file) {
        (3, 8) => fs::hard_link(directory.join("f0.php"), &path)?,
        (7, 8) => {
            symlink("f0.php", &path)?;
            lchown(&path, Some(OWNER), Some(OWNER))?;
        }
        _ => make_file(&path, slice(pool, &mut numbers, length as usize))?,
    }
    if number % 20 == 11 {
        rustix::fs::setxattr(&path, "user.mime_type", b"text/html", XattrFlags::empty())?;
    }
    if number % 50 == 13 && file < 5 {
        rustix::fs::setxattr(&path, "system.posix_acl_access", &acl(), XattrFlags::empty())?;
    }
    Ok(())
}

/// An ACL that lets a second group read, as the kernel keeps it.
fn acl() -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (4, 4, u32::MAX),
        (8, 4, GROUP),
        (16, 4, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Directories with so many files each, all of one length.
pub fn even(root: &Path, directories: u64, each: u64, length: usize) -> Result<()> {
    make_directory(root)?;
    in_parts(directories, |number| {
        let directory = root.join(format!("d{number:04}"));
        make_directory(&directory)?;
        (0..each).try_for_each(|file| {
            let mut numbers = Numbers::of(number * each + file);
            let content = slice(&TEXT, &mut numbers, length);
            make_file(&directory.join(format!("f{file:06}")), content)
        })
    })
}

/// Three large files, of what does not compress.
pub fn big(root: &Path, scale: Scale) -> Result<()> {
    make_directory(root)?;
    in_parts(3, |number| {
        let file = File::create(large_path(root, number))?;
        let mut numbers = Numbers::of(number);
        let piece = 1 << 20;
        for at in (0..scale.large).step_by(piece) {
            file.write_all_at(slice(&NOISE, &mut numbers, piece), at)?;
        }
        fchown(&file, Some(OWNER), Some(OWNER))?;
        Ok(())
    })
}

fn large_path(root: &Path, number: u64) -> PathBuf {
    root.join(format!("database{number}.ibd"))
}

/// Changes one mail in a thousand.
pub fn change_mail(root: &Path, scale: Scale, round: u64) -> Result<()> {
    change_mails(root, scale, scale.mails / 1000, round)
}

/// Changes so many mails: most are written anew, some come and some go. `round` makes each time others change.
pub fn change_mails(root: &Path, scale: Scale, count: u64, round: u64) -> Result<()> {
    let mut numbers = Numbers::of(1000 + round);
    for change in 0..count {
        let mail = numbers.below(scale.mails);
        let path = mail_path(root, mail);
        let content = slice(&TEXT, &mut numbers, 8_000);
        match change % 10 {
            0 => drop(fs::remove_file(&path)),
            1 => make_file(&path.with_file_name(format!("17{round}{change}.new")), content)?,
            _ => make_file(&path, content)?,
        }
    }
    Ok(())
}

/// Changes one page in a thousand.
pub fn change_web(root: &Path, scale: Scale, round: u64) -> Result<()> {
    let mut numbers = Numbers::of(2000 + round);
    for _ in 0..scale.site_directories * 10 / 1000 {
        let directory = site_directory(root, numbers.below(scale.site_directories));
        let path = directory.join(format!("f{}.php", numbers.below(8)));
        make_file(&path, slice(&TEXT, &mut numbers, 9_000))?;
    }
    Ok(())
}

/// Writes one block in a hundred of the large files anew, where it is.
pub fn change_big(root: &Path, scale: Scale, round: u64) -> Result<()> {
    let mut numbers = Numbers::of(3000 + round);
    for number in 0..3 {
        let file = File::options().write(true).open(large_path(root, number))?;
        let blocks = scale.large / BLOCK;
        for _ in 0..blocks / 100 {
            let at = numbers.below(blocks) * BLOCK;
            file.write_all_at(slice(&NOISE, &mut numbers, BLOCK as usize), at)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_what_they_are_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let scale =
            Scale { mails: 3_000, mail_bytes: 4_000, site_directories: 100, large: 1 << 20 };
        let count = |root: &Path| {
            let found = std::process::Command::new("find").arg(root).args(["-type", "f"]).output();
            String::from_utf8(found.unwrap().stdout).unwrap().lines().count()
        };
        let [mails, sites, large, equal] =
            ["mail", "web", "big", "even"].map(|name| dir.path().join(name));
        mail(&mails, scale).unwrap();
        assert_eq!(count(&mails), 3_000);
        change_mail(&mails, scale, 1).unwrap();
        web(&sites, scale).unwrap();
        // Ten in each, less the symbolic links, and the sparse one.
        assert_eq!(count(&sites), 1_000 - 5 + 1);
        change_web(&sites, scale, 1).unwrap();
        even(&equal, 3, 5, 0).unwrap();
        assert_eq!(count(&equal), 15);
        big(&large, scale).unwrap();
        let before = fs::read(large_path(&large, 0)).unwrap();
        change_big(&large, scale, 1).unwrap();
        let after = fs::read(large_path(&large, 0)).unwrap();
        assert_eq!((before.len(), after.len()), (1 << 20, 1 << 20));
        let differ = before.chunks(4096).zip(after.chunks(4096)).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 2);
    }
}
