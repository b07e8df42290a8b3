//! Journals as data, for the next process of the agent.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ferry_files::journal::Whose;
use ferry_proto::ids::{AccountName, JobId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A file system that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptWatch {
    /// What its queue is called.
    pub queue: String,
    /// By what it is told.
    pub backend: String,
    /// Which device it is.
    pub device: (u32, u32),
    /// Only others' changes are noted.
    pub others: bool,
    /// The trees on it.
    pub journals: Vec<KeptJournal>,
}

impl KeptWatch {
    /// Whose changes are noted.
    pub fn whose(&self) -> Whose {
        if self.others { Whose::Others } else { Whose::Everybodys }
    }
}

/// The journal of one tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptJournal {
    /// Of whose home.
    pub account: AccountName,
    /// For which move.
    pub job: JobId,
    /// Where it is.
    pub root: PathBuf,
    /// Which directory that was.
    pub handle: Bytes,
    /// The other end is what a pass left that began when the changes begin.
    pub follows: bool,
    /// What has changed and was not taken yet.
    pub changes: Bytes,
    /// What had been taken of it since a comparison of everything began; none if there was none.
    pub compared: Option<Bytes>,
}

/// Bytes, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        BASE64.decode(text).map(Self).map_err(de::Error::custom)
    }
}
