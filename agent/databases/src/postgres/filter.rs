//! What of a dump is passed to psql, and how: statement by statement.
//!
//! psql obeys orders that begin with a backslash, anywhere outside quotes; a dump needs none of
//! them. So the filter splits the text as psql's own lexer does and refuses a backslash outside
//! quotes. It is one of three guards: newer psql is told to refuse them too (`\restrict`), and
//! psql runs as the account's user, unable to start a process or write a file.
//!
//! Statements that another release cannot understand, or that need a superuser, are left out or
//! rewritten; what they would do is done from the account's record.

mod rewrite;

use ferry_proto::Fault;

/// The longest statement; rows are no part of one.
const MAX_STATEMENT: usize = 64 * 1024 * 1024;
/// At most so many notes.
const MAX_NOTES: usize = 50;

/// Where in a statement the lexer is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Plain,
    LineComment,
    /// Depth.
    BlockComment(u32),
    /// Between `'`; whether a backslash escapes.
    Quote(bool),
    /// Between `"`.
    Name,
    /// Between dollar quotes with this delimiter, behind which the content begins here: what opens it is no
    /// part of what closes it.
    Dollar(Vec<u8>, usize),
    /// Rows of COPY, up to a line `\.`.
    Rows,
}

/// The filter: fed with any pieces, it yields the pieces to be passed.
pub(super) struct Filter {
    major: u32,
    encoding: String,
    state: State,
    /// What was not passed on yet; in `Rows`, the line so far.
    buffer: Vec<u8>,
    /// Where in the buffer the statement begins. What is before it is dropped once a piece: dropped with
    /// each statement, a line of a million would take hours.
    start: usize,
    /// How far the buffer has been looked at.
    at: usize,
    /// psql's own account of SQL-standard function bodies, in which `;` ends no statement.
    words: Vec<String>,
    depth: u32,
    parentheses: u32,
    /// A string with escapes has just ended; one that follows would go on with escapes.
    after_escapes: bool,
    notes: Vec<String>,
}

impl Filter {
    /// For a server of this release and a database of this encoding.
    pub(super) fn new(major: u32, encoding: &str) -> Self {
        Self {
            major,
            encoding: encoding.to_owned(),
            state: State::Plain,
            buffer: Vec::new(),
            start: 0,
            at: 0,
            words: Vec::new(),
            depth: 0,
            parentheses: 0,
            after_escapes: false,
            notes: Vec::new(),
        }
    }

    /// What was left out and is worth knowing.
    pub(super) fn notes(self) -> Vec<String> {
        self.notes
    }

