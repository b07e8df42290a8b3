//! Views, routines, triggers and events as typed objects: read at the source from the server's own
//! account of them, and written anew at the target with a definer that was checked. Only the
//! text after the object's kind crosses as it is; it is in the character set that the object was
//! made with, so it is bytes.

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use super::events::{can_quote, quote};
use super::inspect::is_ours;
use super::record::is_word;
use super::session::{Session, ident, text, user};
use crate::model::Spec;

const WHAT: &str = "the stored objects of a database cannot be read";

/// What an object is. In this order they are defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Function,
    Procedure,
    Package,
    PackageBody,
    View,
    Trigger,
    Event,
}

impl Kind {
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Function => "FUNCTION",
            Self::Procedure => "PROCEDURE",
            Self::Package => "PACKAGE",
            Self::PackageBody => "PACKAGE BODY",
            Self::View => "VIEW",
            Self::Trigger => "TRIGGER",
            Self::Event => "EVENT",
        }
    }
}

/// A stored object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredObject {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) definer: (String, String),
    pub(super) sql_mode: String,
    pub(super) charset: String,
    pub(super) collation: String,
    /// The database's collation when it was made; empty for a view, which has none.
    pub(super) database_collation: String,
    /// Views: UNDEFINED, MERGE or TEMPTABLE.
    pub(super) algorithm: String,
    /// Views: DEFINER or INVOKER.
    pub(super) security: String,
    /// Functions: whether it is an aggregate.
    pub(super) aggregate: bool,
    /// What follows the kind (an event: its body), in hexadecimal.
    pub(super) tail: String,
    pub(super) schedule: Option<Schedule>,
}

/// When an event runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Schedule {
    /// Its name and comment, in hexadecimal in the event's character set.
    pub(super) name: String,
    pub(super) comment: String,
    pub(super) time_zone: String,
    /// Once at this time, or every so often.
    pub(super) at: String,
    pub(super) every: String,
    pub(super) unit: String,
    pub(super) starts: String,
    pub(super) ends: String,
    pub(super) preserve: bool,
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{b:02X}");
        out
    })
}

pub(super) fn unhex(text: &str) -> Result<Vec<u8>, Fault> {
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? * 16 + digit(*low)?),
        _ => None,
    });
    pairs.collect::<Option<_>>().ok_or_else(|| Fault::permanent("a dump has broken hexadecimal"))
}

/// Every stored object of a database but the views in `broken`, in the order of definition.
pub(super) async fn read(
    session: &mut Session,
    spec: &Spec,
    database: &str,
    broken: &[String],
) -> Result<Vec<StoredObject>, Fault> {
    let db = text(database);
    let sql = format!(
        "SELECT ROUTINE_TYPE, ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {db} \
         ORDER BY ROUTINE_NAME"
    );
    let mut names = Vec::new();
    for row in session.rows(WHAT, &sql).await? {
        let kind = match row.text(0).as_str() {
            "FUNCTION" => Kind::Function,
            "PROCEDURE" => Kind::Procedure,
            "PACKAGE" => Kind::Package,
            "PACKAGE BODY" => Kind::PackageBody,
            other => {
                return Err(Fault::permanent(format!(
                    "{database} has a routine of the kind {other}"
                )));
            }
        };
        names.push((kind, row.text(1)));
    }
    let sql = format!(
        "SELECT TABLE_NAME FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {db} ORDER BY TABLE_NAME"
    );
    let views = session.rows(WHAT, &sql).await?;
    names
        .extend(views.iter().map(|r| (Kind::View, r.text(0))).filter(|(_, v)| !broken.contains(v)));
    let sql = format!(
        "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {db} \
         ORDER BY EVENT_OBJECT_TABLE, EVENT_MANIPULATION, ACTION_TIMING, ACTION_ORDER"
    );
    names.extend(session.rows(WHAT, &sql).await?.iter().map(|r| (Kind::Trigger, r.text(0))));
    names.sort_by_key(|(kind, _)| *kind);
    let mut objects = Vec::new();
    // The server then sends what it keeps, unconverted.
    session.run(WHAT, "SET character_set_results = NULL").await?;
    for (kind, name) in names {
        objects.push(read_one(session, database, kind, name).await?);
    }
    session.run(WHAT, "SET NAMES utf8mb4").await?;
    objects.extend(read_events(session, database).await?);
    for object in &objects {
        if !is_ours(spec, &object.definer.0, &object.definer.1) {
            return Err(foreign_definer(database, object));
        }
    }
    Ok(objects)
}

