//! The stream between a dump and a load: sections of a kind, each a run of length-prefixed chunks.
//! It knows nothing of SQL. The reader takes hostile input: every length is bounded.
//!
//! ```text
//! "FERRYDB1"  section*  end
//! section:    kind u8 (1 facts, 2 SQL, 3 object)   chunk*  u32 0
//! chunk:      length u32 (1 to 256 KiB), bytes
//! end:        kind 0
//! ```

use ferry_proto::{Fault, FaultClass};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::child::STALL;
use crate::engine::Progress;

const MAGIC: &[u8; 8] = b"FERRYDB1";
const END: u8 = 0;
/// The most that one chunk holds.
pub(crate) const MAX_CHUNK: usize = 256 * 1024;
/// The most that a section read as a whole may hold: a routine, an event, the facts.
const MAX_WHOLE: usize = 16 * 1024 * 1024;

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// JSON about the dump as a whole; the first section.
    Facts = 1,
    /// SQL for the engine's own client.
    Sql = 2,
    /// JSON of one typed object.
    Object = 3,
}

impl Section {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Facts, Self::Sql, Self::Object].into_iter().find(|s| *s as u8 == byte)
    }
}

/// Writes the sections of a dump.
pub(crate) struct FrameWriter<'a> {
    out: &'a mut (dyn AsyncWrite + Send + Unpin),
    progress: Progress<'a>,
    bytes: u64,
}

impl<'a> FrameWriter<'a> {
    pub(crate) async fn start(
        out: &'a mut (dyn AsyncWrite + Send + Unpin),
        progress: Progress<'a>,
    ) -> Result<Self, Fault> {
        let mut writer = Self { out, progress, bytes: 0 };
        writer.raw(MAGIC).await?;
        Ok(writer)
    }

    async fn raw(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.out.write_all(bytes).await.map_err(|e| Fault::io("the dump cannot be sent", &e))?;
        self.bytes += bytes.len() as u64;
        (self.progress)(self.bytes);
        Ok(())
    }

    pub(crate) async fn begin(&mut self, section: Section) -> Result<(), Fault> {
        self.raw(&[section as u8]).await
    }

    pub(crate) async fn chunk(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        for part in bytes.chunks(MAX_CHUNK) {
            // A part is at most MAX_CHUNK long, which fits.
            self.raw(&(part.len() as u32).to_be_bytes()).await?;
            self.raw(part).await?;
        }
        Ok(())
    }

    pub(crate) async fn end_section(&mut self) -> Result<(), Fault> {
        self.raw(&0u32.to_be_bytes()).await
    }

    /// A whole section of JSON.
    pub(crate) async fn json<T: Serialize + Sync>(
        &mut self,
        section: Section,
        value: &T,
    ) -> Result<(), Fault> {
        let text = serde_json::to_vec(value)
            .map_err(|e| Fault::bug("an object of a dump cannot be written").caused_by(&e))?;
        if text.len() > MAX_WHOLE {
            return Err(Fault::permanent(format!(
                "a stored object is {} bytes long, more than the {MAX_WHOLE} that a dump carries",
                text.len()
            )));
        }
        self.begin(section).await?;
        self.chunk(&text).await?;
        self.end_section().await
    }

    /// The closing mark; returns the bytes written.
    pub(crate) async fn finish(mut self) -> Result<u64, Fault> {
        self.raw(&[END]).await?;
        self.out.flush().await.map_err(|e| Fault::io("the dump cannot be sent", &e))?;
        Ok(self.bytes)
    }
}

/// Reads the sections of a dump.
pub(crate) struct FrameReader<'a> {
    input: &'a mut (dyn AsyncRead + Send + Unpin),
    progress: Progress<'a>,
    bytes: u64,
}

impl<'a> FrameReader<'a> {
    pub(crate) async fn start(
        input: &'a mut (dyn AsyncRead + Send + Unpin),
        progress: Progress<'a>,
    ) -> Result<Self, Fault> {
        let mut reader = Self { input, progress, bytes: 0 };
        let mut magic = [0; MAGIC.len()];
        reader.exact(&mut magic).await?;
        if &magic != MAGIC {
            return Err(Fault::permanent("what arrived is not a dump of this version of Ferry")
                .remedy("run the same release of ferry-agent on both servers"));
        }
        Ok(reader)
    }

