//! Which cases have passed: written down as they do, so that a run of many hours may be ended and gone on
//! with.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use aws_lc_rs::digest;

use super::cases::Case;
use crate::build::Build;

/// The file: the programs' hash in the first line behind this, then a case in each.
const PROGRAMS_ARE: &str = "# programs ";
/// Its name.
const FILE: &str = "passed.txt";
/// What has failpoints. The hash is of these.
const PROGRAMS: [&str; 3] = ["ferry-agent", "ferry-redirector", "ferry-controller"];

/// The cases that have passed with the same programs.
#[derive(Debug)]
pub struct Passed {
    cases: BTreeSet<String>,
    file: File,
}

/// The hash of the programs on trial.
pub fn programs(build: &Build) -> Result<String> {
    let mut hash = digest::Context::new(&digest::SHA256);
    for program in PROGRAMS {
        let path = build.program(program)?;
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        hash.update(&bytes);
    }
    Ok(hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The cases that a file lists, one in a line; a line may be empty, or a remark behind `#`.
pub fn listed(path: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let case = |line: &str| {
        let case: Case = line.parse().with_context(|| format!("in {}", path.display()))?;
        Ok(case.to_string())
    };
    lines.map(case).collect()
}

impl Passed {
    /// What was noted in `place` of these programs, if that run is to be gone on with; else nothing.
    pub fn open(place: &Path, build: &Build, resume: bool) -> Result<Passed> {
        let hash = programs(build)?;
        Passed::of(place, &hash, resume)
            .with_context(|| format!("noting what passes in {}", place.join(FILE).display()))
    }

    fn of(place: &Path, hash: &str, resume: bool) -> io::Result<Passed> {
        fs::create_dir_all(place)?;
        let path = place.join(FILE);
        let before = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = before.lines();
        let same = resume && lines.next().and_then(|l| l.strip_prefix(PROGRAMS_ARE)) == Some(hash);
        let cases = lines.filter(|_| same).map(str::to_owned).collect();
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        if !same {
            file.set_len(0)?;
            writeln!(file, "{PROGRAMS_ARE}{hash}")?;
        }
        Ok(Passed { cases, file })
    }

    /// Whether this one has.
    pub fn contains(&self, case: &Case) -> bool {
        self.cases.contains(&case.to_string())
    }

    /// Notes that it has.
    pub fn note(&mut self, case: &Case) -> Result<()> {
        writeln!(self.file, "{case}").context("noting what has passed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(nth: u32) -> Case {
        format!("move.kill-controller@controller:ferry-controller:a.after#{nth}").parse().unwrap()
    }

    #[test]
    fn a_run_is_gone_on_with_if_that_is_asked_for_and_the_programs_are_the_same() {
        let place = tempfile::tempdir().unwrap();
        let open = |hash, resume| Passed::of(place.path(), hash, resume).unwrap();
        let mut first = open("abc", true);
        assert!(!first.contains(&case(1)));
        first.note(&case(1)).unwrap();
        let mut second = open("abc", true);
        assert!(second.contains(&case(1)) && !second.contains(&case(2)));
        second.note(&case(2)).unwrap();
        assert!(open("abc", true).contains(&case(1)) && open("abc", true).contains(&case(2)));
        // Other programs have passed nothing, and neither has a run that begins anew.
        assert!(!open("def", true).contains(&case(1)));
        open("abc", true).note(&case(1)).unwrap();
        assert!(!open("abc", false).contains(&case(1)));
        assert!(!open("abc", true).contains(&case(1)));
    }

    #[test]
    fn what_has_passed_elsewhere_is_read_and_what_is_no_case_refused() {
        let place = tempfile::tempdir().unwrap();
        Passed::of(place.path(), "abc", false).unwrap().note(&case(1)).unwrap();
        let path = place.path().join(FILE);
        assert_eq!(listed(&path).unwrap(), BTreeSet::from([case(1).to_string()]));
        fs::write(&path, "no case\n").unwrap();
        assert!(listed(&path).is_err());
        assert!(listed(&place.path().join("absent")).is_err());
    }
}
