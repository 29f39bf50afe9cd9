//! Notes on stderr about CMD and the lock or id that it relies on.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::out::Out;

/// The lock, id or instance that CMD runs for, as notes name it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    out: Out,
    /// Fields of every note, such as the name of the lock.
    fields: Value,
    text: String,
}

impl Subject {
    /// `fields` is an object; `text` is such as "lock `a`".
    pub(crate) fn new(out: Out, fields: Value, text: String) -> Self {
        Self { out, fields, text }
    }

    /// Tells that it is lost, before anything is stopped.
    pub(super) async fn lost(&self, reason: &str) {
        let text = format!("{} was lost, {reason}; stopping CMD", self.text);
        self.tell(json!({ "event": "lost", "reason": reason }), text).await;
    }

    /// Tells that a signal did not reach CMD.
    pub(super) async fn not_signalled(&self) {
        let text = format!("{}: a signal was not passed on, since CMD runs as another user", self.text);
        self.tell(json!({ "event": "not_signalled" }), text).await;
    }

    /// Tells that CMD has left processes behind, which are stopped now.
    pub(super) async fn left_behind(&self, pids: &[i32]) {
        let text = format!("{}: CMD has ended and left {}; stopping them", self.text, listed(pids));
        self.tell(json!({ "event": "left_behind", "processes": pids }), text).await;
    }

    /// Tells that something goes on for want of a way to stop it.
    pub(super) async fn not_stopped(&self, pids: &[i32]) {
        let text = format!("{}: CMD could not be stopped and goes on: {}", self.text, listed(pids));
        self.tell(json!({ "event": "not_stopped", "processes": pids }), text).await;
    }

    /// Does not wait for a terminal that is held or a pipe that nobody reads: something has to be stopped.
    async fn tell(&self, mut note: Value, text: String) {
        const LIMIT: Duration = Duration::from_millis(200);
        if let (Value::Object(note), Value::Object(fields)) = (&mut note, &self.fields) {
            note.extend(fields.clone());
        }
        let out = self.out;
        let (done, told) = oneshot::channel();
        let tell = move || {
            out.note(&note, &text);
            let _ = done.send(());
        };
        if std::thread::Builder::new().name("coord-note".into()).spawn(tell).is_ok() {
            let _ = tokio::time::timeout(LIMIT, told).await;
        }
    }
}

fn listed(pids: &[i32]) -> String {
    let list = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match pids.len() {
        0 => "processes that can not be seen".into(),
        1 => format!("process {list}"),
        _ => format!("processes {list}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_listed_by_number() {
        assert_eq!(listed(&[7]), "process 7");
        assert_eq!(listed(&[7, 9]), "processes 7, 9");
        assert!(listed(&[]).contains("can not be seen"));
    }
}
