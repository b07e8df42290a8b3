//! Paths below an account's home as people see and type them: what is no text, or would not be seen as it is,
//! stands as `\xNN`, a byte each. So a path that is shown whole can be typed, and names one thing.

/// Stands where the middle of a long path is left out; in a path it is escaped.
pub const CUT: char = '…';

/// Whether a character could do something to a terminal, or make a name look like another:
/// controls, marks that turn the direction of writing, and what is not seen (Unicode's
/// Default_Ignorable_Code_Point).
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

fn is_escaped(c: char) -> bool {
    is_unsafe(c) || matches!(c, '\\' | CUT | char::REPLACEMENT_CHARACTER)
}

/// The text of a path; `.` for the home itself.
pub fn path(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { text(path) }
}

/// The text of bytes that are mostly text.
pub fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let escape = |text: &mut String, bytes: &[u8]| {
        bytes.iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    };
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let end = at + c.len_utf8();
            match is_escaped(c) || c.is_whitespace() && is_edge(bytes, at, end) {
                true => escape(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes()),
                false => text.push(c),
            }
            at = end;
        }
        escape(&mut text, chunk.invalid());
        at += chunk.invalid().len();
    }
    text
}

/// Whether what is at `at..end` is a name's first or last: a space there is not seen.
fn is_edge(bytes: &[u8], at: usize, end: usize) -> bool {
    let is_outside = |byte: Option<&u8>| byte.is_none_or(|byte| *byte == b'/');
    is_outside(at.checked_sub(1).and_then(|before| bytes.get(before))) || is_outside(bytes.get(end))
}

/// The path that is shown so; none if no path is.
pub fn read(text: &str) -> Option<Vec<u8>> {
    if text == "." {
        return Some(Vec::new());
    }
    let mut parts = text.split('\\');
    let mut path = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.strip_prefix('x')?.split_at_checked(2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        path.push(u8::from_str_radix(digits, 16).ok()?);
        path.extend_from_slice(rest.as_bytes());
    }
    let is_whole = !text.contains([CUT, char::REPLACEMENT_CHARACTER]);
    (is_whole && !path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_typed() {
        for (bytes, shown) in [
            (&b""[..], "."),
            (b"a b/c", "a b/c"),
            ("\u{e4}".as_bytes(), "\u{e4}"),
            (b"a\xffb", "a\\xffb"),
            (b"a\x1bb\nc", "a\\x1bb\\x0ac"),
            (b"a\\x41", "a\\x5cx41"),
            ("\u{202e}x".as_bytes(), "\\xe2\\x80\\xaex"),
            ("a…b".as_bytes(), "a\\xe2\\x80\\xa6b"),
            (b" a b /c\xff /  ", "\\x20a b\\x20/c\\xff\\x20/\\x20\\x20"),
            ("a\u{a0}".as_bytes(), "a\\xc2\\xa0"),
            ("a/\u{3000}\u{e4} ".as_bytes(), "a/\\xe3\\x80\\x80\u{e4}\\x20"),
        ] {
            assert_eq!(path(bytes), shown);
            assert_eq!(read(shown).as_deref(), Some(bytes), "{shown}");
        }
        // Not as we show it, but clear.
        assert_eq!(read("\\x61").as_deref(), Some(&b"a"[..]));
    }

    #[test]
    fn what_is_not_seen_is_escaped() {
        for c in [
            '\u{34f}',
            '\u{115f}',
            '\u{1160}',
            '\u{17b4}',
            '\u{17b5}',
            '\u{180b}',
            '\u{2065}',
            '\u{206a}',
            '\u{206f}',
            '\u{3164}',
            '\u{fe00}',
            '\u{fe0f}',
            '\u{ffa0}',
            '\u{fff0}',
            '\u{1d173}',
            '\u{e0001}',
            '\u{e0100}',
            '\u{e0fff}',
        ] {
            let shown = text(format!("a{c}b").as_bytes());
            assert!(shown.is_ascii() && shown.len() > 2, "{}: {shown}", c.escape_unicode());
        }
    }

    #[test]
    fn what_names_nothing_is_no_path() {
        for text in
            ["", "a\\", "a\\n", "a\\x4", "a\\x4g", "a\\x+1", "a\\x\u{e4}", "a…b", "a\u{fffd}"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
