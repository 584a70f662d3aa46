//! Texts on their way to a person. Whatever a stranger wrote is kept as it is inside the programs, and
//! made harmless where it leaves them: by [`message`] on standard error, by [`one_line`] in a
//! transcript, by [`on_terminal`] in a result that goes to a terminal.

use humantime::format_duration;
use std::borrow::Cow;
use std::time::Duration;

/// How many characters of a name or an argument a sentence shows.
const EXCERPT_CHARS: usize = 64;

/// How many characters of a message standard error gets, before those that are harmful are escaped. The
/// longest of our own, about a list of brokers, fits in; a stranger's sentence may have 16 MiB.
const MESSAGE_CHARS: usize = 2_000;

/// Returns whether a character can move a terminal's cursor or change its state (controls), make a line
/// read as something else (bidirectional controls), or hide in it (characters that show nothing).
/// These are Unicode's categories Cc and Cf, apart from signs that belong to a script, and the
/// separators of lines and paragraphs.
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Returns a message for standard error: at most 2,000 characters of `text`, as [`one_line`] has them.
pub fn message(text: &str) -> String {
    one_line(&sentence(text)).into_owned()
}

/// Returns as much of a stranger's sentence as a message has room for: 2,000 characters.
pub fn sentence(text: &str) -> Cow<'_, str> {
    cut(text, MESSAGE_CHARS)
}

/// Returns `text` on one line, with its harmful characters as escapes such as `\n` and `\u{1b}`.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Returns `text` with its harmful characters as escapes, but for newlines and tabs, which lay it out.
pub fn on_terminal(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n' || c == '\t')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_escaped = |c| is_harmful(c) && !is_kept(c);
    if !text.contains(is_escaped) {
        return text.into();
    }

    let mut out = String::with_capacity(2 * text.len());
    for c in text.chars() {
        match is_escaped(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out.into()
}

/// Returns `text`, or, if it is longer, its first `most` characters and an ellipsis.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// Returns the end of `text`: whole characters, at most `most` bytes.
pub fn last_bytes(text: &str, most: usize) -> &str {
    let mut start = text.len().saturating_sub(most);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// Returns at most 64 characters of `bytes`, what is not UTF-8 replaced: a request must not be able
/// to fill the server's log.
pub fn excerpt(bytes: &[u8]) -> String {
    // No character is longer than 4 bytes: what lies behind cannot be among the first ones.
    let head = &bytes[..bytes.len().min(4 * (EXCERPT_CHARS + 1))];
    cut(&String::from_utf8_lossy(head), EXCERPT_CHARS).into_owned()
}

/// Names a call as a person knows it: `fib(30)`.
pub fn call(procedure: &str, argument: &[u8]) -> String {
    format!("{}({})", excerpt(procedure.as_bytes()), excerpt(argument))
}

/// Returns the beginning of an id, enough for a person to follow one call in two programs' logs.
pub fn short(id: Option<&str>) -> &str {
    let Some(id) = id else { return "none" };
    match id.char_indices().nth(8) {
        Some((end, _)) => &id[..end],
        None => id,
    }
}

/// Returns a queue's name; of one that the broker made up only the beginning, enough for a person to
/// follow it through two programs' logs.
pub fn short_queue(name: &str) -> Cow<'_, str> {
    let most = if name.starts_with("amq.") { 12 } else { EXCERPT_CHARS };
    cut(name, most)
}

/// Says how many of something there are: `1 line`, `2 lines`.
pub fn count(n: impl Into<u64>, one: &str, more: &str) -> String {
    let n = n.into();
    format!("{n} {}", if n == 1 { one } else { more })
}

/// Shows a duration in whole milliseconds, rounded up: `1s 500ms`. What is left of a time limit, or a
/// delay that was drawn by lot, has nanoseconds, which tell nobody anything.
pub fn duration(duration: Duration) -> String {
    let milliseconds = duration.as_nanos().div_ceil(1_000_000);
    format_duration(Duration::from_millis(milliseconds.try_into().unwrap_or(u64::MAX))).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short() {
        assert_eq!(excerpt(b"30"), "30");
        assert_eq!(excerpt(b"a\x1b[2Jb\nc"), "a\x1b[2Jb\nc");
        assert_eq!(excerpt(b"caf\xe9"), "caf\u{fffd}");
        assert_eq!(excerpt(&[b'9'; 64]), "9".repeat(64));
        assert_eq!(excerpt(&[b'9'; 1_000_000]), "9".repeat(64) + "…");
        assert_eq!(excerpt("é".repeat(65).as_bytes()), "é".repeat(64) + "…");
    }

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        assert_eq!(message("a\x1b[2Jb\n\tc\u{fffd}"), "a\\u{1b}[2Jb\\n\\tc\u{fffd}");
        assert_eq!(message(&"9".repeat(2_000)), "9".repeat(2_000));
        assert_eq!(message(&"é".repeat(2_001)), "é".repeat(2_000) + "…");
    }

    #[test]
    fn what_a_terminal_shows_keeps_its_layout_and_loses_its_controls() {
        assert_eq!(on_terminal("a\n\tb\x07\r"), "a\n\tb\\u{7}\\r");
        for harmful in
            "\0\x1b\x7f\u{80}\u{9b}\u{61c}\u{200b}\u{200f}\u{2028}\u{2029}\u{202e}\u{2060}\u{2069}\u{feff}\u{e0041}"
                .chars()
        {
            let escape = format!("\\u{{{:x}}}", u32::from(harmful));
            assert_eq!(on_terminal(&harmful.to_string()), escape);
        }
        assert_eq!(on_terminal("Zażółć 日本 🦀 \u{fffd}"), "Zażółć 日本 🦀 \u{fffd}");
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
    }

    #[test]
    fn durations_have_whole_milliseconds() {
        for (microseconds, shown) in [(0, "0s"), (1, "1ms"), (1_500_001, "1s 501ms")] {
            assert_eq!(duration(Duration::from_micros(microseconds)), shown);
        }
        assert_eq!(duration(Duration::from_nanos(1)), "1ms");
    }
}
