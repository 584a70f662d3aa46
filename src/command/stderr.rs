//! What a program writes to standard error: a line in the log for each of its lines, and the end of it for the caller.

use crate::command::STDERR_LIMIT;
use crate::terminal::text;
use log::warn;
use std::mem;
use std::time::{Duration, Instant};

/// How much of a line is kept, in bytes: enough for the longest message.
const LINE_LIMIT: usize = 16 << 10;

/// How much is read ahead of what is logged, in bytes: twice what a pipe
/// holds.
const UNREAD_LIMIT: usize = 128 << 10;

/// How many lines are logged at a time, between two looks at the clock.
const LINES_AT_ONCE: usize = 64;

/// How often a line is logged that ends with a carriage return: a program draws its progress with such lines, each
/// over the one before, dozens in a second. Those in between are left out.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);

/// A program's standard error.
///
/// A line ends with LF, CR LF or CR. What ends with CR alone is drawn over by the next line.
#[derive(Debug)]
pub struct Stderr {
    /// The procedure's name.
    name: String,
    /// What was read and not looked at yet.
    unread: Vec<u8>,
    /// How many of these were written before the call began: they are logged, and told to no caller.
    before: usize,
    /// The line so far, without its end.
    line: Vec<u8>,
    /// Whether it has ended with a CR. An LF may follow.
    is_returned: bool,
    /// Whether it was logged for that CR.
    is_logged: bool,
    /// When the next line that ends with a CR may be logged.
    next_redraw: Option<Instant>,
    /// The last line that is not blank.
    last_line: Option<String>,
    tail: Vec<u8>,
}

impl Stderr {
    /// Returns that of the procedure `name`, still empty.
    pub fn new(name: &str) -> Stderr {
        Stderr {
            name: name.into(),
            unread: Vec::new(),
            before: 0,
            line: Vec::new(),
            is_returned: false,
            is_logged: false,
            next_redraw: None,
            last_line: None,
            tail: Vec::new(),
        }
    }

