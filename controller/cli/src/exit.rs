//! How the program ends: the exit codes, and the failures that lead to them.

use std::io;

use ferry_proto::Fault;

/// Exit codes. Scripts rely on them: a number never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// What was asked for is done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// Preflight found what forbids the move.
    Blocked = 3,
    /// The person said no.
    Declined = 4,
    /// The move was undone: the account is at the source.
    Undone = 5,
    /// The job needs a person.
    Stuck = 6,
    /// The controller does not answer.
    Unreachable = 7,
    /// The controller does not accept the token.
    Unauthorised = 8,
    /// The job is paused: the account is at the source, and it goes on when somebody wants that.
    Paused = 9,
    /// The move was to be paused, and is done: somebody let it go on before it had stopped.
    WentOn = 10,
    /// Interrupted at the keyboard. Jobs go on.
    Interrupted = 130,
}

/// What `--json` prints, as `--help` shows it.
pub const JSON: &str = "\
With --json:
  server, account, status       one document
  move --dry-run, or forbidden  the plan
  move, rollback, pause, abort, resume, finalize, status JOB --watch
                                a line for each change of the job; the last is how it ended
  any of these with --detach    the job's id
  events                        a line for each event
  errors                        {\"error\": ..., \"exit_code\": ...} on a line of its own";

/// The codes as `--help` shows them. Code 2 is clap's.
pub const TABLE: &str = "\
Exit codes:
  0    done
  1    failed, or any error without a code of its own
  2    the command line is not right
  3    preflight found something that forbids the move
  4    you said no
  5    the move was undone: the account is at the source, as before
  6    stuck: a person must look
  7    the controller does not answer
  8    the controller does not accept the token
  9    the move is paused: the account is at the source, and `ferry resume` lets it go on
  10   the move was to be paused, and is done: the account is at the target
  130  interrupted; a move that was started goes on";

/// Why the program ends early.
#[derive(Debug)]
pub enum Failure {
    /// Something to tell.
    Told {
        /// The code to end with.
        exit: Exit,
        /// What to tell. On the heap: a result is carried through every call.
        fault: Box<Fault>,
    },
    /// Whoever read the output has stopped reading; there is nobody to tell.
    OutputClosed,
}

impl Failure {
    /// A failure with a code of its own.
    pub fn new(exit: Exit, fault: Fault) -> Self {
        Self::Told { exit, fault: Box::new(fault) }
    }

    /// An input or output error.
    pub fn io(message: impl Into<String>, error: &io::Error) -> Self {
        Fault::io(message, error).into()
    }

    /// The code to end with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Told { exit, .. } => *exit,
            Self::OutputClosed => Exit::Failed,
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::new(Exit::Failed, fault)
    }
}
