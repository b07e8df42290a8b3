//! Doors for the fuzz targets (`fuzz/`): each reads bytes as this crate reads them from visitors, other
//! redirectors and peers, and panics if what was read breaks a promise. Not part of the crate's
//! interface.

use ferry_proto::fuzzing::{Target, json_keeps};

use crate::control::{self, Overview, Reply, Request};
use crate::mail::MailRecord;
use crate::redirector::fuzzing::{self, Routes};

/// The targets by name.
pub const TARGETS: &[Target] = &[
    ("http_head", fuzzing::http_head),
    ("http_body", fuzzing::http_body),
    ("client_hello", fuzzing::client_hello),
    ("proxy_header", fuzzing::proxy_header),
    ("control", control_messages),
    ("mail_record", mail_record),
];

/// The lines of the control socket: bounded, kept by JSON, and what they ask leaves the table sound.
pub fn control_messages(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut routes = Routes::default();
    runtime.block_on(async {
        let mut lines = bytes;
        while let Ok(Some(request)) = control::read_message::<Request>(&mut lines).await {
            let mut line = Vec::new();
            let written = control::write_message(&mut line, &request).await;
            // Escapes may make a line longer than the one that was read.
            if written.is_ok() {
                let again = control::read_message::<Request>(&mut line.as_slice()).await;
                assert_eq!(again.ok().flatten().as_ref(), Some(&request));
            }
            let _ = fuzzing::ask(&mut routes, request);
            fuzzing::sound(&routes);
        }
    });
    json_keeps::<Reply>(bytes);
    json_keeps::<Overview>(bytes);
    json_keeps::<Routes>(bytes);
}

/// A password that another server sends stays within its field of a passwd-file.
pub fn mail_record(bytes: &[u8]) {
    let Some(record) = json_keeps::<MailRecord>(bytes) else { return };
    for password in &record.passwords {
        let text = String::from(password.hash.clone());
        assert!(text.bytes().all(|b| b.is_ascii_graphic() && b != b':') && text.len() > 3);
    }
}
