//! Commands that watch: one line for each event, until a signal comes.

use coord_api::Watch;
use serde::Serialize;

use crate::{
    child::Signals,
    exit::{Exit, Failure},
    out::Out,
};

/// Opens a watch and shows its events, each as JSON or text. What can not be read is told, and it goes on.
pub(crate) async fn show<E, J: Serialize>(
    opening: impl Future<Output = coord_api::Result<Watch<E>>>,
    line: impl Fn(&E) -> (J, String),
    out: Out,
) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let mut watch = opening.await?;
    loop {
        let item = tokio::select! {
            biased;
            heard = signals.next() => return Ok(Exit::of_signal(heard.signal.as_raw())),
            item = watch.next() => item,
        };
        match item {
            None => return Ok(Exit::OK),
            Some(Ok(event)) => {
                let (json, text) = line(&event);
                out.line(&json, &text)?;
            }
            Some(Err(error)) => out.failure(&error.into()),
        }
    }
}
