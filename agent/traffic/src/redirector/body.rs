//! Where the body of an HTTP/1 request ends. It owns the counting of lengths and chunks; it must
//! not know what the bytes are for.

/// How the body's length is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// A chunked body that breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokenBody;

/// The longest line between chunks, and the longest sum of trailer lines.
const MAX_LINES: usize = 8 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Bytes to come without structure.
    Plain(u64),
    /// In a chunk's size: digits seen, value.
    Size(u8, u64),
    /// In a chunk's extension.
    Extension(u64),
    /// Before the line feed that ends a size line.
    SizeEnd(u64),
    /// In a chunk's data.
    Data(u64),
    /// Before the carriage return after the data.
    DataReturn,
    /// Before the line feed after the data.
    DataEnd,
    /// At the beginning of a trailer line.
    TrailerStart,
    /// Within a trailer line.
    Trailer,
    /// Before the line feed that ends a trailer line.
    TrailerEnd,
    /// Before the very last line feed.
    LastEnd,
    Done,
}

/// Follows a body to its end.
#[derive(Debug)]
pub struct BodyEnd {
    state: State,
    /// Bytes of extensions and trailers since the last data.
    lines: usize,
}

impl BodyEnd {
    /// At the beginning of `body`.
    pub fn of(body: Body) -> Self {
        let state = match body {
            Body::Length(0) => State::Done,
            Body::Length(length) => State::Plain(length),
            Body::Chunked => State::Size(0, 0),
        };
        Self { state, lines: 0 }
    }

    /// Whether the body has ended.
    pub fn is_reached(&self) -> bool {
        self.state == State::Done
    }

    /// Takes the next bytes and says how many of them belong to the body.
    ///
    /// # Errors
    /// They break the chunked coding.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, BrokenBody> {
        let mut at = 0;
        while at < bytes.len() && !self.is_reached() {
            let rest = &bytes[at..];
            at += match self.state {
                State::Plain(left) => {
                    let (took, left) = take(left, rest);
                    self.state = if left == 0 { State::Done } else { State::Plain(left) };
                    took
                }
                State::Data(left) => {
                    let (took, left) = take(left, rest);
                    self.state = if left == 0 { State::DataReturn } else { State::Data(left) };
                    self.lines = 0;
                    took
                }
                _ => {
                    self.state = self.step(rest[0])?;
                    1
                }
            };
        }
        Ok(at)
    }

    /// The state after one byte of structure.
    fn step(&mut self, byte: u8) -> Result<State, BrokenBody> {
        self.lines += 1;
        if self.lines > MAX_LINES {
            return Err(BrokenBody);
        }
        Ok(match (self.state, byte) {
            (State::Size(digits, size), _) if byte.is_ascii_hexdigit() => {
                // 15 digits keep the value far from overflowing.
                if digits == 15 {
                    return Err(BrokenBody);
                }
                let digit = char::from(byte).to_digit(16).ok_or(BrokenBody)?;
                State::Size(digits + 1, size * 16 + u64::from(digit))
            }
            (State::Size(1.., size), b';' | b' ' | b'\t') => State::Extension(size),
            (State::Size(1.., size) | State::Extension(size), b'\r') => State::SizeEnd(size),
            (State::Extension(size), _) if is_text(byte) => State::Extension(size),
            (State::SizeEnd(0), b'\n') => State::TrailerStart,
            (State::SizeEnd(size), b'\n') => State::Data(size),
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => State::Size(0, 0),
            (State::TrailerStart, b'\r') => State::LastEnd,
            (State::TrailerStart | State::Trailer, _) if is_text(byte) => State::Trailer,
            (State::Trailer, b'\r') => State::TrailerEnd,
            (State::TrailerEnd, b'\n') => State::TrailerStart,
            (State::LastEnd, b'\n') => State::Done,
            _ => return Err(BrokenBody),
        })
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

/// How many of `left` bytes are in `rest`, and how many are then left.
fn take(left: u64, rest: &[u8]) -> (usize, u64) {
    let took = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
    (took, left - took as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_ends_where_it_says() {
        let mut end = BodyEnd::of(Body::Length(5));
        assert_eq!(end.advance(b"abc"), Ok(3));
        assert!(!end.is_reached());
        assert_eq!(end.advance(b"deGET"), Ok(2));
        assert!(end.is_reached());
        assert!(BodyEnd::of(Body::Length(0)).is_reached());
    }

    #[test]
    fn chunks_end_after_their_trailers() {
        let body = b"4;name=\"x\"\r\nWiki\r\n0A\r\n0123456789\r\n0\r\nTrailer: a\r\n\r\n";
        let mut all = body.to_vec();
        all.extend_from_slice(b"GET / HTTP/1.1");
        let mut end = BodyEnd::of(Body::Chunked);
        assert_eq!(end.advance(&all), Ok(body.len()));
        assert!(end.is_reached());
    }

    #[test]
    fn broken_chunks_are_refused() {
        let broken: [&[u8]; 9] = [
            b"\r\n",
            b"x\r\n",
            b"-1\r\n",
            b"1\nA",
            b"1\r\nAB",
            b"1\r\nA\n",
            b"0\r\n\n",
            b"1 \nA\r\n",
            b"1000000000000000\r\n",
        ];
        for bytes in broken {
            assert_eq!(BodyEnd::of(Body::Chunked).advance(bytes), Err(BrokenBody), "{bytes:?}");
        }
        let endless = [b"1;".as_slice(), &[b'a'; MAX_LINES]].concat();
        assert_eq!(BodyEnd::of(Body::Chunked).advance(&endless), Err(BrokenBody));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = BodyEnd::of(Body::Chunked).advance(&bytes);
        }

        #[test]
        fn the_cut_of_the_bytes_does_not_matter(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            cut in 1_usize..7,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let mut end = BodyEnd::of(Body::Chunked);
            for part in body.chunks(cut) {
                prop_assert_eq!(end.advance(part), Ok(part.len()));
            }
            prop_assert!(end.is_reached());
        }
    }
}
