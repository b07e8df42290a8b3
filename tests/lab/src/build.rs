//! Our programs, built for the oldest release that we serve, and our packages.
//!
//! A program asks for the glibc it was linked against, and Debian 11 has 2.31. cargo-zigbuild
//! links against any glibc, on any release: its linker, zig, brings a description of each.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::progress::{Task, say};
use crate::{cache, run};

/// The crates that become Debian packages, each with a `[package.metadata.deb]` of its own.
pub const PACKAGES: &[&str] = &["ferry-agent", "ferry-controller"];
/// Their programs, and where each is in its package.
const PACKAGED: &[(&str, &[(&str, &str)])] = &[
    (
        "ferry-agent",
        &[
            ("ferry-agent", "usr/bin/ferry-agent"),
            ("ferry-redirector", "usr/libexec/ferry/ferry-redirector"),
        ],
    ),
    (
        "ferry-controller",
        &[("ferry-controller", "usr/bin/ferry-controller"), ("ferry", "usr/bin/ferry")],
    ),
];
/// How many of them have failpoints when they are built with them: all but the command line.
const FAULTY: usize = 3;
/// What the lab builds with, in the workspace's Cargo.toml.
const PROFILE: &str = "lab";
/// Debian 11's.
const GLIBC: &str = "2.31";

const CARGO_ZIGBUILD: &str = "0.24.0";
const ZIGLANG: &str = "0.17.1";
const CARGO_DEB: &str = "3.8.0";

const BUILD_LIMIT: Duration = Duration::from_secs(3600);
const TOOL_LIMIT: Duration = Duration::from_secs(1200);

/// What was built.
#[derive(Debug, Clone)]
pub struct Build {
    /// Where the programs are.
    pub programs: PathBuf,
    /// The package files, as [`PACKAGES`] names them.
    debs: Vec<PathBuf>,
}

impl Build {
    /// Builds all programs and packages of this workspace. Cargo knows what is done already.
    pub fn run() -> Result<Build> {
        let target = target_dir()?;
        let logs = target.join("lab-build");
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        let tools = Tools::ensure()?;
        let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);

        compile(&tools, &triple, "building Ferry for glibc 2.31", &[])?;

        let debs = logs.join("debs");
        let debs = thread::scope(|scope| {
            let package = |name| package(&tools, name, &triple, &debs);
            let jobs: Vec<_> =
                PACKAGES.iter().map(|name| scope.spawn(move || package(name))).collect();
            jobs.into_iter()
                .map(|job| job.join().map_err(|_| anyhow!("a packaging thread panicked"))?)
                .collect::<Result<Vec<PathBuf>>>()
        })?;
        let programs = target.join(triple).join(PROFILE);
        expect_no_failpoints(&programs)?;
        Ok(Build { programs, debs })
    }

    /// Builds beside other work, such as bringing the hosts up, and waits for both.
    pub fn beside<T>(work: impl FnOnce() -> Result<T>) -> Result<(Build, T)> {
        let report = |what: &str, error: &anyhow::Error| say(format!("{what} failed: {error}"));
        thread::scope(|scope| {
            let build =
                scope.spawn(|| Build::run().inspect_err(|error| report("the build", error)));
            let done = work().inspect_err(|error| report("the work beside the build", error));
            let build = build.join().map_err(|_| anyhow!("the building thread panicked"))?;
            Ok((build?, done?))
        })
    }

    /// The package file of one of [`PACKAGES`].
    pub fn deb(&self, package: &str) -> Result<&Path> {
        let known = PACKAGES.iter().position(|name| *name == package);
        let deb = known.and_then(|index| self.debs.get(index));
        deb.map(PathBuf::as_path).with_context(|| format!("no package {package:?} was built"))
    }

    /// One of the programs that were built.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        if !path.is_file() {
            bail!("no program {name:?} was built: {} is missing", path.display());
        }
        Ok(path)
    }
}

/// Compiles all programs; what does not differ from the last time is not compiled again.
fn compile(tools: &Tools, triple: &str, what: &str, more: &[String]) -> Result<()> {
    let task = Task::start(what);
    let mut build = tools.command(&tools.zigbuild());
    build.args(["zigbuild", "--locked", "--workspace", "--exclude=ferry-lab", "--bins"]);
    build.args(["--profile", PROFILE, "--target", &format!("{triple}.{GLIBC}")]).args(more);
    let log = target_dir()?.join("lab-build").join("build.log");
    run::logged(&mut build, &log, &task, BUILD_LIMIT)?;
    task.done();
    Ok(())
}

