//! Whether what a fence has moved aside would be accepted if it were put back: the services check a
//! configuration that includes it, beside the one that they serve by. Nothing of it is served.

use std::fs;
use std::path::{Path, PathBuf};

use ferry_proto::Fault;

use super::FencePlan;
use crate::durable::{self, Ownership};
use crate::sites::CONFIG_CAP;
use crate::{Layout, nginx, php};

/// Checks the configuration as [`super::unfence`] would make it. False if that cannot be done on this
/// host, because the main configuration does not include the directories by their names.
///
/// # Errors
/// Precondition with what nginx or PHP-FPM say against it.
pub fn rehearse(layout: &Layout, plan: &FencePlan) -> Result<bool, Fault> {
    if plan.files.is_empty() {
        return Ok(true);
    }
    let _guard = nginx::lock();
    let place = Place::new(layout, plan);
    place.clear()?;
    let result = place.check();
    let cleared = place.clear();
    result.and_then(|possible| cleared.map(|()| possible)).map_err(|fault| {
        fault.context(format!("the sites of account {} would not open", plan.account))
    })
}

struct Place<'a> {
    layout: &'a Layout,
    plan: &'a FencePlan,
    /// Copies of the directories.
    root: PathBuf,
    /// The web server's main configuration. It lies where the real one does: that is where relative
    /// names in it begin.
    server: PathBuf,
}

impl<'a> Place<'a> {
    fn new(layout: &'a Layout, plan: &'a FencePlan) -> Self {
        let root = layout.path("/run/ferry/rehearsal").join(format!("{}.aside", plan.account));
        let server = layout.path(format!("/etc/nginx/.ferry-rehearsal-{}.conf", plan.account));
        Self { layout, plan, root, server }
    }

    fn clear(&self) -> Result<(), Fault> {
        durable::remove(&self.server)?;
        durable::remove_tree(&self.root)
    }

    fn check(&self) -> Result<bool, Fault> {
        let mut possible = true;
        for (index, pools) in self.plan.pools.iter().enumerate() {
            let directory = php::pools(self.layout, &pools.version);
            let main = durable::parent(&directory).join("php-fpm.conf");
            let copies = [(directory, self.root.join(format!("pools.{index}")))];
            let copy = self.root.join(format!("php-fpm.{index}.conf"));
            let made = self.main(&main, &copy, &copies)?;
            if made {
                php::check_file(self.layout, &pools.version, &copy)?;
            }
            possible &= made;
        }
        if self.plan.stubs.is_empty() {
            return Ok(possible);
        }
        let directories = ["/etc/nginx/sites-enabled", "/etc/nginx/conf.d"];
        let copies = directories.map(|d| {
            let copy = self.root.join(Path::new(d).file_name().unwrap_or_default());
            (self.layout.path(d), copy)
        });
        let made = self.main(&self.layout.path("/etc/nginx/nginx.conf"), &self.server, &copies)?;
        if made {
            nginx::check_file(self.layout, &self.server)?;
        }
        Ok(possible && made)
    }

    /// Copies the directories, and writes a main configuration that includes the copies. False if it
    /// does not include one of those in which something is aside.
    fn main(&self, main: &Path, to: &Path, copies: &[(PathBuf, PathBuf)]) -> Result<bool, Fault> {
        let bytes = durable::read(main, CONFIG_CAP)?.unwrap_or_default();
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        for (directory, copy) in copies {
            self.copy(directory, copy)?;
            let before = text.clone();
            text =
                text.replace(&format!("{}/", directory.display()), &format!("{}/", copy.display()));
            if let Ok(relative) = directory.strip_prefix(durable::parent(main)) {
                let named = format!("include {}/", relative.display());
                text = text.replace(&named, &format!("include {}/", copy.display()));
            }
            let needed = self.plan.files.iter().any(|f| durable::parent(&f.path) == directory);
            if needed && text == before {
                return Ok(false);
            }
        }
        durable::write(to, text.as_bytes(), Ownership::root(0o600)).map(|()| true)
    }

    /// Copies a directory as it would be if everything were put back.
    fn copy(&self, directory: &Path, to: &Path) -> Result<(), Fault> {
        durable::make_directory(to, 0o700)?;
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let goes = self.plan.stubs.iter().any(|s| s.path == path)
                || self.plan.pools.iter().any(|p| p.idle == path);
            if !goes {
                entries.push((path.clone(), path));
            }
        }
        for file in self.plan.files.iter().filter(|f| durable::parent(&f.path) == directory) {
            if durable::exists(&file.aside)? {
                entries.retain(|(_, path)| *path != file.path);
                entries.push((file.aside.clone(), file.path.clone()));
            }
        }
        entries.iter().try_for_each(|(from, path)| copy_entry(from, path, to))
    }
}

/// Copies the file `from`, which belongs at `path`, into the directory `to`.
fn copy_entry(from: &Path, path: &Path, to: &Path) -> Result<(), Fault> {
    let name = path.file_name().unwrap_or_default();
    if let Ok(target) = fs::read_link(from) {
        return durable::symlink(&durable::parent(path).join(target), &to.join(name));
    }
    if !from.is_file() {
        return Ok(());
    }
    let bytes = durable::read(from, CONFIG_CAP)?.unwrap_or_default();
    durable::write(&to.join(name), &bytes, Ownership::root(0o600))
}
