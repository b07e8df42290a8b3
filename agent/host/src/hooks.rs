//! Runs an account's hook: as the account, with a clean environment, a deadline, and a bound on what
//! it may say. Knows nothing of what hooks are for.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use ferry_proto::account::Definition;
use ferry_proto::ids::HomePath;
use ferry_proto::{Fault, FaultClass};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use serde::{Deserialize, Serialize};

use crate::Layout;
use crate::run::{self, Run, RunError};
use crate::users::passwd::Database;

/// How long a hook may take unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of each of its outputs is kept.
const OUTPUT_CAP: usize = 64 * 1024;

/// What a hook that ended has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookReport {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed, control characters removed, cut.
    pub stdout: String,
    /// What it printed as errors, likewise.
    pub stderr: String,
}

/// Runs the executable `hook` below the account's home, as the account. At `timeout` it is killed with its
/// process group; what has left the group goes on as one of the account's processes.
///
/// # Errors
/// Precondition if the hook is not a regular executable file of the account below its home;
/// permanent if it fails; transient if it does not end in time.
pub fn run(
    layout: &Layout,
    definition: &Definition,
    hook: &HomePath,
    timeout: Duration,
) -> Result<HookReport, Fault> {
    run_telling(layout, definition, hook, timeout, || {})
}

/// The same; says when there is a process, which a fence of the account would end.
///
/// # Errors
/// As [`run`].
pub fn run_telling(
    layout: &Layout,
    definition: &Definition,
    hook: &HomePath,
    timeout: Duration,
    begun: impl FnOnce(),
) -> Result<HookReport, Fault> {
    let what = format!("the hook {hook} of account {} failed", definition.name);
    let database = Database::read(layout)?;
    let name = definition.user.as_str();
    let user = database.user(name).ok_or_else(|| {
        Fault::precondition(format!("there is no user {name} in /etc/passwd"))
            .remedy("make the user")
    })?;
    if user.uid < 100 {
        return Err(Fault::precondition(format!("user {name} belongs to the system"))
            .remedy("name the account's own user in its definition"));
    }
    let home = examine(definition, hook, user.uid)?;
    let mut groups: Vec<String> = database
        .groups()
        .iter()
        .filter(|g| g.members.iter().any(|m| m == name))
        .map(|g| g.gid.to_string())
        .collect();
    groups.push(user.gid.to_string());
    // What is executed is looked up by path once more, but by then as the account: it can reach
    // nothing that the account could not run by itself.
    let output = Run::new("/usr/bin/setpriv")
        .named("hook")
        .arguments(["--reuid", &user.uid.to_string(), "--regid", &user.gid.to_string()])
        .arguments(["--groups", &groups.join(","), "--inh-caps=-all", "--"])
        .argument(hook.below(&definition.home))
        .environment(environment(definition))
        .directory(PathBuf::from(format!("/proc/self/fd/{}", home.as_raw_fd())))
        .timeout(timeout)
        .cap(OUTPUT_CAP)
        .output_telling(begun)
        .map_err(|e| match e {
            RunError::Timeout => {
                let mut fault = Fault::new(FaultClass::Transient, what.clone());
                fault.causes.push(format!("it did not end within {} s", timeout.as_secs()));
                fault.remedy("make the hook faster, or allow it more time")
            }
            e @ RunError::Io(_) => e.fault(&what, "setpriv", timeout),
        })?;
    let report = HookReport {
        code: output.status.code(),
        stdout: run::printable(&output.stdout, OUTPUT_CAP),
        stderr: run::printable(&output.stderr, OUTPUT_CAP),
    };
    if output.status.success() {
        return Ok(report);
    }
    let mut fault =
        Fault::permanent(what).remedy("run the hook by hand as the account and mend it");
    fault.causes.push(output.status.to_string());
    fault.causes.extend(Some(output.said()).filter(|said| !said.is_empty()));
    Err(fault)
}

fn environment(definition: &Definition) -> Vec<(OsString, OsString)> {
    let user = definition.user.as_str();
    vec![
        ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()),
        ("LANG".into(), "C.UTF-8".into()),
        ("SHELL".into(), "/bin/sh".into()),
        ("HOME".into(), definition.home.clone().into()),
        ("USER".into(), user.into()),
        ("LOGNAME".into(), user.into()),
        ("FERRY_ACCOUNT".into(), definition.name.as_str().into()),
    ]
}

/// Sees that the hook is the account's own executable below its home; the home, held open.
fn examine(
    definition: &Definition,
    hook: &HomePath,
    uid: u32,
) -> Result<std::os::fd::OwnedFd, Fault> {
    let refuse = |why: &str| {
        Fault::precondition(format!("the hook {hook} of account {} {why}", definition.name)).remedy(
            "put an executable file of the account there, or remove the hook from the definition",
        )
    };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let home = rustix::fs::open(&definition.home, flags, Mode::empty())
        .map_err(|e| refuse("cannot be reached: the home cannot be opened").caused_by(&e))?;
    let file = openat2(
        &home,
        hook.as_str(),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|e| refuse("is not a file below the home").caused_by(&e))?;
    let stat = fstat(&file).map_err(|e| refuse("cannot be examined").caused_by(&e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refuse("is not a regular file"));
    }
    if stat.st_uid != uid {
        return Err(refuse("does not belong to the account"));
    }
    if stat.st_mode & 0o100 == 0 {
        return Err(refuse("is not executable"));
    }
    Ok(home)
}

#[cfg(test)]
mod tests;