/// The packages with failpoints in their programs, for hosts on which faults are tested. They are made in a
/// place of their own, and the programs that belong in the real packages are put back. What both builds
/// have compiled stays: neither is compiled anew after the other.
pub fn faulty(build: &Build) -> Result<Build> {
    let tools = Tools::ensure()?;
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut more = vec!["--features=ferry-agent/faults,ferry-controller/faults".to_owned()];
    // Nothing is measured with them, and they are made for each run of all tests: quicker to build.
    for name in packages()? {
        more.extend([
            "--config".to_owned(),
            format!("profile.{PROFILE}.package.{name}.opt-level=1"),
        ]);
    }
    let built = compile(&tools, &triple, "building Ferry with failpoints", &more);
    let programs = target_dir()?.join("lab-build/faults/programs");
    let kept = built.and_then(|()| keep_programs(&build.programs, &programs));
    compile(&tools, &triple, "building Ferry without failpoints again", &[])?;
    kept?;
    expect_no_failpoints(&build.programs)?;
    let mut debs = Vec::new();
    for (package, contents) in PACKAGED {
        debs.push(altered(build.deb(package)?, "faults", |tree| {
            for (program, place) in *contents {
                copy(&programs.join(program), &tree.join(place))?;
            }
            Ok(())
        })?);
    }
    Ok(Build { programs, debs })
}

/// Copies the packaged programs, and sees that they have failpoints indeed.
fn keep_programs(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    let mut found = 0;
    for (program, _) in PACKAGED.iter().flat_map(|(_, contents)| *contents) {
        copy(&from.join(program), &to.join(program))?;
        found += usize::from(has_failpoints(&to.join(program))?);
    }
    ensure!(found == FAULTY, "{found} programs were built with failpoints, not {FAULTY}");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = fs::copy(from, to).map(drop);
    copied.with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// What is shipped has no failpoint in it: it would do what whoever may listen there says.
fn expect_no_failpoints(programs: &Path) -> Result<()> {
    for (program, _) in PACKAGED.iter().flat_map(|(_, contents)| *contents) {
        let path = programs.join(program);
        ensure!(!has_failpoints(&path)?, "{} was built with failpoints", path.display());
    }
    Ok(())
}

/// Whether a program knows where a lab would listen.
fn has_failpoints(program: &Path) -> Result<bool> {
    let mut grep = Command::new("grep");
    grep.args(["-qaF", "-e", ferry_failpoints::DIRECTORY, "--"]).arg(program);
    match grep.status().context("running grep")?.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("{} could not be searched", program.display()),
    }
}

/// A package of ours with something changed, under the version `VERSION+SUFFIX`.
pub fn altered(
    deb: &Path,
    suffix: &str,
    change: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let name = deb.file_stem().context("a package without a name")?.to_string_lossy();
    let place = target_dir()?.join("lab-build").join(suffix);
    let tree = place.join(&*name);
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    run::check(Command::new("dpkg-deb").arg("-R").arg(deb).arg(&tree))?;
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).context("reading the package's control file")?;
    let lines = text.lines().map(|line| {
        let suffix =
            if line.starts_with("Version: ") { format!("+{suffix}") } else { String::new() };
        format!("{line}{suffix}\n")
    });
    fs::write(&control, lines.collect::<String>()).context("writing the control file")?;
    change(&tree)?;
    let path = place.join(format!("{name}.deb"));
    let mut pack = Command::new("dpkg-deb");
    // It is read once.
    pack.args(["--root-owner-group", "-Znone", "-b"]).arg(&tree).arg(&path);
    run::check(&mut pack)?;
    Ok(path)
}

/// Makes one package of what is built. Tells the file's name, which cargo-deb prints last.
fn package(tools: &Tools, name: &str, triple: &str, debs: &Path) -> Result<PathBuf> {
    let mut deb = tools.command(&tools.cargo_deb());
    deb.args(["--no-build", "--fast", "--quiet", "--profile", PROFILE, "--target", triple]);
    deb.args(["--package", name, "--output"]).arg(debs.join(name).join(""));
    let printed = run::check(&mut deb).with_context(|| format!("packaging {name}"))?;
    let path = PathBuf::from(printed.lines().last().unwrap_or_default());
    if !path.is_file() {
        bail!("cargo-deb made no package of {name}; it printed {printed:?}");
    }
    Ok(path)
}

