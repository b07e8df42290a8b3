//! Which statements of a dump are left out or rewritten, and why.

use ferry_proto::Fault;

use super::{Filter, significant, unclear};

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
                let role = body.split_whitespace().nth(3).filter(|role| role.ends_with(';'));
                let role = role.ok_or_else(|| unclear("a role that is not one word"))?;
                Some(format!("\nSET ROLE {role}").into_bytes())
            }
            ["set", name, ..] => self.may_set(name, &words)?.then(|| statement.to_vec()),
            ["create", "extension", ..] | ["comment", "on", "extension", ..] => None,
            ["create", "schema", first, ..] if *first != "if" && *first != "authorization" => {
                let rest = statement[start..].strip_prefix(b"CREATE SCHEMA ");
                let rest =
                    rest.ok_or_else(|| unclear("a schema in a form that dumps do not use"))?;
                Some([b"\nCREATE SCHEMA IF NOT EXISTS ", rest].concat())
            }
            ["alter", "schema", "public" | "\"public\"", "owner", ..] => None,
            ["grant" | "revoke", ..] => self.grant(statement, start),
            ["alter", "default", "privileges", ..] => self.default_privileges(statement, start),
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
    fn grant(&mut self, statement: &[u8], start: usize) -> Option<Vec<u8>> {
        let body = &statement[start..];
        let lower = body.to_ascii_lowercase();
        let public: [&[u8]; 2] = [b" on schema public ", b" on schema \"public\" "];
        if public.iter().any(|schema| find(&lower, schema).is_some()) {
            return None;
        }
        match self.known_privileges(body) {
            Privileges::AsTheyAre => Some(statement.to_vec()),
            Privileges::Fewer(clause) => Some([b"\n", clause.as_slice()].concat()),
            Privileges::None => None,
        }
    }

    /// The same for privileges that are given on what will be created.
    fn default_privileges(&mut self, statement: &[u8], start: usize) -> Option<Vec<u8>> {
        let body = &statement[start..];
        let Some(verb) = unquoted_verb(body) else { return Some(statement.to_vec()) };
        match self.known_privileges(&body[verb..]) {
            Privileges::AsTheyAre => Some(statement.to_vec()),
            Privileges::Fewer(clause) => Some([b"\n", &body[..verb], &clause].concat()),
            Privileges::None => None,
        }
    }

    /// What of a clause, from GRANT or REVOKE on, the target knows.
    fn known_privileges(&mut self, clause: &[u8]) -> Privileges {
        let Some(at) = find(clause, b" ON ") else { return Privileges::AsTheyAre };
        let (privileges, object) = clause.split_at(at);
        let privileges = String::from_utf8_lossy(privileges);
        if self.major >= 17 || !privileges.contains("MAINTAIN") {
            return Privileges::AsTheyAre;
        }
        let Some((verb, list)) = privileges.split_once(' ') else { return Privileges::AsTheyAre };
        self.note("the privilege MAINTAIN was left out: the target does not know it".to_owned());
        let (option, list) = match list.strip_prefix("GRANT OPTION FOR ") {
            Some(list) => ("GRANT OPTION FOR ", list),
            None => ("", list),
        };
        let kept: Vec<&str> = list.split(',').map(str::trim).filter(|p| *p != "MAINTAIN").collect();
        if kept.is_empty() {
            return Privileges::None;
        }
        let kept = format!("{verb} {option}{}", kept.join(","));
        Privileges::Fewer([kept.as_bytes(), object].concat())
    }
}

/// What is left of a clause once unknown privileges are taken out.
enum Privileges {
    AsTheyAre,
    Fewer(Vec<u8>),
    None,
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// Where GRANT or REVOKE stands outside the quotes of names.
fn unquoted_verb(text: &[u8]) -> Option<usize> {
    let mut quoted = false;
    text.iter().enumerate().find_map(|(at, byte)| {
        quoted ^= *byte == b'"';
        let rest = &text[at..];
        let verb = rest.starts_with(b" GRANT ") || rest.starts_with(b" REVOKE ");
        (!quoted && verb).then_some(at + 1)
    })
}
