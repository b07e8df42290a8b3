//! Commands and a doctor that removes take turns: a lock on the state directory, which the kernel lets go
//! of when its holder dies. Deadlines, boots and what peers are told go on without it: nothing that takes an
//! account back or opens it ever waits for a person's command.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use ferry_proto::Fault;

/// How long a command waits for a doctor, which takes seconds.
const WAIT: Duration = Duration::from_secs(20);
/// How often it is looked whether he has gone.
const LOOK: Duration = Duration::from_millis(50);

/// The turn, until dropped.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, and released when dropped")] File);

fn open(state_directory: &Path) -> Result<File, Fault> {
    File::open(state_directory)
        .map_err(|e| Fault::io(format!("cannot open {}", state_directory.display()), &e))
}

/// For a command; any number at once.
///
/// # Errors
/// Transient, if a doctor does not come to an end.
pub async fn of_command(state_directory: &Path) -> Result<Turn, Fault> {
    let file = open(state_directory)?;
    let began = tokio::time::Instant::now();
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(Turn(file)),
            Err(TryLockError::WouldBlock) if began.elapsed() < WAIT => {
                tokio::time::sleep(LOOK).await;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Fault::transient(
                    "ferry-agent doctor --remove does not end on this server",
                )
                .remedy("end it there, then repeat"));
            }
            Err(TryLockError::Error(e)) => {
                return Err(Fault::io("a command's turn cannot be taken", &e));
            }
        }
    }
}

/// For a doctor that removes; alone.
///
/// # Errors
/// Transient, while a command is under way.
pub fn of_doctor(state_directory: &Path) -> Result<Turn, Fault> {
    let file = open(state_directory)?;
    match file.try_lock() {
        Ok(()) => Ok(Turn(file)),
        Err(TryLockError::WouldBlock) => {
            Err(Fault::transient("nothing is removed: the agent carries out a command")
                .remedy("repeat it when `ferry status` shows no job of this server under way"))
        }
        Err(TryLockError::Error(e)) => Err(Fault::io("a turn cannot be taken", &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn commands_go_together_and_a_doctor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let commands =
            [of_command(dir.path()).await.unwrap(), of_command(dir.path()).await.unwrap()];
        let fault = of_doctor(dir.path()).unwrap_err();
        assert!(fault.message.contains("carries out a command"), "{fault}");
        drop(commands);
        let doctor = of_doctor(dir.path()).unwrap();
        let fault = of_command(dir.path()).await.unwrap_err();
        assert_eq!(fault.class, ferry_proto::FaultClass::Transient);
        let waiting = tokio::spawn({
            let path = dir.path().to_owned();
            async move { of_command(&path).await }
        });
        drop(doctor);
        waiting.await.unwrap().unwrap();
    }
}
