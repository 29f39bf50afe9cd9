//! Health checking: watches the health service of each instance (`Watch` of `grpc.health.v1`), as gRPC does (A17).
//!
//! Calls go to instances that serve. An instance without a health service is taken as serving.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use coord_api::BoxError;
use futures::{
    StreamExt,
    future::{AbortHandle, Abortable, poll_fn},
    stream::FuturesUnordered,
};
use http::{
    HeaderValue, Method, Request, Uri, Version,
    header::{CONTENT_TYPE, TE},
};
use http_body::{Body as HttpBody, Frame};
use hyper::body::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status, body::Body};

use crate::{
    outcome::Ending,
    pool::{Balancer, Serving},
    transport::{Connection, RecoverableBody},
};

const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Largest message that is taken for an answer, which has two bytes.
const MAX_MESSAGE_BYTES: usize = 4096;

/// First backoff before a watch that broke off twice is opened again. It doubles with each failure that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest backoff before a watch is opened again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Watches the health of every connected instance, if the options ask for it. Never returns.
pub(crate) async fn run(balancer: &Balancer) {
    let Some(service) = &balancer.options.health_check else { return std::future::pending().await };
    let mut followed: HashMap<u64, AbortHandle> = HashMap::new();
    let mut following = FuturesUnordered::new();
    loop {
        let mut present = HashSet::new();
        let new: Vec<_> = balancer.read(|pool| {
            present.extend(pool.connections().map(|(_, generation, _)| generation));
            let new = pool.connections().filter(|(_, generation, _)| !followed.contains_key(generation));
            new.map(|(id, generation, connection)| (id.to_owned(), generation, connection.clone())).collect()
        });
        // An open stream would keep a connection that is not used any more.
        followed.retain(|generation, handle| {
            let stays = present.contains(generation);
            if !stays {
                handle.abort();
            }
            stays
        });
        for (id, generation, connection) in new {
            let (handle, registration) = AbortHandle::new_pair();
            followed.insert(generation, handle);
            following
                .push(Abortable::new(follow(balancer, id, generation, connection, service), registration));
        }
        tokio::select! {
            () = balancer.changed() => {}
            Some(_) = following.next() => {}
        }
    }
}

/// Watches the health over one connection until it ends, or shows that there is no health service.
async fn follow(balancer: &Balancer, id: String, generation: u64, connection: Connection, service: &str) {
    let mut failed = 0_u32;
    loop {
        let outcome = watch(&connection, service, balancer.options.connect_timeout, |serving| {
            failed = 0;
            balancer.set_health(&id, generation, serving);
        });
        match outcome.await {
            Ok(Ending::Status(Code::Unimplemented)) => {
                return balancer.set_health(&id, generation, Serving::Yes);
            }
            Ok(ending) => tracing::debug!(id, ?ending, "a watch of an instance's health has ended"),
            Err(error) => tracing::debug!(id, error, "a watch of an instance's health has failed"),
        }
        if connection.is_closed() {
            return;
        }
        failed = failed.saturating_add(1);
        // Servers also end streams in peace: the last answer counts until the next watch fails too.
        if failed > 1 {
            balancer.set_health(&id, generation, Serving::Unknown);
            let pause = FIRST_PAUSE.saturating_mul(1 << failed.min(16)).min(LONGEST_PAUSE);
            sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        }
    }
}

/// Opens one watch and passes each answer to `tell`, until it ends.
async fn watch(
    connection: &Connection,
    service: &str,
    limit: Duration,
    mut tell: impl FnMut(Serving),
) -> Result<Ending, BoxError> {
    let begun = Instant::now();
    let late = |_| format!("no answer within {limit:?}");
    let (head, body) = request(service).into_parts();
    let body = RecoverableBody::new(body, 0);
    let response = timeout(limit, connection.http2.send(head, &body)).await.map_err(late)?;
    let response = response.map_err(|failed| failed.error)?;
    if let Some(ending) = Ending::of_head(&response) {
        return Ok(ending);
    }
    let (mut body, mut messages) = (response.into_body(), Messages::default());
    let mut is_first = true;
    loop {
        let next = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let frame = if is_first {
            timeout(limit.saturating_sub(begun.elapsed()), next).await.map_err(late)?
        } else {
            next.await
        };
        let Some(frame) = frame.transpose()? else { return Ok(Ending::NoStatus) };
        match frame.into_data() {
            Ok(data) => {
                messages.push(&data);
                while let Some(message) = messages.next()? {
                    is_first = false;
                    tell(serving(&message)?);
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return Ok(Ending::of_trailers(&trailers));
                }
            }
        }
    }
}

