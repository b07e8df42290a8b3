//! Doors for the fuzz targets (`fuzz/`): each reads bytes as this crate reads them from a peer, and
//! panics if what was read breaks a promise. Not part of the crate's interface.

use ferry_proto::Fault;
use ferry_proto::fuzzing::Target;

use crate::frame::{self, FrameReader, FrameWriter, Section};
use crate::model::Spec;
use crate::record::Record;
use crate::{DatabaseManifest, compare, mariadb, postgres};

/// The targets by name.
pub const TARGETS: &[Target] = &[
    ("dump_frames", dump_frames),
    ("mariadb_object", mariadb_object),
    ("mariadb_ddl", mariadb_ddl),
    ("postgresql_filter", postgresql_filter),
    ("database_record", database_record),
];

/// A stream of a dump: chunks are bounded, and what was read whole is written as it was.
pub fn dump_frames(bytes: &[u8]) {
    let read = async {
        let mut input = bytes;
        let mut reader = FrameReader::start(&mut input, &|_| ()).await?;
        let mut sections = Vec::new();
        while let Some(section) = reader.next().await? {
            let mut chunks = Vec::new();
            while let Some(chunk) = reader.chunk().await? {
                assert!(!chunk.is_empty() && chunk.len() <= frame::MAX_CHUNK);
                chunks.push(chunk);
            }
            sections.push((section, chunks));
        }
        assert!(reader.bytes() <= bytes.len() as u64);
        let mut again = Vec::new();
        let mut writer = FrameWriter::start(&mut again, &|_| ()).await?;
        for (section, chunks) in &sections {
            writer.begin(*section).await?;
            for chunk in chunks {
                writer.chunk(chunk).await?;
            }
            writer.end_section().await?;
        }
        let length = writer.finish().await?;
        assert_eq!(&bytes[..length as usize], again);
        for (section, chunks) in sections {
            if section != Section::Sql {
                mariadb_object(&chunks.concat());
            }
        }
        Ok::<(), Fault>(())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let _ = runtime.expect("a runtime").block_on(read);
}

/// A stored object that passes its check is defined by a statement with a definer of the account.
pub fn mariadb_object(bytes: &[u8]) {
    mariadb::fuzz_object(bytes, &spec("mariadb"));
}

/// Table definitions pass the same in whatever pieces; on current releases untouched but for the order
/// to the client in the first line.
pub fn mariadb_ddl(bytes: &[u8]) {
    for server in [100_500, 101_100] {
        let whole = mariadb::fuzz_ddl(server, bytes, bytes.len().max(1));
        for step in [1, 7] {
            assert_eq!(mariadb::fuzz_ddl(server, bytes, step), whole);
        }
        if server > 100_600 {
            assert!(bytes.ends_with(&whole));
        }
        assert!(whole.len() <= bytes.len());
    }
}

/// What passes the filter holds nothing that it refuses, and passes alike in whatever pieces.
pub fn postgresql_filter(bytes: &[u8]) {
    for major in [13, 17] {
        let whole = postgres::fuzz_filter(major, bytes, bytes.len().max(1));
        for step in [1, 5] {
            assert_eq!(
                postgres::fuzz_filter(major, bytes, step).ok(),
                whole.as_ref().ok().cloned()
            );
        }
        let Ok(passed) = whole else { continue };
        let again = postgres::fuzz_filter(major, &passed, passed.len().max(1));
        assert!(again.is_ok(), "what was passed is refused: {again:?}");
    }
}

/// Records and manifests of another server.
pub fn database_record(bytes: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<Record>(bytes) {
        let text = serde_json::to_vec(&record).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<Record>(&text).ok().as_ref(), Some(&record));
        if let Ok(record) = record.mariadb() {
            let _ = record.check(&spec("mariadb"));
        }
        if let Ok(record) = record.postgresql() {
            let _ = record.check(&spec("postgresql"));
        }
    }
    if let Ok(manifest) = serde_json::from_slice::<DatabaseManifest>(bytes) {
        assert!(compare(&manifest, &manifest).is_empty());
    }
}

fn spec(engine: &str) -> Spec {
    let user = serde_json::json!({"engine": engine, "name": "shop"});
    Spec {
        account: "shop".parse().expect("a name"),
        uid: 1000,
        gid: 1000,
        databases: vec!["shop".parse().expect("a name")],
        users: vec![serde_json::from_value(user).expect("a user")],
    }
}
