//! What went wrong, in a form that crosses the wire: a class that the engine matches
//! exhaustively, and the sentences that a person reads.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::command::Refusal;

/// How a fault is to be treated. Set where the fault arises, never guessed from its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultClass {
    /// May go away by itself: try again.
    Transient,
    /// The world is not as the step needs it; a person or an earlier step must change it.
    Precondition,
    /// The epoch, the deadline or the account's state forbids it.
    Fenced,
    /// Somebody asked for it to end.
    Cancelled,
    /// Trying again cannot help.
    Permanent,
    /// Ferry itself is wrong.
    Bug,
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transient => "transient",
            Self::Precondition => "precondition",
            Self::Fenced => "fenced",
            Self::Cancelled => "cancelled",
            Self::Permanent => "permanent",
            Self::Bug => "bug",
        })
    }
}

/// The longest text of a fault that another server tells, in characters.
const MAX_TEXT: usize = 1000;
/// The most causes of such a fault.
const MAX_CAUSES: usize = 20;

/// Cuts a text that another server sent, and takes out what a terminal would obey.
pub fn clean(text: &mut String) {
    if text.chars().count() > MAX_TEXT || text.chars().any(char::is_control) {
        let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        *text = text.chars().take(MAX_TEXT).map(plain).collect();
    }
}

/// A fault: class, what happened, the chain of causes, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// How to treat it.
    pub class: FaultClass,
    /// What happened, one sentence.
    pub message: String,
    /// The causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next; empty if there is nothing to add.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// The target's durable word that it never opens an epoch, if that is what happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Box<Refusal>>,
}

impl Fault {
    /// A fault of `class`.
    pub fn new(class: FaultClass, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            causes: Vec::new(),
            remedy: String::new(),
            refusal: None,
        }
    }

    /// A fault that may go away by itself.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Transient, message)
    }

    /// A fault in what the step found.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Precondition, message)
    }

    /// A refusal by epoch, deadline or state.
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Fenced, message)
    }

    /// A target's refusal, which it has recorded.
    pub fn refused(refusal: Refusal) -> Self {
        let message = format!(
            "{} has refused account {} at epoch {}: {}",
            refusal.target, refusal.account, refusal.epoch, refusal.reason
        );
        Self { refusal: Some(Box::new(refusal)), ..Self::fenced(message) }
    }

    /// The refusal that ends an epoch for good, if this is one.
    pub fn final_refusal(&self) -> Option<&Refusal> {
        self.refusal.as_deref().filter(|_| self.class == FaultClass::Fenced)
    }

    /// A fault that trying again cannot mend.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Permanent, message)
    }

    /// A fault of Ferry's own.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Bug, message)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// Adds `error` and its sources as causes.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            self.causes.push(cause.to_string());
            next = cause.source();
        }
        self
    }

    /// The fault as another server may tell it: bounded, without what a terminal would obey, and no
    /// bug of ours, for what it says proves none.
    #[must_use]
    pub fn told_by_another(mut self) -> Self {
        self.causes.truncate(MAX_CAUSES);
        for text in self.causes.iter_mut().chain([&mut self.message, &mut self.remedy]) {
            clean(text);
        }
        if self.class == FaultClass::Bug {
            self.class = FaultClass::Permanent;
        }
        self
    }

    /// Puts `message` in front; the old message becomes the first cause.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        let inner = std::mem::replace(&mut self.message, message.into());
        self.causes.insert(0, inner);
        self
    }

    /// A fault for an input or output error: lack of space is a precondition, an interruption or a
    /// lost connection transient, the rest permanent.
    pub fn io(message: impl Into<String>, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let class = match error.kind() {
            K::StorageFull | K::QuotaExceeded | K::ReadOnlyFilesystem => FaultClass::Precondition,
            K::Interrupted
            | K::TimedOut
            | K::WouldBlock
            | K::ConnectionRefused
            | K::ConnectionReset
            | K::ConnectionAborted
            | K::NotConnected
            | K::BrokenPipe
            | K::UnexpectedEof
            | K::HostUnreachable
            | K::NetworkUnreachable
            | K::NetworkDown => FaultClass::Transient,
            _ => FaultClass::Permanent,
        };
        Self::new(class, message).caused_by(error)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        if !self.remedy.is_empty() {
            write!(f, " ({})", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
