//! The rows of tables with FLOAT columns, written as INSERT statements by Ferry itself: the
//! vendor's tool writes such a value with six digits, which is not the value.

use std::fmt::Write;

use ferry_proto::Fault;

use super::objects::hex;
use super::record::is_word;
use super::session::{Row, Session, ident, text};
use crate::frame::FrameWriter;

const WHAT: &str = "the rows of a table cannot be read";
/// A statement is closed once it is this long.
const STATEMENT: usize = 256 * 1024;

/// What the session that loads the rows must be set to.
pub(super) const PRELUDE: &str = "SET NAMES utf8mb4, TIME_ZONE = '+00:00', UNIQUE_CHECKS = 0, \
     FOREIGN_KEY_CHECKS = 0, SQL_MODE = 'NO_AUTO_VALUE_ON_ZERO';\n";

/// The tables of a database that have a FLOAT column.
pub(super) async fn tables(session: &mut Session, database: &str) -> Result<Vec<String>, Fault> {
    let sql = format!(
        "SELECT DISTINCT c.TABLE_NAME FROM information_schema.COLUMNS c \
         JOIN information_schema.TABLES t ON t.TABLE_SCHEMA = c.TABLE_SCHEMA AND t.TABLE_NAME = c.TABLE_NAME \
         WHERE c.TABLE_SCHEMA = {} AND c.DATA_TYPE = 'float' AND t.TABLE_TYPE = 'BASE TABLE' \
         AND UPPER(t.ENGINE) <> 'MRG_MYISAM' AND c.IS_GENERATED = 'NEVER' ORDER BY 1",
        text(database)
    );
    Ok(session.rows(WHAT, &sql).await?.iter().map(|r| r.text(0)).collect())
}

/// How a value is written.
#[derive(Clone, PartialEq, Eq)]
enum Form {
    /// As it is: a number.
    Bare,
    /// Between quotes: a time, an address.
    Quoted,
    /// In hexadecimal, after this character set's introducer, if any.
    Hex(String),
}

/// The columns to be read and how each is written.
pub(super) struct Columns {
    names: Vec<String>,
    reads: Vec<String>,
    forms: Vec<Form>,
}

async fn columns(session: &mut Session, database: &str, table: &str) -> Result<Columns, Fault> {
    let sql = format!(
        "SELECT COLUMN_NAME, LOWER(DATA_TYPE), CHARACTER_SET_NAME FROM information_schema.COLUMNS \
         WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} AND IS_GENERATED = 'NEVER' ORDER BY ORDINAL_POSITION",
        text(database),
        text(table)
    );
    let mut columns = Columns { names: Vec::new(), reads: Vec::new(), forms: Vec::new() };
    for row in session.rows(WHAT, &sql).await? {
        let name = ident(&row.text(0));
        let (read, form) = match row.text(1).as_str() {
            // As a DOUBLE it is written with all its digits.
            "float" => (format!("CAST({name} AS DOUBLE)"), Form::Bare),
            "double" | "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal"
            | "year" => (name.clone(), Form::Bare),
            "date" | "time" | "datetime" | "timestamp" | "uuid" | "inet4" | "inet6" => {
                (name.clone(), Form::Quoted)
            }
            _ => match row.opt(2) {
                Some(charset) if is_word(&charset) => {
                    (name.clone(), Form::Hex(format!("_{charset} ")))
                }
                _ => (name.clone(), Form::Hex(String::new())),
            },
        };
        columns.names.push(name);
        columns.reads.push(read);
        columns.forms.push(form);
    }
    Ok(columns)
}

/// Writes the rows of a table as statements.
pub(super) async fn write(
    session: &mut Session,
    database: &str,
    table: &str,
    writer: &mut FrameWriter<'_>,
) -> Result<(), Fault> {
    let columns = columns(session, database, table).await?;
    let select =
        format!("SELECT {} FROM {}.{}", columns.reads.join(", "), ident(database), ident(table));
    let insert = format!("INSERT INTO {} ({}) VALUES\n", ident(table), columns.names.join(", "));
    session.run(WHAT, "SET character_set_results = NULL").await?;
    let mut statement = String::new();
    {
        let mut rows = session.stream(WHAT, select).await?;
        while let Some(row) = rows.next(WHAT).await? {
            statement.push_str(if statement.is_empty() { &insert } else { ",\n" });
            push_row(&mut statement, &row, &columns.forms);
            if statement.len() >= STATEMENT {
                statement.push_str(";\n");
                writer.chunk(statement.as_bytes()).await?;
                statement.clear();
            }
        }
    }
    if !statement.is_empty() {
        statement.push_str(";\n");
        writer.chunk(statement.as_bytes()).await?;
    }
    session.run(WHAT, "SET NAMES utf8mb4").await
}

fn push_row(out: &mut String, row: &Row, forms: &[Form]) {
    out.push('(');
    for (i, form) in forms.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        let Some(value) = row.bytes(i) else {
            out.push_str("NULL");
            continue;
        };
        // Writing to a String cannot fail.
        let _ = match form {
            Form::Bare => write!(out, "{}", String::from_utf8_lossy(value)),
            Form::Quoted => write!(out, "{}", text(&String::from_utf8_lossy(value))),
            Form::Hex(introducer) => write!(out, "{introducer}X'{}'", hex(value)),
        };
    }
    out.push(')');
}
