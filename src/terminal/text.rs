//! Bytes from a stranger, made fit for a person's terminal.

/// How many characters of a stranger's bytes a diagnostic or a transcript line shows.
const EXCERPT_CHARS: usize = 64;

/// At most 64 characters of `bytes`, on one line, control characters and bytes that are not
/// UTF-8 escaped: a request must not be able to move the cursor of the server's terminal, nor
/// to fill its log.
pub fn excerpt(bytes: &[u8]) -> String {
    // No character is longer than 4 bytes: what lies behind cannot be among the first ones.
    let head = &bytes[..bytes.len().min(4 * (EXCERPT_CHARS + 1))];
    let text = String::from_utf8_lossy(head);
    let mut shown: String = text.chars().take(EXCERPT_CHARS).collect();
    if text.chars().nth(EXCERPT_CHARS).is_some() {
        shown.push('…');
    }
    printable(&shown, |_| false)
}

/// A call as a person knows it: `fib(30)`.
pub fn call(procedure: &str, argument: &[u8]) -> String {
    format!("{}({})", excerpt(procedure.as_bytes()), excerpt(argument))
}

/// All of `bytes`, on one line, escaped like an [`excerpt`].
pub fn line(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes), |_| false)
}

/// The beginning of an id, enough for a person to follow one call in two programs' logs.
pub fn short(id: Option<&str>) -> String {
    id.map_or("none".into(), |id| excerpt(head(id, 8).as_bytes()))
}

/// A queue's name; of one that the broker made up only the beginning, for the same purpose.
pub fn short_queue(name: &str) -> String {
    match head(name, 12) {
        head if name.starts_with("amq.") && head != name => excerpt(head.as_bytes()) + "…",
        _ => excerpt(name.as_bytes()),
    }
}

/// The first characters, `most` of them.
fn head(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}

/// `n` of something.
pub fn count(n: impl Into<u64>, one: &str, more: &str) -> String {
    let n = n.into();
    format!("{n} {}", if n == 1 { one } else { more })
}

/// `text` with its control characters escaped, but for those that lay out lines.
pub fn lines(text: &str) -> String {
    printable(text, |c| c == '\n' || c == '\t')
}

fn printable(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // The bidirectional controls can make a line read as something else.
        let unsafe_to_show = c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if unsafe_to_show && !keep(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_on_one_line() {
        assert_eq!(excerpt(b"30"), "30");
        assert_eq!(excerpt(b"a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(excerpt(b"caf\xe9"), "caf\u{fffd}");
        assert_eq!(excerpt("\u{202e}30".as_bytes()), "\\u{202e}30");
        assert_eq!(excerpt(&[b'9'; 64]), "9".repeat(64));
        assert_eq!(excerpt(&[b'9'; 1_000_000]), "9".repeat(64) + "…");
        assert_eq!(excerpt("é".repeat(65).as_bytes()), "é".repeat(64) + "…");
    }

    #[test]
    fn a_line_is_whole_and_one() {
        assert_eq!(line(b"a\x1b[2Jb\nc\xe9"), "a\\u{1b}[2Jb\\nc\u{fffd}");
        assert_eq!(line(&[b'9'; 65]), "9".repeat(65));
    }

    #[test]
    fn an_id_is_told_by_its_first_part() {
        assert_eq!(short(Some("67e55044-10b1-426f-9247-bb680e5fe0c8")), "67e55044");
        assert_eq!(short(Some("7")), "7");
        assert_eq!(short(Some("naïve-counter")), "naïve-co");
        assert_eq!(short(None), "none");
    }

    #[test]
    fn a_queue_is_told_by_its_name_unless_the_broker_made_it_up() {
        assert_eq!(short_queue("rpc_queue_of_mine"), "rpc_queue_of_mine");
        assert_eq!(short_queue("amq.gen-pHxooL2Bp598REfC3isrvA"), "amq.gen-pHxo…");
        assert_eq!(short_queue("amq.\nx"), "amq.\\nx");
    }

    #[test]
    fn lines_keep_their_layout_and_lose_their_controls() {
        assert_eq!(lines("a\n\tb\x07\r"), "a\n\tb\\u{7}\\r");
    }
}
