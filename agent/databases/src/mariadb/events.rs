//! Switching events on and off without changing anything else about them.
//!
//! ALTER EVENT takes over who runs it and the session's character set as the event's own; so both
//! are set to the event's first.

use ferry_proto::Fault;

use super::record::{EventName, is_word};
use super::session::{Session, ident, text, user};

/// Switches an event on or off. An event that is not there is left so: its owner dropped it, or it
/// ran out. `mark`, a comment or nothing, ends the statement.
pub(super) async fn switch(
    session: &mut Session,
    event: &EventName,
    on: bool,
    mark: &str,
) -> Result<(), Fault> {
    let label = format!("event {}.{}", event.database, event.name);
    let what = format!("{label} cannot be switched {}", if on { "on" } else { "off" });
    let sql = format!(
        "SELECT DEFINER, CHARACTER_SET_CLIENT, COLLATION_CONNECTION, STATUS \
         FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {} AND BINARY EVENT_NAME = {}",
        text(&event.database),
        text(&event.name)
    );
    let rows = session.rows(&what, &sql).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    if (row.text(3) == "ENABLED") == on {
        return Ok(());
    }
    let definer = row.text(0);
    let (name, host) = definer.rsplit_once('@').unwrap_or((&definer, ""));
    let (charset, collation) = (row.text(1), row.text(2));
    if !is_word(&charset) || !is_word(&collation) {
        return Err(Fault::bug(format!("{what}: its character set is {charset:?}")));
    }
    let event_name = in_charset(session, &event.name, &charset).await?;
    let head = format!("ALTER DEFINER = {} EVENT {}.", user(name, host), ident(&event.database));
    let mut statement = head.into_bytes();
    statement.extend(quote(&event_name, b'`'));
    statement.extend_from_slice(if on { b" ENABLE" } else { b" DISABLE" });
    statement.extend_from_slice(mark.as_bytes());
    let set = format!("SET character_set_client = {charset}, collation_connection = {collation}");
    session.run(&what, &set).await?;
    let switched = session.run_bytes(&what, statement).await;
    session.run(&what, "SET NAMES utf8mb4").await?;
    switched
}

/// Character sets in which a quote or backslash can be the second byte of a character.
const UNSAFE: &[&str] = &["big5", "gbk", "sjis", "cp932", "gb18030"];

/// Whether bytes in `charset` can be quoted byte by byte.
pub(super) fn can_quote(bytes: &[u8], charset: &str) -> bool {
    bytes.is_ascii() || !UNSAFE.contains(&charset)
}

/// Bytes between quotes.
pub(super) fn quote(bytes: &[u8], quote: u8) -> Vec<u8> {
    let mut out = vec![quote];
    for byte in bytes {
        if *byte == quote {
            out.push(quote);
        }
        out.push(*byte);
    }
    out.push(quote);
    out
}

/// A text in another character set.
pub(super) async fn in_charset(
    session: &mut Session,
    value: &str,
    charset: &str,
) -> Result<Vec<u8>, Fault> {
    if value.is_ascii() || charset.starts_with("utf8") {
        return Ok(value.as_bytes().to_vec());
    }
    if !can_quote(value.as_bytes(), charset) {
        return Err(Fault::permanent(format!(
            "an event has the name or comment {value:?} and the character set {charset}, which Ferry cannot quote"
        ))
        .remedy("write the event's name and comment in ASCII"));
    }
    let sql = format!("SELECT HEX(CONVERT({} USING {charset}))", text(value));
    let hex = session.value("an event's name cannot be converted", &sql).await?;
    super::objects::unhex(&hex)
}