fn foreign_definer(database: &str, object: &StoredObject) -> Fault {
    Fault::precondition(format!(
        "{} {database}.{} runs with the rights of {}@{}, who is not of the account",
        object.kind.sql().to_ascii_lowercase(),
        object.name,
        object.definer.0,
        object.definer.1
    ))
    .remedy("create it again as one of the account's own users (DEFINER), or add that user to the definition")
}

async fn read_one(
    session: &mut Session,
    database: &str,
    kind: Kind,
    name: String,
) -> Result<StoredObject, Fault> {
    let what = format!("{} {database}.{name} cannot be read", kind.sql().to_ascii_lowercase());
    let sql = format!("SHOW CREATE {} {}.{}", kind.sql(), ident(database), ident(&name));
    let rows = session.rows(&what, &sql).await?;
    let row = rows.first().ok_or_else(|| Fault::transient(what.clone()))?;
    // A view's columns: name, text, character set, collation. The others': name, SQL mode, text,
    // character set, collation, the database's collation.
    let (mode, at) = if kind == Kind::View { (String::new(), 1) } else { (row.text(1), 2) };
    let parsed = row.bytes(at).and_then(|create| parse(create, kind));
    let parsed = parsed.ok_or_else(|| {
        Fault::permanent(what).remedy("look at its SHOW CREATE: is it there, and readable?")
    })?;
    Ok(StoredObject {
        kind,
        name,
        sql_mode: mode,
        charset: row.text(at + 1),
        collation: row.text(at + 2),
        database_collation: if kind == Kind::View { String::new() } else { row.text(at + 3) },
        definer: parsed.definer,
        algorithm: parsed.algorithm,
        security: parsed.security,
        aggregate: parsed.aggregate,
        tail: hex(parsed.tail),
        schedule: None,
    })
}

async fn read_events(session: &mut Session, database: &str) -> Result<Vec<StoredObject>, Fault> {
    let sql = format!(
        "SELECT i.EVENT_NAME, i.DEFINER, i.SQL_MODE, i.CHARACTER_SET_CLIENT, i.COLLATION_CONNECTION, \
         i.DATABASE_COLLATION, HEX(e.body), i.TIME_ZONE, i.EXECUTE_AT, i.INTERVAL_VALUE, \
         i.INTERVAL_FIELD, i.STARTS, i.ENDS, i.ON_COMPLETION, i.EVENT_COMMENT \
         FROM information_schema.EVENTS i \
         JOIN mysql.event e ON e.db = i.EVENT_SCHEMA AND e.name = i.EVENT_NAME \
         WHERE i.EVENT_SCHEMA = {} ORDER BY i.EVENT_NAME",
        text(database)
    );
    let mut objects = Vec::new();
    for row in session.rows(WHAT, &sql).await? {
        let definer = row.text(1);
        let (name, host) = definer.rsplit_once('@').unwrap_or((&definer, ""));
        let charset = row.text(3);
        if !is_word(&charset) {
            return Err(Fault::bug(format!("an event has the character set {charset:?}")));
        }
        let in_charset = super::events::in_charset(session, &row.text(0), &charset).await?;
        let comment = super::events::in_charset(session, &row.text(14), &charset).await?;
        objects.push(StoredObject {
            kind: Kind::Event,
            name: row.text(0),
            definer: (name.to_owned(), host.to_owned()),
            sql_mode: row.text(2),
            charset,
            collation: row.text(4),
            database_collation: row.text(5),
            algorithm: String::new(),
            security: String::new(),
            aggregate: false,
            tail: row.text(6),
            schedule: Some(Schedule {
                name: hex(&in_charset),
                comment: hex(&comment),
                time_zone: row.text(7),
                at: row.text(8),
                every: row.text(9),
                unit: row.text(10),
                starts: row.text(11),
                ends: row.text(12),
                preserve: row.text(13) == "PRESERVE",
            }),
        });
    }
    Ok(objects)
}

struct Parsed<'a> {
    definer: (String, String),
    algorithm: String,
    security: String,
    aggregate: bool,
    tail: &'a [u8],
}

