//! The corpus of each fuzz target, on any toolchain; and that target, program and corpus go together.
//! (As root: whole passes of the file engine are among them.)

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).expect("it is in the repository");
    let stem = |path: PathBuf| path.file_stem().and_then(|s| s.to_str()).map(str::to_owned);
    entries.filter_map(|entry| stem(entry.expect("an entry").path())).collect()
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let targets: BTreeSet<String> = ferry_fuzz_targets::all().map(|(n, _)| n.to_owned()).collect();
    assert_eq!(targets.len(), ferry_fuzz_targets::all().count(), "two of one name");
    assert_eq!(names_in(&fuzz().join("fuzz_targets")), targets);
    assert_eq!(names_in(&fuzz().join("corpus")), targets);
}

#[test]
fn what_is_in_the_corpus_breaks_no_promise() {
    for (name, target) in ferry_fuzz_targets::all() {
        let mut inputs = 0;
        for entry in std::fs::read_dir(fuzz().join("corpus").join(name)).expect("a corpus") {
            let path = entry.expect("an entry").path();
            // Said first, so that a failure names its input.
            println!("{}", path.display());
            target(&std::fs::read(&path).expect("an input"));
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus of {name} is empty");
    }
}
