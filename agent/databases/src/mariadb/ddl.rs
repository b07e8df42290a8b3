//! Small changes to a dump's table definitions on their way into the client, for a target of
//! another release. Rows pass untouched: in the vendor's dump a line break within a value is
//! written as an escape, so that a line beginning like a definition is one.

/// The first line of newer dumps: an order to the client, which older ones take for an error.
const SANDBOX: &[u8] = b"/*M!999999\\- enable the sandbox mode */";
/// A definition's line is collected up to this length; a longer one is passed as it is.
const MAX_LINE: usize = 64 * 1024;

/// The filter: fed with any pieces, it yields the pieces to be passed.
pub(super) struct DdlFilter {
    /// Since 10.6 `utf8` is called `utf8mb3`, a name that older collations do not have.
    old_utf8: bool,
    line: Vec<u8>,
    /// In the middle of a line that is passed as it is.
    passing: bool,
    first: bool,
}

impl DdlFilter {
    /// For a server of this version.
    pub(super) fn new(server: u32) -> Self {
        Self { old_utf8: server < 100_600, line: Vec::new(), passing: false, first: true }
    }

    pub(super) fn feed(&mut self, mut piece: &[u8]) -> Vec<u8> {
        if !self.old_utf8 && !self.first {
            return piece.to_vec();
        }
        let mut out = Vec::with_capacity(piece.len() + 64);
        while !piece.is_empty() {
            let end = piece.iter().position(|b| *b == b'\n').map(|at| at + 1);
            let (part, rest) = piece.split_at(end.unwrap_or(piece.len()));
            piece = rest;
            if self.passing {
                out.extend_from_slice(part);
                self.passing = end.is_none();
                continue;
            }
            self.line.extend_from_slice(part);
            if end.is_some() {
                out.extend(self.finished_line());
            } else if self.line.len() > MAX_LINE || !self.may_be_changed() {
                out.append(&mut self.line);
                self.passing = true;
                self.first = false;
            }
        }
        out
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.finished_line()
    }

    fn may_be_changed(&self) -> bool {
        let could = |prefix: &[u8]| {
            let n = prefix.len().min(self.line.len());
            self.line[..n] == prefix[..n]
        };
        (self.first && could(SANDBOX)) || (self.old_utf8 && (could(b"  `") || could(b") ENGINE")))
    }

    fn finished_line(&mut self) -> Vec<u8> {
        let line = std::mem::take(&mut self.line);
        let first = std::mem::take(&mut self.first);
        if first && line.starts_with(SANDBOX) {
            return Vec::new();
        }
        if self.old_utf8 && (line.starts_with(b"  `") || line.starts_with(b") ENGINE")) {
            let line = replace(&line, b" COLLATE utf8mb3_", b" COLLATE utf8_");
            return replace(&line, b" COLLATE=utf8mb3_", b" COLLATE=utf8_");
        }
        line
    }
}

fn replace(line: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let mut at = 0;
    while at < line.len() {
        if line[at..].starts_with(from) {
            out.extend_from_slice(to);
            at += from.len();
        } else {
            out.push(line[at]);
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(server: u32, dump: &[u8], step: usize) -> String {
        let mut filter = DdlFilter::new(server);
        let mut out = Vec::new();
        for piece in dump.chunks(step) {
            out.extend(filter.feed(piece));
        }
        out.extend(filter.finish());
        String::from_utf8(out).expect("text")
    }

    const DUMP: &str = "/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump\n\
        CREATE TABLE `t` (\n  `a` varchar(9) CHARACTER SET utf8mb3 COLLATE utf8mb3_bin,\n\
        ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb3 COLLATE=utf8mb3_general_ci;\n\
        INSERT INTO `t` VALUES\n(' COLLATE utf8mb3_bin');\nend";

    #[test]
    fn only_definitions_are_changed_and_only_for_old_servers() {
        let body = DUMP.split_once('\n').expect("lines").1;
        let old = body
            .replace("utf8mb3 COLLATE utf8mb3_bin", "utf8mb3 COLLATE utf8_bin")
            .replace("COLLATE=utf8mb3_", "COLLATE=utf8_");
        for step in [1, 2, 7, 4096] {
            assert_eq!(filtered(101_100, DUMP.as_bytes(), step), body, "step {step}");
            assert_eq!(filtered(100_500, DUMP.as_bytes(), step), old, "step {step}");
            assert_eq!(filtered(101_100, body.as_bytes(), step), body, "step {step}");
        }
    }

    #[test]
    fn long_lines_pass() {
        let mut dump = b"INSERT INTO t VALUES ('".to_vec();
        dump.resize(300_000, b'x');
        dump.extend_from_slice(b"');\n  `long");
        dump.resize(600_000, b'y');
        for server in [100_500, 101_100] {
            assert_eq!(filtered(server, &dump, 50_000).as_bytes(), dump);
        }
    }
}