    /// Forgets what was written so far, as far as a caller would be told: a call begins.
    pub fn begin_call(&mut self) {
        self.before = self.unread.len();
        if self.before == 0 {
            self.end_open_line();
        }
        self.tail.clear();
        self.last_line = None;
    }

    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        self.tail.extend_from_slice(bytes);
        let before = self.tail.len().saturating_sub(STDERR_LIMIT);
        self.tail.drain(..before);
    }

    /// Returns whether there is something to log without reading more.
    pub fn has_more(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Returns whether there is as much to log that nothing more is to be read.
    pub fn is_full(&self) -> bool {
        self.unread.len() >= UNREAD_LIMIT
    }

    /// Logs some of the lines that were read.
    pub fn log_some(&mut self, now: Instant) {
        let bytes = mem::take(&mut self.unread);
        let mut lines = 0;
        let mut looked_at = 0;
        while looked_at < bytes.len() && lines < LINES_AT_ONCE {
            lines += usize::from(self.take(bytes[looked_at], now));
            looked_at += 1;
            if self.before == 1 {
                self.end_open_line();
            }
            self.before = self.before.saturating_sub(1);
        }
        self.unread.extend_from_slice(&bytes[looked_at..]);
    }

    /// Takes a byte, and returns whether a line has ended.
    fn take(&mut self, byte: u8, now: Instant) -> bool {
        match byte {
            b'\n' => self.end_line(),
            b'\r' => self.redraw(now),
            _ => {
                if self.is_returned {
                    self.clear();
                }
                if self.line.len() < LINE_LIMIT {
                    self.line.push(byte);
                }
            }
        }
        byte == b'\n'
    }

    /// Ends it: its last line need not have an end. What has not been logged is left out, but for that line. Returns the
    /// last line that is not blank, and the end of it all, see [`Stderr::text_of_tail`].
    pub fn end(&mut self) -> (Option<String>, Option<String>) {
        self.end_open_line();
        (self.last_line.take(), self.text_of_tail())
    }

    /// Ends a line of which the rest has not come.
    fn end_open_line(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        if !self.is_logged {
            self.log();
        }
        self.clear();
    }

    /// Takes a CR: logs the line before it, unless another was logged so a short time ago. If an LF follows, that is no
    /// second line.
    fn redraw(&mut self, now: Instant) {
        self.is_returned = true;
        if self.is_logged || self.line.is_empty() {
            return;
        }
        if self.next_redraw.is_none_or(|next| next <= now) {
            self.next_redraw = Some(now + REDRAW_INTERVAL);
            self.is_logged = true;
            self.log();
        } else {
            self.note(&self.text());
        }
    }

    fn clear(&mut self) {
        self.line.clear();
        (self.is_returned, self.is_logged) = (false, false);
    }

    fn log(&mut self) {
        let line = self.text();
        warn!("{}: {line}", self.name);
        self.note(&line);
    }

    fn note(&mut self, line: &str) {
        if self.before == 0 && !line.trim().is_empty() {
            self.last_line = Some(line.into());
        }
    }

    fn text(&self) -> String {
        let line = String::from_utf8_lossy(&self.line);
        text::sentence(line.trim_end()).into_owned()
    }

    /// Returns the end of it, at most [`STDERR_LIMIT`] bytes. None if that is blank.
    pub fn text_of_tail(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.tail);
        let text = text::last_bytes(&text, STDERR_LIMIT);
        if text.trim().is_empty() { None } else { Some(text.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_line_is_whole_whatever_pieces_it_comes_in() {
        let mut stderr = Stderr::new("p");
        for (piece, last) in
            [("on", None), ("e\ntw", Some("one")), ("o\n\n \n", Some("two")), ("end", Some("two"))]
        {
            stderr.push(piece.as_bytes());
            stderr.log_some(now());
            assert_eq!(stderr.last_line.as_deref(), last, "{piece}");
        }
        stderr.push(&[b'x'; 100_000]);
        stderr.log_some(now());
        assert_eq!(stderr.line.len(), LINE_LIMIT);
        assert!(stderr.end().0.unwrap().starts_with("endxxx"));
    }

    /// Neither what was not logged yet, nor the half of a line.
    #[test]
    fn what_was_written_before_a_call_is_not_told_to_its_caller() {
        let many = "before\n".repeat(2 * LINES_AT_ONCE);
        for before in ["before\n", "before", many.as_str(), &format!("{many}before")] {
            let mut stderr = Stderr::new("p");
            stderr.push(before.as_bytes());
            stderr.log_some(now());
            stderr.begin_call();
            let log = |stderr: &mut Stderr| {
                while stderr.has_more() {
                    stderr.log_some(now());
                }
            };
            log(&mut stderr);
            assert_eq!(stderr.end(), (None, None), "{before:.20}");

            stderr.push(before.as_bytes());
            stderr.log_some(now());
            stderr.begin_call();
            stderr.push(b"why\n");
            log(&mut stderr);
            assert_eq!(stderr.end(), (Some("why".into()), Some("why\n".into())), "{before:.20}");
        }
    }

    #[test]
    fn a_carriage_return_ends_a_line() {
        let mut stderr = Stderr::new("p");
        for (piece, last, line) in [
            ("1 %\r", Some("1 %"), "1 %"),
            ("2 %\r3", Some("2 %"), "3"),
            (" %\r", Some("3 %"), "3 %"),
            ("\n", Some("3 %"), ""),
            ("disk full\r", Some("disk full"), "disk full"),
            ("\n\r\r\n", Some("disk full"), ""),
            ("no", Some("disk full"), "no"),
        ] {
            stderr.push(piece.as_bytes());
            stderr.log_some(now());
            assert_eq!(stderr.last_line.as_deref(), last, "{piece:?}");
            assert_eq!(stderr.line, line.as_bytes(), "{piece:?}");
        }
        assert_eq!(stderr.end().0.as_deref(), Some("no"));
    }

    #[test]
    fn progress_is_logged_once_a_second() {
        let mut stderr = Stderr::new("p");
        let started = now();
        let mut logged = 0;
        for hundredth in 0..300 {
            stderr.push(format!("{hundredth}\r").as_bytes());
            stderr.log_some(started + Duration::from_millis(10 * hundredth));
            logged += usize::from(stderr.is_logged);
        }
        assert_eq!(logged, 3);
        // A line is logged all the same, and not twice.
        assert!(!stderr.is_logged);
        stderr.push(b"\n");
        stderr.log_some(started);
        assert_eq!(stderr.last_line.as_deref(), Some("299"));
    }

    #[test]
    fn only_some_lines_are_logged_at_a_time() {
        let mut stderr = Stderr::new("p");
        stderr.push(&[b'\n'; 2 * LINES_AT_ONCE + 1]);
        for left in [LINES_AT_ONCE + 1, 1, 0] {
            stderr.log_some(now());
            assert_eq!(stderr.unread.len(), left);
            assert_eq!(stderr.has_more(), left > 0);
        }
    }

    #[test]
    fn the_end_of_it_is_text_of_bounded_length() {
        let text_of = |bytes: &[u8]| {
            let mut stderr = Stderr::new("p");
            bytes.chunks(1000).for_each(|chunk| stderr.push(chunk));
            stderr.text_of_tail()
        };
        assert_eq!(text_of(b""), None);
        assert_eq!(text_of(b" \n\r\n"), None);
        assert_eq!(text_of(b"caf\xe9\n").as_deref(), Some("caf\u{fffd}\n"));
        let long = "é".repeat(10_000);
        assert_eq!(text_of(long.as_bytes()), Some("é".repeat(STDERR_LIMIT / 2)));
        assert_eq!(text_of(format!("{long}x").as_bytes()).unwrap().len(), STDERR_LIMIT - 1);
        assert!(text_of(&[0xff; 10_000]).unwrap().len() <= STDERR_LIMIT);
    }
}
