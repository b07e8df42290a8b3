//! Everything of Ferry that is fuzzed, by name. What a target promises is said at its function, in the
//! crate that it belongs to; `fuzz/` hands each of them whatever a fuzzer can think of, and the test
//! beside this hands them the corpus.

use ferry_proto::fuzzing::Target;

/// All targets.
pub fn all() -> impl Iterator<Item = Target> {
    let crates = [
        ferry_proto::fuzzing::TARGETS,
        ferry_files::fuzzing::TARGETS,
        ferry_databases::fuzzing::TARGETS,
        ferry_traffic::fuzzing::TARGETS,
        ferry_host::fuzzing::TARGETS,
        ferry_agent::fuzzing::TARGETS,
    ];
    crates.into_iter().flatten().copied()
}

/// Hands `bytes` to the target `name`.
///
/// # Panics
/// If there is no such target, or a promise is broken.
pub fn run(name: &str, bytes: &[u8]) {
    let Some((_, target)) = all().find(|(known, _)| *known == name) else {
        panic!("there is no fuzz target {name}");
    };
    target(bytes);
}