fn request(service: &str) -> Request<Body> {
    let mut request = Request::new(Body::new(Once(Some(message(service)))));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_static(WATCH);
    request.headers_mut().insert(CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request
}

/// Body of one frame.
struct Once(Option<Bytes>);

impl HttpBody for Once {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// Encodes `HealthCheckRequest { service }` as gRPC sends it.
fn message(service: &str) -> Bytes {
    let mut fields = Vec::new();
    if !service.is_empty() {
        fields.push(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            fields.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        fields.push(length as u8);
        fields.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(fields.len()).expect("options limit the name");
    let mut message = vec![0];
    message.extend_from_slice(&length.to_be_bytes());
    message.append(&mut fields);
    message.into()
}

/// Decoder of messages out of the pieces in which they arrive.
#[derive(Debug, Default)]
struct Messages(Vec<u8>);

impl Messages {
    fn push(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>, BoxError> {
        let Some((head, rest)) = self.0.split_first_chunk::<5>() else { return Ok(None) };
        let [compressed, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 || length > MAX_MESSAGE_BYTES {
            return Err("what came is no answer of a health service".into());
        }
        let Some(message) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.0.drain(..head.len() + length);
        Ok(Some(message))
    }
}

/// Decodes whether a `HealthCheckResponse` says `SERVING`. Unknown fields are skipped.
fn serving(mut message: &[u8]) -> Result<Serving, BoxError> {
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let skipped = match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?)?,
            5 => 4,
            _ => return Err("what came is no answer of a health service".into()),
        };
        message = message.get(skipped..).ok_or("an answer of a health service is cut off")?;
    }
    Ok(if status == 1 { Serving::Yes } else { Serving::No })
}

fn varint(bytes: &mut &[u8]) -> Result<u64, BoxError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or("an answer of a health service is cut off")?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("what came is no answer of a health service".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_written_as_protobuf_has_it() {
        assert_eq!(message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(message("ab")[..], [0, 0, 0, 0, 4, 10, 2, b'a', b'b']);
        let long = message(&"x".repeat(200));
        assert_eq!(long[..8], [0, 0, 0, 0, 203, 10, 0xc8, 1]);
        assert_eq!(long.len(), 5 + 203);
    }

    #[test]
    fn messages_come_in_any_pieces() {
        let mut messages = Messages::default();
        let stream = [0, 0, 0, 0, 2, 8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 8, 2];
        let mut found = Vec::new();
        for byte in stream {
            messages.push(&[byte]);
            found.extend(messages.next().expect("is good"));
        }
        assert_eq!(found, [vec![8, 1], vec![], vec![8, 2]]);
        for bad in [[1, 0, 0, 0, 2], [0, 1, 0, 0, 0]] {
            let mut messages = Messages::default();
            messages.push(&bad);
            messages.next().expect_err("is none");
        }
    }

    #[test]
    fn status_serving_alone_counts_as_serving() {
        let table: [(&[u8], Serving); 6] = [
            (&[], Serving::No),
            (&[8, 0], Serving::No),
            (&[8, 1], Serving::Yes),
            (&[8, 2], Serving::No),
            (&[8, 3], Serving::No),
            // With fields of a later version around it.
            (&[0x12, 1, b'x', 8, 1, 0x1d, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0], Serving::Yes),
        ];
        for (message, expected) in table {
            assert_eq!(serving(message).expect("is good"), expected, "{message:?}");
        }
        for bad in [&[8][..], &[0x12, 9, 1], &[0x1d, 0], &[0xff; 11], &[3]] {
            serving(bad).expect_err("is cut off");
        }
    }
}
