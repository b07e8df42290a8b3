//! A definition while it is being proposed: each part with its evidence and its doubts, and its text.

use std::fmt::Write as _;

use ferry_proto::ids::AccountName;

use super::shown::shown;

/// One table of a definition, or what stands before all of them.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) evidence: Vec<String>,
    pub(super) review: Vec<String>,
    /// Lines of TOML, made of checked values.
    pub(super) lines: Vec<String>,
    /// A part that is too doubtful is a comment.
    pub(super) doubted: bool,
}

impl Part {
    pub(super) fn new(evidence: String) -> Self {
        Self { evidence: vec![evidence], ..Self::default() }
    }

    pub(super) fn review(&mut self, doubt: impl Into<String>) {
        let doubt = doubt.into();
        if !self.review.contains(&doubt) {
            self.review.push(doubt);
        }
    }

    /// Proposes it as a comment only.
    pub(super) fn doubt(&mut self, doubt: impl Into<String>) {
        self.review(doubt);
        self.doubted = true;
    }

    /// A line `key = value`; lists are of strings.
    pub(super) fn set(&mut self, key: &str, value: impl Into<toml::Value>) {
        self.lines.push(format!("{key} = {}", value.into()));
    }

    fn render(&self, text: &mut String) {
        // Writing to a String cannot fail.
        for evidence in &self.evidence {
            let _ = writeln!(text, "# {}", shown(evidence));
        }
        for doubt in &self.review {
            let _ = writeln!(text, "# REVIEW: {}", shown(doubt));
        }
        let mark = if self.doubted { "#" } else { "" };
        for line in &self.lines {
            let _ = writeln!(text, "{mark}{line}");
        }
    }
}

/// A proposed definition.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) account: AccountName,
    /// Name, user, home and what is true of the account as a whole.
    pub(super) head: Part,
    pub(super) sites: Vec<Part>,
    pub(super) databases: Vec<Part>,
    pub(super) mail: Vec<Part>,
}

impl Draft {
    /// Its parts, the head first.
    fn parts(&self) -> impl Iterator<Item = &Part> {
        let tables = self.sites.iter().chain(&self.databases).chain(&self.mail);
        std::iter::once(&self.head).chain(tables)
    }

    /// Every doubt.
    pub(super) fn review(&self) -> Vec<String> {
        self.parts().flat_map(|p| &p.review).map(|doubt| shown(doubt)).collect()
    }

    /// Whether nothing but the user itself was found.
    pub(super) fn is_bare(&self) -> bool {
        self.parts().count() == 1
    }

    /// The text of the file. Without its head no part is a definition.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "# Proposed by `ferry-agent accounts discover` from what this server shows. A person \
             reviews it,\n# answers each REVIEW, and installs it as /etc/ferry/accounts.d/{}.toml.\n\n",
            self.account
        );
        self.head.render(&mut text);
        for part in self.parts().skip(1) {
            text.push('\n');
            if self.head.doubted && !part.doubted {
                let lines = part.lines.clone();
                let (evidence, review) = (part.evidence.clone(), part.review.clone());
                Part { evidence, review, lines, doubted: true }.render(&mut text);
            } else {
                part.render(&mut text);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_in_its_comment() {
        let mut part = Part::new("from a file\nname = \"root\"".to_owned());
        part.doubt("a doubt\r\nuser = \"root\"");
        part.set("config", vec!["/etc/a".to_owned(), "b\"c".to_owned()]);
        let mut text = String::new();
        part.render(&mut text);
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}
