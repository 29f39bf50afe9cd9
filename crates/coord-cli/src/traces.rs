//! Traces of the library on stderr: with `-v` each step of coord, with `-vv` also of its connections, or as
//! `RUST_LOG` asks for. Without either nothing is traced.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

use crate::out::{Form, Out};

/// Traces that are printed where `RUST_LOG` does not choose them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traces {
    None,
    /// The crates of coord, at the level debug.
    Coord,
    /// Also the crates that it uses.
    Everything,
}

impl Traces {
    fn filter(self) -> Option<EnvFilter> {
        if std::env::var_os(EnvFilter::DEFAULT_ENV).is_some_and(|filter| !filter.is_empty()) {
            // It may be meant for CMD: what can not be read of it is told, and does not count.
            return Some(EnvFilter::builder().from_env_lossy());
        }
        match self {
            Self::None => None,
            Self::Coord => Some(EnvFilter::new("coord=debug")),
            Self::Everything => Some(EnvFilter::new("debug,coord=trace")),
        }
    }
}

/// Prints traces from now on, in the whole process.
pub(crate) fn print(traces: Traces, out: Out) {
    let Some(filter) = traces.filter() else { return };
    let printed =
        tracing_subscriber::fmt().compact().with_env_filter(filter).with_ansi(out.form == Form::Text);
    let printed = printed.with_writer(move || Lines(out)).finish();
    // Nobody else listens in this process.
    let _ = tracing_subscriber::util::SubscriberInitExt::try_init(printed);
}

/// Writes each trace as a line.
struct Lines(Out);

impl Write for Lines {
    /// Gets a whole trace with its line break, as the subscriber writes it.
    fn write(&mut self, trace: &[u8]) -> io::Result<usize> {
        self.0.traced(String::from_utf8_lossy(trace).trim_end_matches('\n'));
        Ok(trace.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