/// Takes a CREATE statement, as the server writes it, apart up to the object's kind.
fn parse(create: &[u8], kind: Kind) -> Option<Parsed<'_>> {
    let mut rest = create.strip_prefix(b"CREATE ")?;
    let mut parsed = Parsed {
        definer: Default::default(),
        algorithm: String::new(),
        security: String::new(),
        aggregate: false,
        tail: &[],
    };
    // Each part stands at most once; the server writes no others.
    for _ in 0..6 {
        if let Some(after) = rest.strip_prefix(b"OR REPLACE ") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix(b"ALGORITHM=") {
            (parsed.algorithm, rest) = word(after)?;
        } else if let Some(after) = rest.strip_prefix(b"DEFINER=") {
            let (name, after) = quoted(after)?;
            let (host, after) = quoted(after.strip_prefix(b"@")?)?;
            parsed.definer = (name, host);
            rest = after.strip_prefix(b" ")?;
        } else if let Some(after) = rest.strip_prefix(b"SQL SECURITY ") {
            (parsed.security, rest) = word(after)?;
        } else if let Some(after) = rest.strip_prefix(b"AGGREGATE ") {
            parsed.aggregate = true;
            rest = after;
        } else {
            let (keyword, after) = rest.split_at_checked(kind.sql().len())?;
            if !keyword.eq_ignore_ascii_case(kind.sql().as_bytes())
                || !after.first().is_some_and(u8::is_ascii_whitespace)
            {
                return None;
            }
            parsed.tail = after;
            return Some(parsed);
        }
    }
    None
}

fn word(text: &[u8]) -> Option<(String, &[u8])> {
    let end = text.iter().position(|b| *b == b' ')?;
    Some((String::from_utf8(text[..end].to_vec()).ok()?, &text[end + 1..]))
}

fn quoted(text: &[u8]) -> Option<(String, &[u8])> {
    let quote = *text.first().filter(|b| **b == b'`' || **b == b'"')?;
    let mut out = Vec::new();
    let mut at = 1;
    loop {
        let byte = *text.get(at)?;
        if byte == quote {
            if text.get(at + 1) != Some(&quote) {
                return Some((String::from_utf8(out).ok()?, &text[at + 1..]));
            }
            at += 1;
        }
        out.push(byte);
        at += 1;
    }
}

const UNITS: &[&str] = &[
    "YEAR",
    "QUARTER",
    "MONTH",
    "DAY",
    "HOUR",
    "MINUTE",
    "WEEK",
    "SECOND",
    "YEAR_MONTH",
    "DAY_HOUR",
    "DAY_MINUTE",
    "DAY_SECOND",
    "HOUR_MINUTE",
    "HOUR_SECOND",
    "MINUTE_SECOND",
];

impl StoredObject {
    /// Refuses what could mean more than the object: it comes from another server.
    pub(super) fn check(&self, spec: &Spec, database: &str) -> Result<(), Fault> {
        if !is_ours(spec, &self.definer.0, &self.definer.1) {
            return Err(foreign_definer(database, self));
        }
        let modes = self.sql_mode.len() <= 1024
            && self
                .sql_mode
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b"_,0123456789".contains(&b));
        let algorithm = ["", "UNDEFINED", "MERGE", "TEMPTABLE"].contains(&self.algorithm.as_str());
        let security = ["", "DEFINER", "INVOKER"].contains(&self.security.as_str());
        let charsets = is_word(&self.charset)
            && is_word(&self.collation)
            && (self.database_collation.is_empty() || is_word(&self.database_collation));
        let scheduled = match &self.schedule {
            Some(schedule) => self.kind == Kind::Event && schedule.is_sound(&self.charset),
            None => self.kind != Kind::Event,
        };
        if modes && algorithm && security && charsets && scheduled {
            return Ok(());
        }
        Err(Fault::permanent(format!(
            "the dump of {database} describes {:?} in words that mean more than they should",
            self.name.chars().take(64).collect::<String>()
        )))
    }

    /// What to set before it is defined.
    pub(super) fn setting(&self) -> String {
        let zone = self.schedule.as_ref().map_or("SYSTEM", |s| s.time_zone.as_str());
        format!(
            "SET sql_mode = {}, time_zone = {}, character_set_client = {}, collation_connection = {}",
            text(&self.sql_mode),
            text(zone),
            self.charset,
            self.collation
        )
    }

    /// The statement that defines it; an event is off.
    pub(super) fn statement(&self) -> Result<Vec<u8>, Fault> {
        let mut sql = String::from("CREATE ");
        if !self.algorithm.is_empty() {
            sql.push_str(&format!("ALGORITHM = {} ", self.algorithm));
        }
        sql.push_str(&format!("DEFINER = {} ", user(&self.definer.0, &self.definer.1)));
        if !self.security.is_empty() {
            sql.push_str(&format!("SQL SECURITY {} ", self.security));
        }
        if self.aggregate {
            sql.push_str("AGGREGATE ");
        }
        sql.push_str(self.kind.sql());
        let mut sql = sql.into_bytes();
        if let Some(schedule) = &self.schedule {
            sql.extend(schedule.clause(!self.sql_mode.contains("NO_BACKSLASH_ESCAPES"))?);
        }
        sql.extend(unhex(&self.tail)?);
        Ok(sql)
    }

    /// For an event: what makes it go away once it has run, if it does. It is given afterwards,
    /// since an event whose time is past would go away at once when it is created.
    pub(super) fn afterthought(&self) -> Result<Option<Vec<u8>>, Fault> {
        let Some(schedule) = self.schedule.as_ref().filter(|s| !s.preserve) else {
            return Ok(None);
        };
        let definer = user(&self.definer.0, &self.definer.1);
        let mut sql = format!("ALTER DEFINER = {definer} EVENT ").into_bytes();
        sql.extend(quote(&unhex(&schedule.name)?, b'`'));
        sql.extend_from_slice(b" ON COMPLETION NOT PRESERVE DISABLE");
        Ok(Some(sql))
    }
}

