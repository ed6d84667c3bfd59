//! Collected **output**: the first part of what a command prints, small enough for one reply.

use contract::workspace::EXEC_OUTPUT_MAX;

/// The most bytes one stream's text may have as JSON. Control characters grow sixfold there and replaced bytes threefold; two of
/// these and the rest of the reply are below the 1 MiB of a NATS message.
const JSON_MAX: usize = 448 * 1024;

/// One output stream's beginning.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    bytes: Vec<u8>,
    dropped: bool,
}

/// A stream as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// Whether there was more.
    pub truncated: bool,
}

impl Collected {
    /// Keeps as much of `data` as there is room for.
    pub fn push(&mut self, data: &[u8]) {
        let room = EXEC_OUTPUT_MAX - self.bytes.len();
        self.bytes.extend_from_slice(&data[..data.len().min(room)]);
        self.dropped |= data.len() > room;
    }

    /// Notes that something of it is gone.
    pub fn miss(&mut self) {
        self.dropped = true;
    }

    /// Adds a line of the service's own, such as why a program could not be started.
    pub fn push_line(&mut self, line: &str) {
        if self.bytes.last().is_some_and(|last| *last != b'\n') {
            self.push(b"\n");
        }
        self.push(line.as_bytes());
        self.push(b"\n");
    }

    /// The text, cut between characters.
    pub fn text(&self) -> Text {
        let bytes = if self.dropped { whole_characters(&self.bytes) } else { &self.bytes };
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        let end = fitting(&text);
        let truncated = self.dropped || end < text.len();
        text.truncate(end);
        Text { text, truncated }
    }
}

/// Up to where the text fits into [`JSON_MAX`] bytes.
fn fitting(text: &str) -> usize {
    let mut length = 0;
    for (at, c) in text.char_indices() {
        length += match c {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..'\u{20}' => 6,
            _ => c.len_utf8(),
        };
        if length > JSON_MAX {
            return at;
        }
    }
    text.len()
}

/// Without the beginning of a character whose rest was dropped.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    for back in 1..=bytes.len().min(3) {
        let needed = match bytes[bytes.len() - back] {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => return bytes,
        };
        return if needed > back { &bytes[..bytes.len() - back] } else { bytes };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(chunks: &[&[u8]]) -> Collected {
        let mut collected = Collected::default();
        for chunk in chunks {
            collected.push(chunk);
        }
        collected
    }

    #[test]
    fn what_fits_is_whole() {
        let whole = collected(&[b"a\n", "é".as_bytes(), b"\xff"]).text();
        assert_eq!(whole, Text { text: "a\né\u{fffd}".into(), truncated: false });
        let full = collected(&[&vec![b'x'; EXEC_OUTPUT_MAX]]).text();
        assert_eq!((full.text.len(), full.truncated), (EXEC_OUTPUT_MAX, false));
    }

    #[test]
    fn more_is_cut_between_characters() {
        let mut bytes = vec![b'x'; EXEC_OUTPUT_MAX - 2];
        bytes.extend("日本".as_bytes());
        let cut = collected(&[&bytes[..1000], &bytes[1000..]]).text();
        assert_eq!((cut.text.len(), cut.truncated), (EXEC_OUTPUT_MAX - 2, true));
        assert!(cut.text.ends_with('x'));
    }

    #[test]
    fn hostile_bytes_never_outgrow_a_message() {
        for byte in [0, 0xff, b'"', 0x80, 0x7f] {
            let text = collected(&[&vec![byte; 2 * EXEC_OUTPUT_MAX]]).text();
            assert!(text.truncated);
            let length = serde_json::to_string(&text.text).unwrap().len();
            assert!(length <= JSON_MAX + 2, "{byte}: {length}");
            assert!(length >= EXEC_OUTPUT_MAX, "{byte}: {length}");
        }
    }

    #[test]
    fn the_services_own_line_stands_alone() {
        let mut output = collected(&[b"half"]);
        output.push_line("no such program");
        assert_eq!(output.text().text, "half\nno such program\n");
    }
}