    fn note(&mut self, note: String) {
        if self.notes.len() < MAX_NOTES && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Takes a piece of the dump; returns what may be passed on.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::with_capacity(piece.len());
        let mut rest = piece;
        while !rest.is_empty() {
            if self.state == State::Rows {
                let end = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1);
                self.row_part(&rest[..end], &mut out);
                rest = &rest[end..];
                continue;
            }
            // Looked at line by line: no word ends between lines, and rows begin on a new one.
            let newline = rest.iter().position(|b| *b == b'\n');
            let end = newline.map_or(rest.len(), |at| at + 1);
            self.buffer.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
            if self.buffer.len() > MAX_STATEMENT {
                return Err(Fault::permanent("a dump has a statement longer than Ferry takes"));
            }
            if newline.is_some() {
                self.scan(&mut out)?;
            }
        }
        Ok(out)
    }

    /// The end of the dump.
    pub(super) fn finish(&mut self) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        if self.state == State::Rows {
            return Err(Fault::permanent("a dump ended within the rows of a table"));
        }
        self.scan(&mut out)?;
        match self.state {
            State::Plain | State::LineComment if significant(self.statement()).is_empty() => {
                Ok(out)
            }
            _ => Err(Fault::permanent("a dump ended within a statement")),
        }
    }

    /// A row, or a part of one: only a line of `\.` is of interest, and it comes in one part or is
    /// put together from several.
    fn row_part(&mut self, part: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(part);
        let ends = part.ends_with(b"\n");
        if self.buffer.len() <= 3 {
            self.buffer.extend_from_slice(&part[..part.len().min(4)]);
        }
        if ends {
            let line = std::mem::take(&mut self.buffer);
            if line == b"\\.\n" || line == b"\\.\r\n" {
                self.state = State::Plain;
            }
        }
    }

    /// Looks at what was added, as psql's lexer does.
    fn scan(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        while self.at < self.buffer.len() {
            match &self.state {
                State::Plain => self.plain(out)?,
                State::Rows => return Ok(()),
                _ => self.quoted(),
            }
        }
        self.buffer.drain(..self.start);
        self.at -= self.start;
        if let State::Dollar(_, content) = &mut self.state {
            *content -= self.start;
        }
        self.start = 0;
        Ok(())
    }

    /// The statement so far.
    fn statement(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn two(&self) -> &[u8] {
        &self.buffer[self.at..(self.at + 2).min(self.buffer.len())]
    }

    /// Within quotes or a comment: one step.
    fn quoted(&mut self) {
        let byte = self.buffer[self.at];
        let two = self.two().to_vec();
        let (next, step) = match &self.state {
            State::LineComment if byte == b'\n' => (Some(State::Plain), 1),
            State::BlockComment(depth) => match two.as_slice() {
                b"/*" => (Some(State::BlockComment(depth + 1)), 2),
                b"*/" if *depth == 1 => (Some(State::Plain), 2),
                b"*/" => (Some(State::BlockComment(depth - 1)), 2),
                _ => (None, 1),
            },
            State::Quote(escapes) => match two.as_slice() {
                b"''" => (None, 2),
                [b'\\', _] if *escapes => (None, 2),
                [b'\'', ..] => {
                    self.after_escapes = *escapes;
                    (Some(State::Plain), 1)
                }
                _ => (None, 1),
            },
            State::Name => match two.as_slice() {
                b"\"\"" => (None, 2),
                [b'"', ..] => (Some(State::Plain), 1),
                _ => (None, 1),
            },
            State::Dollar(delimiter, content) => {
                if self.buffer[*content..=self.at].ends_with(delimiter) {
                    (Some(State::Plain), 1)
                } else {
                    (None, 1)
                }
            }
            _ => (None, 1),
        };
        self.at += step;
        if let Some(next) = next {
            self.state = next;
        }
    }

    /// Outside quotes: one step.
    fn plain(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let byte = self.buffer[self.at];
        let two = self.two().to_vec();
        let comment = two == b"--" || two == b"/*";
        let goes_on = std::mem::take(&mut self.after_escapes);
        self.after_escapes = goes_on && (comment || byte.is_ascii_whitespace());
        match two.as_slice() {
            b"--" => self.enter(State::LineComment, 2),
            b"/*" => self.enter(State::BlockComment(1), 2),
            [b'e' | b'E', b'\''] => self.enter(State::Quote(true), 2),
            [b'\'', ..] if goes_on => return Err(unclear("a string that goes on")),
            [b'\'', ..] => self.enter(State::Quote(false), 1),
            [b'"', ..] => self.enter(State::Name, 1),
            [b'\\', ..] => return self.order(),
            [b';', ..] if self.depth == 0 && self.parentheses == 0 => {
                self.at += 1;
                self.end_statement(out)?;
            }
            [b'(', ..] => {
                self.parentheses += 1;
                self.at += 1;
            }
            [b')', ..] => {
                self.parentheses = self.parentheses.saturating_sub(1);
                self.at += 1;
            }
            b"::" => self.at += 2,
            [b':', b'A'..=b'Z' | b'\'' | b'"' | b'{'] => {
                return Err(unclear("a client's variable"));
            }
            [b'$', b'0'..=b'9'] => return self.number(1),
            [b'$', ..] => match self.dollar() {
                Some(delimiter) => {
                    let length = delimiter.len();
                    self.enter(State::Dollar(delimiter, self.at + length), length);
                }
                None => self.at += 1,
            },
            _ if byte.is_ascii_digit() => return self.number(0),
            _ if is_word_start(byte) => self.word(),
            _ => self.at += 1,
        }
        Ok(())
    }

    /// A number, or a parameter. What follows it without a blank is read differently by different
    /// releases, so only an exponent may.
    fn number(&mut self, skip: usize) -> Result<(), Fault> {
        let rest = &self.buffer[self.at + skip..];
        let length = rest.iter().position(|b| !is_word_byte(*b)).unwrap_or(rest.len());
        let token = &rest[..length];
        let digits = token.iter().position(|b| !b.is_ascii_digit()).unwrap_or(length);
        let exponent = matches!(&token[digits..], [] | [b'e' | b'E', ..])
            && token.iter().skip(digits + 1).all(u8::is_ascii_digit);
        if !exponent {
            return Err(unclear("a number that runs into a word"));
        }
        self.at += skip + length;
        Ok(())
    }

    fn enter(&mut self, state: State, step: usize) {
        self.state = state;
        self.at += step;
    }

    /// The delimiter of a dollar quote that begins here.
    fn dollar(&self) -> Option<Vec<u8>> {
        let rest = &self.buffer[self.at..];
        let length = rest.iter().skip(1).position(|b| !is_word_byte(*b) || *b == b'$')? + 1;
        let tag = &rest[1..length];
        let closed = rest.get(length) == Some(&b'$');
        let named = tag.first().is_none_or(|b| !b.is_ascii_digit());
        (closed && named).then(|| rest[..=length].to_vec())
    }

    /// A word: psql counts them to know a function body of SQL's own from other statements.
    fn word(&mut self) {
        let rest = &self.buffer[self.at..];
        let length = rest.iter().position(|b| !is_word_byte(*b)).unwrap_or(rest.len());
        let word = String::from_utf8_lossy(&rest[..length]).to_ascii_lowercase();
        self.at += length;
        if self.words.len() < 4 {
            self.words.push(word.clone());
        }
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let defines = matches!(
            words.as_slice(),
            ["create", "function" | "procedure", ..]
                | ["create", "or", "replace", "function" | "procedure"]
        );
        // Since release 14; inside parentheses psql does not look.
        if defines && self.major >= 14 && self.parentheses == 0 {
            match word.as_str() {
                "begin" => self.depth += 1,
                "case" if self.depth > 0 => self.depth += 1,
                "end" if self.depth > 0 => self.depth -= 1,
                _ => {}
            }
        }
    }

    /// A backslash outside quotes. Newer dumps begin and end with a pair of orders that guard the
    /// rest; they are left out, since Ferry puts its own guard. All others are refused.
    fn order(&mut self) -> Result<(), Fault> {
        let rest = &self.buffer[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let line = &rest[..end];
        let mut words = line.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
        let known = matches!(words.next(), Some(b"\\restrict" | b"\\unrestrict"));
        let key = words.next().is_some_and(|w| w.iter().all(u8::is_ascii_alphanumeric));
        let alone =
            words.next().is_none() && significant(&self.buffer[self.start..self.at]).is_empty();
        if !(known && key && alone) {
            return Err(refused_order(line));
        }
        self.at += end;
        self.start = self.at;
        Ok(())
    }

    fn end_statement(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let statement = self.buffer[self.start..self.at].to_vec();
        self.start = self.at;
        let words = std::mem::take(&mut self.words);
        self.depth = 0;
        if significant(&statement).starts_with(b"/*") {
            return Err(unclear("a comment before a statement"));
        }
        let copies = words.first().is_some_and(|word| word == "copy");
        if copies && !begins_rows(&statement) {
            return Err(unclear("COPY in a form that dumps do not use"));
        }
        let passed = self.rewrite(&statement)?;
        out.extend(passed.unwrap_or_default());
        if copies {
            // The rest of COPY's line belongs to it; its rows begin on the next.
            let left = self.statement();
            let line_end = left.iter().position(|b| *b == b'\n');
            let rest = &left[..line_end.unwrap_or(left.len())];
            if line_end.is_none() || !rest.iter().all(|b| b" \t\r".contains(b)) {
                return Err(Fault::permanent("a dump has something after COPY on its line"));
            }
            out.push(b'\n');
            self.buffer.clear();
            (self.start, self.at) = (0, 0);
            self.state = State::Rows;
        }
        Ok(())
    }
}

/// Something that no dump contains and that releases of psql could read differently.
fn unclear(what: &str) -> Fault {
    Fault::permanent(format!("a dump contains {what}"))
        .remedy("no dump contains it: distrust the server that it came from")
}

fn refused_order(line: &[u8]) -> Fault {
    let shown: String = String::from_utf8_lossy(line).chars().take(40).collect();
    Fault::permanent(format!("a dump contains an order to the client: {shown:?}"))
        .remedy("a dump never needs one: distrust the server that it came from")
}

/// Whether rows follow a statement.
fn begins_rows(statement: &[u8]) -> bool {
    let text = String::from_utf8_lossy(significant(statement)).to_ascii_lowercase();
    let text = text.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
    text.starts_with("copy ") && text.ends_with(" from stdin")
}

/// A statement without the blanks and comments before it.
fn significant(mut text: &[u8]) -> &[u8] {
    loop {
        text = text.trim_ascii_start();
        if !text.starts_with(b"--") {
            return text;
        }
        match text.iter().position(|b| *b == b'\n') {
            Some(end) => text = &text[end..],
            None => return &[],
        }
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word_byte(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

#[cfg(test)]
mod tests;