impl Schedule {
    fn is_sound(&self, charset: &str) -> bool {
        let time = |t: &str| {
            t.len() <= 32 && t.bytes().all(|b| b.is_ascii_digit() || b"-: .".contains(&b))
        };
        let every = self.every.trim_matches('\'');
        time(&self.at)
            && time(&self.starts)
            && time(&self.ends)
            && time(every)
            && self.time_zone.len() <= 64
            && (self.unit.is_empty() || UNITS.contains(&self.unit.as_str()))
            && self.unit.is_empty() != self.at.is_empty()
            && unhex(&self.name).is_ok_and(|name| can_quote(&name, charset))
            && unhex(&self.comment).is_ok_and(|comment| can_quote(&comment, charset))
    }

    fn clause(&self, backslash_escapes: bool) -> Result<Vec<u8>, Fault> {
        let mut sql = b" ".to_vec();
        sql.extend(quote(&unhex(&self.name)?, b'`'));
        let when = if self.at.is_empty() {
            let mut when = format!("EVERY '{}' {}", self.every.trim_matches('\''), self.unit);
            if !self.starts.is_empty() {
                when.push_str(&format!(" STARTS '{}'", self.starts));
            }
            if !self.ends.is_empty() {
                when.push_str(&format!(" ENDS '{}'", self.ends));
            }
            when
        } else {
            format!("AT '{}'", self.at)
        };
        sql.extend(format!(" ON SCHEDULE {when} ON COMPLETION PRESERVE DISABLE").bytes());
        if !self.comment.is_empty() {
            sql.extend_from_slice(b" COMMENT ");
            let comment = unhex(&self.comment)?;
            let escaped = comment.iter().flat_map(|b| match b {
                b'\\' if backslash_escapes => vec![b'\\', b'\\'],
                b => vec![*b],
            });
            sql.extend(quote(&escaped.collect::<Vec<_>>(), b'\''));
        }
        sql.extend_from_slice(b" DO ");
        Ok(sql)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_writes_is_taken_apart() {
        let view =
            b"CREATE ALGORITHM=MERGE DEFINER=`a``b`@`%` SQL SECURITY INVOKER VIEW `v` AS select 1";
        let parsed = parse(view, Kind::View).expect("a view");
        assert_eq!(parsed.definer, ("a`b".to_owned(), "%".to_owned()));
        assert_eq!((parsed.algorithm.as_str(), parsed.security.as_str()), ("MERGE", "INVOKER"));
        assert_eq!(parsed.tail, b" `v` AS select 1");
        let function = b"CREATE DEFINER=\"u\"@\"localhost\" AGGREGATE FUNCTION \"f\"() RETURNS int";
        let parsed = parse(function, Kind::Function).expect("a function");
        assert!(parsed.aggregate);
        assert_eq!(parsed.tail, b" \"f\"() RETURNS int");
        assert!(parse(function, Kind::Procedure).is_none());
        assert!(parse(b"CREATE DEFINER=`role` PROCEDURE p() BEGIN END", Kind::Procedure).is_none());
        assert!(parse(b"CREATE DEFINER=`u", Kind::Procedure).is_none());
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(hex(&[0, 171]), "00AB");
        assert_eq!(unhex("00ab"), Ok(vec![0, 171]));
        assert!(unhex("0").is_err() && unhex("zz").is_err());
    }
}
