//! PHP-FPM's pools: as whom they run, where they listen, and their limits.

use std::fs;
use std::path::PathBuf;

use crate::{Layout, durable, php};

const FILE_CAP: u64 = 1 << 20;
const FILES: usize = 10_000;

/// One pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pool {
    /// The host's absolute path of its file.
    pub(super) file: PathBuf,
    pub(super) name: String,
    pub(super) user: String,
    pub(super) listen: String,
    pub(super) children: Option<u32>,
    pub(super) memory_mb: Option<u32>,
}

/// Every pool of every version.
pub(super) fn read(layout: &Layout) -> Vec<Pool> {
    let mut found = Vec::new();
    for version in php::versions(layout) {
        let directory = format!("/etc/php/{version}/fpm/pool.d");
        let entries = fs::read_dir(layout.path(&directory)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.take(FILES).map(|e| e.file_name()).collect();
        names.sort();
        for name in names.into_iter().filter(|n| n.to_string_lossy().ends_with(".conf")) {
            let file = PathBuf::from(&directory).join(&name);
            let real = fs::canonicalize(layout.path(&file));
            if let Ok(Some(bytes)) = real.map_err(|_| ()).and_then(|f| {
                // What cannot be read starts no pool either.
                durable::read(&f, FILE_CAP).map_err(|_| ())
            }) {
                found.extend(pools(&file, &String::from_utf8_lossy(&bytes)));
            }
        }
    }
    found
}

fn pools(file: &std::path::Path, text: &str) -> Vec<Pool> {
    let mut found: Vec<Pool> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some((name, _)) = line.strip_prefix('[').and_then(|l| l.split_once(']')) {
            let name = name.trim().to_owned();
            found.push(Pool { file: file.to_owned(), name, ..Pool::default() });
        } else if let (Some((key, value)), Some(pool)) = (line.split_once('='), found.last_mut()) {
            let value = value.split(';').next().unwrap_or_default().trim().trim_matches('"');
            let value = value.replace("$pool", &pool.name);
            match key.trim() {
                "user" => pool.user = value,
                "listen" => pool.listen = value,
                "pm.max_children" => pool.children = value.parse().ok(),
                "php_admin_value[memory_limit]" | "php_value[memory_limit]" => {
                    pool.memory_mb = megabytes(&value);
                }
                _ => {}
            }
        }
    }
    found.retain(|pool| pool.name != "global");
    found
}

fn megabytes(value: &str) -> Option<u32> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    match value.to_ascii_lowercase() {
        v if v.ends_with('g') => number(&v[..v.len() - 1])?.checked_mul(1024),
        v if v.ends_with('m') => number(&v[..v.len() - 1]),
        v if v.ends_with('k') => Some(number(&v[..v.len() - 1])? / 1024),
        v => Some(number(&v)? >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_file_is_understood() {
        let text = "[global]\npid = x\n; [none]\n[shop]\nuser = shop\ngroup = shop\n\
                    listen = /run/php/$pool.sock\nlisten.owner = www-data\npm.max_children = 5 ; few\n\
                    php_admin_value[memory_limit] = 1G\n[api]\nuser=shop\nlisten=127.0.0.1:9001\n";
        let file = std::path::Path::new("/etc/php/8.2/fpm/pool.d/shop.conf");
        let found = pools(file, text);
        assert_eq!(found.len(), 2);
        let shop = &found[0];
        assert_eq!((shop.user.as_str(), shop.listen.as_str()), ("shop", "/run/php/shop.sock"));
        assert_eq!((shop.children, shop.memory_mb), (Some(5), Some(1024)));
        assert_eq!((found[1].listen.as_str(), found[1].children), ("127.0.0.1:9001", None));
        assert_eq!(megabytes("134217728"), Some(128));
        assert_eq!(megabytes("lots"), None);
    }
}