/// Where cargo puts what it builds for this workspace.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = metadata()?;
    let dir = metadata.get("target_directory").and_then(|dir| dir.as_str());
    Ok(PathBuf::from(dir.context("cargo names no target directory")?))
}

/// The packages of this workspace.
fn packages() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("cargo names no packages")?;
    let names = packages.iter().map(|package| package["name"].as_str().map(str::to_owned));
    names.collect::<Option<_>>().context("a package without a name")
}

/// What cargo says of this workspace.
fn metadata() -> Result<serde_json::Value> {
    let mut metadata = Command::new(cargo());
    metadata.args(["metadata", "--no-deps", "--format-version=1"]).current_dir(workspace());
    serde_json::from_str(&run::check(&mut metadata)?)
        .context("reading what cargo says of the workspace")
}

/// The workspace that this program was built from.
pub fn workspace() -> PathBuf {
    let lab = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    lab.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR"))).join("../..")
}

/// The cargo that built this program.
pub fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// The building tools that Debian does not have, in the cache.
struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// Installs those that are missing.
    fn ensure() -> Result<Tools> {
        let (dir, _lock) = cache::lock("tools")?;
        let tools = Tools { dir };
        install(&tools.python(), "installing cargo-zigbuild and zig", |dir, log, task| {
            let mut venv = Command::new("/usr/bin/python3");
            run::logged(venv.args(["-m", "venv"]).arg(dir), log, task, TOOL_LIMIT)?;
            let mut pip = Command::new(dir.join("bin/pip"));
            pip.args(["install", "--quiet", "--no-cache-dir"]);
            pip.args([format!("cargo-zigbuild=={CARGO_ZIGBUILD}"), format!("ziglang=={ZIGLANG}")]);
            run::logged(&mut pip, log, task, TOOL_LIMIT).context("is the Python index reachable?")
        })?;
        install(&tools.rust(), "installing cargo-deb", |dir, log, task| {
            let mut install = Command::new(cargo());
            // A debug build: quicker to make than all the time it would ever save.
            install.args(["install", "cargo-deb", "--version", CARGO_DEB, "--locked", "--debug"]);
            install.arg("--root").arg(dir).env("CARGO_TARGET_DIR", dir.join("target"));
            run::logged(&mut install, log, task, TOOL_LIMIT)?;
            fs::remove_dir_all(dir.join("target")).context("removing cargo-deb's build")
        })?;
        Ok(tools)
    }

    fn python(&self) -> PathBuf {
        self.dir.join(format!("zigbuild-{CARGO_ZIGBUILD}-{ZIGLANG}"))
    }

    fn rust(&self) -> PathBuf {
        self.dir.join(format!("cargo-deb-{CARGO_DEB}"))
    }

    fn zigbuild(&self) -> PathBuf {
        self.python().join("bin/cargo-zigbuild")
    }

    fn cargo_deb(&self) -> PathBuf {
        self.rust().join("bin/cargo-deb")
    }

    /// A tool at work in the workspace; it finds zig by the first python3 on its path.
    fn command(&self, tool: &Path) -> Command {
        let mut path = self.python().join("bin").into_os_string();
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new(tool);
        command.current_dir(workspace()).env("PATH", path).env("CARGO", cargo());
        command.env("CARGO_ZIGBUILD_CACHE_DIR", self.dir.join("zigbuild-cache"));
        command.env("ZIG_GLOBAL_CACHE_DIR", self.dir.join("zig-cache"));
        command
    }
}

/// Makes a directory with something installed, unless it is there and complete. It cannot be
/// made under another name, for a virtual environment knows its own; a mark tells instead.
fn install(
    dir: &Path,
    what: &str,
    make: impl FnOnce(&Path, &Path, &Task) -> Result<()>,
) -> Result<()> {
    let complete = dir.join(".complete");
    if complete.exists() {
        return Ok(());
    }
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    let task = Task::start(what);
    let log = PathBuf::from(format!("{}.log", dir.display()));
    make(dir, &log, &task).with_context(|| what.to_owned())?;
    fs::write(&complete, "").with_context(|| format!("writing {}", complete.display()))?;
    task.done();
    Ok(())
}
