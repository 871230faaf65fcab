//! Event streams (`text/event-stream`) of the API: events and logs.

use std::time::Duration;

use eventsource_stream::Eventsource as _;
use futures::StreamExt as _;

use super::{ApiError, Client};

/// A stream that broke is opened anew this often in a row before it is given up.
const REOPENINGS: u32 = 10;

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its kind; `message` unless the API named another.
    pub(crate) event: String,
    /// Its payload.
    pub(crate) data: String,
}

/// Whether to go on after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Go on.
    More,
    /// That was all.
    Enough,
}

impl Client {
    /// Reads the stream at `path` to its end, or until `each` has had enough. With `resume`, a broken stream is opened
    /// anew after the last message seen (`Last-Event-ID`); without, its break is an error.
    pub(crate) async fn follow(
        &self,
        path: &str,
        resume: bool,
        mut each: impl FnMut(&Message) -> Flow,
    ) -> Result<(), ApiError> {
        let mut last: Option<String> = None;
        let mut broken = 0;
        loop {
            let error = match self.open_stream(path, last.as_deref()).await {
                Ok(answer) => {
                    let mut messages = answer.bytes_stream().eventsource();
                    loop {
                        match messages.next().await {
                            Some(Ok(event)) => {
                                broken = 0;
                                if !event.id.is_empty() {
                                    last = Some(event.id);
                                }
                                let message = Message {
                                    event: event.event,
                                    data: event.data,
                                };
                                if each(&message) == Flow::Enough {
                                    return Ok(());
                                }
                            }
                            Some(Err(e)) => break self.broke(&e.to_string()),
                            None if resume => break self.broke("the stream ended"),
                            None => return Ok(()),
                        }
                    }
                }
                Err(error) => error,
            };
            broken += 1;
            if !resume || broken > REOPENINGS || !error.is_transient() {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(250 << broken.min(4))).await;
        }
    }

    fn broke(&self, message: &str) -> ApiError {
        ApiError::Unreachable {
            address: self.address().to_owned(),
            message: message.to_owned(),
        }
    }
}
