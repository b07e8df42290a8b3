//! How numbers, times and names from elsewhere are written. Pure.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use ferry_proto::shown::is_unsafe;
use time::OffsetDateTime;

/// Text from elsewhere, on one line and harmless.
pub fn safe(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = is_unsafe(c).then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// JSON, with what its own escaping leaves of unsafe characters escaped too. Line ends that are
/// layout stay.
pub fn escape_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unsafe(c) && c != '\n' {
            // All of them are in the basic plane: one unit each.
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

/// Bytes, in binary units.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    #[allow(clippy::cast_precision_loss)]
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // Rounded up to 1024.0 it would not be a number of this unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Bytes a second.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn rate(bytes_per_second: f64) -> String {
    // Float to integer casts saturate.
    format!("{}/s", bytes(bytes_per_second.round() as u64))
}

/// A duration, as exact as a person needs it.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    if seconds < 0.0995 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let s = seconds.round() as u64;
    let (big, big_unit, small, small_unit) = match s {
        0..60 => return format!("{s} s"),
        60..3600 => (s / 60, "min", s % 60, "s"),
        3600..86_400 => (s / 3600, "h", s % 3600 / 60, "min"),
        _ => (s / 86_400, "d", s % 86_400 / 3600, "h"),
    };
    if small == 0 {
        format!("{big} {big_unit}")
    } else {
        format!("{big} {big_unit} {small} {small_unit}")
    }
}

/// Milliseconds as a duration.
#[allow(clippy::cast_precision_loss)]
pub fn duration_ms(ms: i64) -> String {
    duration(ms as f64 / 1000.0)
}

/// A count, with commas.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A moment, to the second, in UTC; `-` for none.
pub fn moment(unix_seconds: i64) -> String {
    if unix_seconds == 0 {
        return "-".to_owned();
    }
    OffsetDateTime::from_unix_timestamp(unix_seconds).map_or_else(
        |_| "?".to_owned(),
        |t| {
            format!(
                "{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
                t.year(),
                u8::from(t.month()),
                t.day(),
                t.hour(),
                t.minute(),
                t.second()
            )
        },
    )
}

/// A table without lines, columns apart by two blanks.
pub fn table(header: &[&str], rows: Vec<Vec<String>>, right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| safe(cell)));
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// Labels and values, one pair a line; pairs without a value are left out.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(label, value)| format!("  {label:width$}  {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_move_the_cursor_is_escaped() {
        assert_eq!(safe("caf\u{e9} \u{1f600}"), "caf\u{e9} \u{1f600}");
        assert_eq!(safe("a\x1b[2Jb\nc\u{9b}d"), "a\\u{1b}[2Jb\\nc\\u{9b}d");
        assert_eq!(safe("moc\u{202e}txt"), "moc\\u{202e}txt");
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"a": "x\u{9b}y\u{202e}\x7f\x1b\n\u{1f600}"});
        for json in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let escaped = escape_json(&json);
            assert!(escaped.chars().all(|c| c == '\n' || !is_unsafe(c)), "{escaped}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
        }
    }

    #[test]
    fn bytes_have_one_digit_and_the_unit_that_fits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (5_368_709_120, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(rate(60e6), "57.2 MiB/s");
        assert_eq!(rate(-1.0), "0 B/s");
    }

    #[test]
    fn durations_are_as_exact_as_needed() {
        let cases = [
            (0.0, "0 ms"),
            (0.042, "42 ms"),
            (0.0999, "0.1 s"),
            (1.94, "1.9 s"),
            (9.96, "10 s"),
            (59.6, "1 min"),
            (61.0, "1 min 1 s"),
            (3600.0, "1 h"),
            (7325.0, "2 h 2 min"),
            (90_000.0, "1 d 1 h"),
            (-1.0, "?"),
            (f64::NAN, "?"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn counts_and_moments() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(moment(0), "-");
        assert_eq!(moment(1_795_398_180), "2026-11-23 01:43:00 UTC");
        assert_eq!(moment(i64::MAX), "?");
    }

    #[test]
    fn tables_line_up_and_hold_hostile_names() {
        let rows = vec![
            vec!["shop".to_owned(), "7".to_owned(), String::new()],
            vec!["bl\x1bog".to_owned(), "1234".to_owned(), "x".to_owned()],
        ];
        insta::assert_snapshot!(table(&["account", "epoch", "moved to"], rows, &[1]));
        assert_eq!(
            pairs(&[("a", "1".into()), ("none", String::new()), ("long", "2".into())]),
            "  a     1\n  long  2\n"
        );
    }
}
