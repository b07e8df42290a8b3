//! Foreign text in a comment or on a screen: one line, bounded, without anything that acts on a
//! terminal or ends a comment.

/// The most characters of one text that are shown.
const LENGTH: usize = 600;

/// `text` on one line: what is not plain is escaped, what is too long is cut.
pub(super) fn shown(text: &str) -> String {
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == LENGTH {
            line.push_str("...");
            break;
        }
        if c == ' ' || c.is_alphanumeric() || c.is_ascii_graphic() {
            line.push(c);
        } else {
            line.extend(c.escape_default());
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_line() {
        assert_eq!(shown("plain \"text\" ü"), "plain \"text\" ü");
        assert_eq!(shown("a\nname = 1\r\u{1b}[2J"), "a\\nname = 1\\r\\u{1b}[2J");
        assert_eq!(shown("\u{202e}x"), "\\u{202e}x");
        assert_eq!(shown(&"a".repeat(9999)).len(), LENGTH + 3);
    }
}
