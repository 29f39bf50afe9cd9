//! What is printed: results on stdout, notes on stderr, both as text for people or as JSON for programs.
//!
//! Colours are left out by `anstream` where the output is no terminal, or where `NO_COLOR` or `--color` say so.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use serde_json::Value;

use crate::exit::Failure;

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
        json: &Value,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut stdout = anstream::stdout().lock();
        let written = match self.form {
            Form::Json => writeln!(stdout, "{json:#}"),
            Form::Text => text(&mut stdout),
        };
        finish(written.and_then(|()| stdout.flush()))
    }

    /// One of many results, as it comes: a line of JSON, or a line of text.
    pub(crate) fn line(self, json: &Value, text: &str) -> Result<(), Failure> {
        let mut stdout = anstream::stdout().lock();
        let written = match self.form {
            Form::Json => writeln!(stdout, "{json}"),
            Form::Text => writeln!(stdout, "{text}"),
        };
        finish(written.and_then(|()| stdout.flush()))
    }

    /// A note that somebody has to know of.
    pub(crate) fn note(self, json: &Value, text: &str) {
        let mut stderr = anstream::stderr().lock();
        // Nobody can be told that nobody reads.
        let _ = match self.form {
            Form::Json => writeln!(stderr, "{json}"),
            Form::Text => writeln!(stderr, "coord: {text}"),
        };
    }

    /// A note for those who asked for all.
    pub(crate) fn detail(self, json: &Value, text: &str) {
        if self.notes == Notes::All {
            self.note(json, text);
        }
    }

    /// What goes on, for somebody who waits in front of a terminal.
    pub(crate) fn progress(self, text: &str) {
        if self.form == Form::Text && io::stderr().is_terminal() {
            let _ = writeln!(anstream::stderr(), "{DIM}coord: {text}{DIM:#}");
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

/// What other programs have stored, so that a terminal survives it.
pub(crate) fn shown(text: &str) -> String {
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text.to_owned() }
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
    fn control_characters_are_escaped() {
        assert_eq!(shown("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(shown("日报"), "日报");
    }
}
