//! Which statements of a dump are left out or rewritten, and why.

use ferry_proto::Fault;

use super::{Filter, significant};

/// Settings that a dump may make, and the release that brought them.
const SETTINGS: &[(&str, u32)] = &[
    ("statement_timeout", 0),
    ("lock_timeout", 0),
    ("idle_in_transaction_session_timeout", 0),
    ("transaction_timeout", 17),
    ("client_encoding", 0),
    ("standard_conforming_strings", 0),
    ("check_function_bodies", 0),
    ("xmloption", 0),
    ("client_min_messages", 0),
    ("row_security", 0),
    ("default_tablespace", 0),
    ("default_table_access_method", 12),
];

impl Filter {
    /// What is passed for a statement; none: nothing.
    pub(super) fn rewrite(&mut self, statement: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let start = statement.len() - significant(statement).len();
        let body = String::from_utf8_lossy(&statement[start..]);
        let words: Vec<String> = body
            .split(|c: char| c.is_whitespace() || c == '=' || c == ';')
            .filter(|w| !w.is_empty())
            .take(16)
            .map(str::to_ascii_lowercase)
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let passed = match words.as_slice() {
            ["set", "session", "authorization", "default"]
            | ["reset", "session", "authorization"] => Some(b"\nRESET ROLE;".to_vec()),
            ["set", "session", "authorization", _] => {
                // As it is written there, quotes included.
                let role = body.split_whitespace().nth(3).unwrap_or_default();
                Some(format!("\nSET ROLE {role}").into_bytes())
            }
            ["set", name, ..] => self.may_set(name, &words)?.then(|| statement.to_vec()),
            ["create", "extension", ..] | ["comment", "on", "extension", ..] => None,
            ["create", "schema", first, ..] if *first != "if" && *first != "authorization" => {
                let rest = &statement[start + "CREATE SCHEMA".len()..];
                Some([b"\nCREATE SCHEMA IF NOT EXISTS", rest].concat())
            }
            ["alter", "schema", "public" | "\"public\"", "owner", ..] => None,
            ["grant" | "revoke", ..] => self.grant(statement, &body),
            ["alter", "table", .., "set", "compression", _] if self.major < 14 => {
                self.note("the compression of columns is chosen by the target".to_owned());
                None
            }
            _ => Some(statement.to_vec()),
        };
        Ok(passed)
    }

    fn may_set(&mut self, name: &str, words: &[&str]) -> Result<bool, Fault> {
        let Some((_, since)) = SETTINGS.iter().find(|(known, _)| *known == name) else {
            self.note(format!("a setting of the dump was left out: {name}"));
            return Ok(false);
        };
        let value = words.get(2).map(|v| v.trim_matches('\'').to_ascii_lowercase());
        // Both decide what is inside quotes and what is not.
        let sound = match name {
            "standard_conforming_strings" => value.as_deref() == Some("on"),
            "client_encoding" => value.is_some_and(|v| v.eq_ignore_ascii_case(&self.encoding)),
            _ => true,
        };
        if !sound {
            return Err(Fault::permanent(format!(
                "a dump sets {name} to something else than its database has"
            )));
        }
        Ok(self.major >= *since)
    }

    /// Grants on the schema that every database begins with are given from the record; a privilege
    /// that the target does not know is left out.
    fn grant(&mut self, statement: &[u8], body: &str) -> Option<Vec<u8>> {
        let lower = body.to_ascii_lowercase();
        if lower.contains(" on schema public ") || lower.contains(" on schema \"public\" ") {
            return None;
        }
        let Some((privileges, object)) = body.split_once(" ON ") else {
            return Some(statement.to_vec());
        };
        if self.major >= 17 || !privileges.contains("MAINTAIN") {
            return Some(statement.to_vec());
        }
        self.note("the privilege MAINTAIN was left out: the target does not know it".to_owned());
        let (verb, list) = privileges.split_once(' ')?;
        let (option, list) = match list.strip_prefix("GRANT OPTION FOR ") {
            Some(list) => ("GRANT OPTION FOR ", list),
            None => ("", list),
        };
        let kept: Vec<&str> = list.split(',').map(str::trim).filter(|p| *p != "MAINTAIN").collect();
        if kept.is_empty() {
            return None;
        }
        Some(format!("\n{verb} {option}{} ON {object}", kept.join(",")).into_bytes())
    }
}