    async fn exact(&mut self, buffer: &mut [u8]) -> Result<(), Fault> {
        let read = tokio::time::timeout(STALL, self.input.read_exact(buffer)).await;
        let read = read.map_err(|_| {
            Fault::transient(format!(
                "nothing of the dump came for {} minutes",
                STALL.as_secs() / 60
            ))
            .remedy("look for a lock on the source's database server, then try again")
        })?;
        read.map_err(|e| {
            Fault::new(FaultClass::Transient, "the dump ended before its closing mark")
                .caused_by(&e)
        })?;
        self.bytes += buffer.len() as u64;
        (self.progress)(self.bytes);
        Ok(())
    }

    /// The next section; none after the closing mark.
    pub(crate) async fn next(&mut self) -> Result<Option<Section>, Fault> {
        let mut kind = [0];
        self.exact(&mut kind).await?;
        if kind[0] == END {
            return Ok(None);
        }
        Section::from_byte(kind[0])
            .map(Some)
            .ok_or_else(|| Fault::permanent(format!("a dump has an unknown section {}", kind[0])))
    }

    /// The next chunk of the section; none at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let mut length = [0; 4];
        self.exact(&mut length).await?;
        // A u32 fits a usize on every system that runs an agent.
        let length = u32::from_be_bytes(length) as usize;
        if length == 0 {
            return Ok(None);
        }
        if length > MAX_CHUNK {
            return Err(Fault::permanent(format!("a dump has a chunk of {length} bytes")));
        }
        let mut chunk = vec![0; length];
        self.exact(&mut chunk).await?;
        Ok(Some(chunk))
    }

    /// A whole section of JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Fault> {
        let mut text = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if text.len() + chunk.len() > MAX_WHOLE {
                return Err(Fault::permanent("an object of a dump is too long"));
            }
            text.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&text)
            .map_err(|e| Fault::permanent("an object of a dump cannot be read").caused_by(&e))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = FrameWriter::start(&mut out, &|_| ()).await.expect("starts");
        writer.json(Section::Facts, &"x").await.expect("writes");
        writer.begin(Section::Sql).await.expect("begins");
        writer.chunk(&vec![7; MAX_CHUNK + 1]).await.expect("writes");
        writer.end_section().await.expect("ends");
        let bytes = writer.finish().await.expect("finishes");
        assert_eq!(bytes, out.len() as u64);
        out
    }

    async fn read(bytes: &[u8]) -> Result<usize, Fault> {
        let mut input = bytes;
        let mut reader = FrameReader::start(&mut input, &|_| ()).await?;
        let mut sql = 0;
        while let Some(section) = reader.next().await? {
            if section == Section::Facts {
                assert_eq!(reader.json::<String>().await?, "x");
                continue;
            }
            while let Some(chunk) = reader.chunk().await? {
                sql += chunk.len();
            }
        }
        Ok(sql)
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        assert_eq!(read(&sample().await).await, Ok(MAX_CHUNK + 1));
    }

    #[tokio::test]
    async fn every_truncation_is_noticed() {
        let whole = sample().await;
        for length in (0..64).chain(whole.len() - 64..whole.len()) {
            assert!(read(&whole[..length]).await.is_err(), "{length}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_falls_silent_is_not_waited_for_without_end() {
        let (mut source, mut input) = tokio::io::duplex(64);
        source.write_all(MAGIC).await.expect("writes");
        let mut reader = FrameReader::start(&mut input, &|_| ()).await.expect("starts");
        let fault = reader.next().await.expect_err("it says nothing more");
        assert_eq!(fault.class, FaultClass::Transient, "{fault}");
    }

    #[tokio::test]
    async fn hostile_lengths_are_refused() {
        let mut bytes = MAGIC.to_vec();
        bytes.push(Section::Sql as u8);
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        let fault = read(&bytes).await.expect_err("too long");
        assert_eq!(fault.class, FaultClass::Permanent);
        let mut bytes = MAGIC.to_vec();
        bytes.push(99);
        assert!(read(&bytes).await.is_err());
        assert!(read(b"-- MySQL dump").await.is_err());
    }
}
