//! What is printed: results on stdout, notes on stderr, both as text for people or as JSON for programs.
//!
//! Colours are left out by `anstream` where the output is no terminal, or where `NO_COLOR` or `--color` say so.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use serde_json::Value;

use crate::{exit::Failure, json};

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default();
pub(crate) const RED: Style = AnsiColor::Red.on_default();

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How much to print on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notes {
    /// What somebody has to know.
    Few,
    /// Also what was acquired and given back.
    All,
}

/// Where everything is printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    pub(crate) form: Form,
    pub(crate) notes: Notes,
}

impl Out {
    /// A result: pretty JSON, or what `text` writes.
    pub(crate) fn result(
        self,
        json: &(impl Serialize + ?Sized),
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let shown = match self.form {
            Form::Json => json::escaped(&json::indented(&text_of(json))) + "\n",
            Form::Text => {
                let mut bytes = Vec::new();
                finish(text(&mut bytes))?;
                harmless(&String::from_utf8_lossy(&bytes))
            }
        };
        print(&shown)
    }

    /// One of many results, as it comes: a line of JSON, or a line of text.
    pub(crate) fn line(self, json: &(impl Serialize + ?Sized), text: &str) -> Result<(), Failure> {
        match self.form {
            Form::Json => print(&(json::escaped(&json::compact(&text_of(json))) + "\n")),
            Form::Text => print(&(harmless(text) + "\n")),
        }
    }

    /// A stored value, for scripts byte by byte as it is stored; a terminal gets no character that it acts on.
    pub(crate) fn stored(self, json: &(impl Serialize + ?Sized), value: &[u8]) -> Result<(), Failure> {
        if self.form == Form::Json || io::stdout().is_terminal() {
            return self.result(json, |to| {
                to.write_all(value)?;
                writeln!(to)
            });
        }
        let mut stdout = io::stdout().lock();
        finish(stdout.write_all(value).and_then(|()| writeln!(stdout)).and_then(|()| stdout.flush()))
    }

    /// A note that somebody has to know of.
    pub(crate) fn note(self, json: &Value, text: &str) {
        let mut stderr = anstream::stderr().lock();
        // Nobody can be told that nobody reads.
        let _ = match self.form {
            Form::Json => writeln!(stderr, "{}", json::escaped(&json.to_string())),
            Form::Text => writeln!(stderr, "coord: {}", harmless(text)),
        };
    }

    /// A note for those who asked for all.
    pub(crate) fn detail(self, json: &Value, text: &str) {
        if self.notes == Notes::All {
            self.note(json, text);
        }
    }

    /// A line of what the library traces.
    pub(crate) fn traced(self, line: &str) {
        let mut stderr = anstream::stderr().lock();
        let _ = match self.form {
            Form::Json => {
                let json = serde_json::json!({ "event": "traced", "text": line });
                writeln!(stderr, "{}", json::escaped(&json.to_string()))
            }
            Form::Text => writeln!(stderr, "{}", harmless(line)),
        };
    }

    /// What goes on, for somebody who waits in front of a terminal.
    pub(crate) fn progress(self, text: &str) {
        if self.form == Form::Text && io::stderr().is_terminal() {
            let _ = writeln!(anstream::stderr(), "{DIM}coord: {}{DIM:#}", harmless(text));
        }
    }

    /// Why the command failed.
    pub(crate) fn failure(self, failure: &Failure) {
        if failure.kind == PIPE_CLOSED {
            return;
        }
        let json = serde_json::json!({
            "error": failure.message, "kind": failure.kind, "exit_code": failure.exit.0,
        });
        self.note(&json, &format!("{RED}error:{RED:#} {failure}"));
    }
}

const PIPE_CLOSED: &str = "pipe_closed";

/// Who closes the pipe has read enough, as in `coord config list | head -1`.
fn finish(written: io::Result<()>) -> Result<(), Failure> {
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => {
            Failure::new(crate::exit::Exit::of_signal(13), PIPE_CLOSED, "the reader is gone")
        }
        _ => Failure::failed(format!("can not write the result: {error}")),
    })
}

/// Writes columns that are as wide as they have to be, the last one as it is.
pub(crate) fn table<const N: usize>(
    to: &mut dyn Write,
    head: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut line = |cells: [&str; N], style: Style| {
        let mut text = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let gap = if column + 1 == N { 0 } else { widths[column] + 2 - cell.chars().count() };
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', gap));
        }
        writeln!(to, "{style}{}{style:#}", text.trim_end())
    };
    line(head, BOLD)?;
    for row in rows {
        line(row.each_ref().map(String::as_str), Style::new())?;
    }
    Ok(())
}

/// Tells whether a terminal acts on a character in place of showing it, or shows text in another order for it.
pub(crate) fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Writes one name or value that another program has stored in one line, so that a terminal survives it.
pub(crate) fn shown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    text.chars().for_each(|c| push(&mut safe, c));
    safe
}

fn push(safe: &mut String, c: char) {
    match c {
        '\n' | '\t' | '\r' => safe.extend(c.escape_default()),
        _ if is_harmful(c) => safe.extend(c.escape_unicode()),
        _ => safe.push(c),
    }
}

/// Keeps from a text of many lines what a terminal would act on, but for colours. Names and values are [`shown`] before; this
/// is for words that come from elsewhere, such as errors.
fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = colour_length(rest);
        match c {
            '\u{1b}' if colour > 0 => safe.push_str(&rest[..colour]),
            '\n' | '\t' => safe.push(c),
            _ => push(&mut safe, c),
        }
        rest = &rest[colour.max(c.len_utf8())..];
    }
    safe
}

/// Returns the length of a colour at the beginning of a text: ESC, a bracket, digits, `m`.
fn colour_length(text: &str) -> usize {
    let Some(digits) = text.strip_prefix("\u{1b}[") else { return 0 };
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != ';');
    end.filter(|end| digits[*end..].starts_with('m')).map_or(0, |end| 2 + end + 1)
}

/// Returns a time as RFC 3339 has it, in UTC. It has none after the year 9999, which a wrong clock may have written.
pub(crate) fn rfc3339(at: SystemTime) -> Option<String> {
    const END: Duration = Duration::from_secs(253_402_300_800);
    let since = at.duration_since(UNIX_EPOCH).ok()?;
    (since < END).then(|| humantime::format_rfc3339_seconds(at).to_string())
}

/// Numbers in it are written as they were read.
fn text_of(json: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(json).expect("has names as keys, and nothing that can not be written")
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    finish(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut text = Vec::new();
        let rows = [["a".into(), "1".into()], ["日报-long".into(), String::new()]];
        table(&mut text, ["LOCK", "TOKEN"], &rows).unwrap();
        let text = anstream::adapter::strip_str(std::str::from_utf8(&text).unwrap()).to_string();
        assert_eq!(text, "LOCK     TOKEN\na        1\n日报-long\n");
    }

    #[test]
    fn times_that_can_not_be_written_are_none() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(at(253_402_300_799).as_deref(), Some("9999-12-31T23:59:59Z"));
        assert_eq!(at(253_402_300_800), None);
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(u64::MAX)), None);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(shown("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(shown("日报"), "日报");
        assert_eq!(shown("a\u{9b}2J\u{202e}b\n"), "a\\u{9b}2J\\u{202e}b\\n");
        assert_eq!(
            harmless("a\n\u{1b}[1;31mb\u{1b}[0m\u{1b}[2J\u{9b}m"),
            "a\n\u{1b}[1;31mb\u{1b}[0m\\u{1b}[2J\\u{9b}m"
        );
    }
}
