//! Server that is told frame by frame what to do. A test says exactly when a connection ends, and for which requests.

use std::{
    io::{Read, Result, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use coord_api::{Error, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection};
use futures::{StreamExt, stream};
use tower::discover::Change;

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The status 200 and the type of the content.
const BEGUN: &[u8] = b"\x88\x5f\x10application/grpc";
/// The status 0 of gRPC, as a field that is not indexed.
const ENDED: &[u8] = b"\x00\x0bgrpc-status\x010";

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
/// The last stream of a GOAWAY that says only that another one will follow.
pub(crate) const ALL_STREAMS: u32 = 0x7fff_ffff;

/// The server's end of one connection.
pub(crate) struct Peer {
    stream: TcpStream,
    executed: Arc<AtomicUsize>,
    /// Tells how far a request has come on its way, in bytes.
    pub(crate) received: usize,
    answers_pings: bool,
}

struct Frame {
    kind: u8,
    flags: u8,
    id: u32,
    /// The first four bytes of what it carries.
    word: u32,
}

impl Peer {
    /// Begins to speak HTTP/2, with so many streams at a time if that is limited.
    fn new(mut stream: TcpStream, executed: Arc<AtomicUsize>, streams: Option<u32>) -> Result<Self> {
        stream.set_nodelay(true)?;
        let mut settings = Vec::new();
        if let Some(streams) = streams {
            settings.extend([0, 3]);
            settings.extend(streams.to_be_bytes());
        }
        let mut peer = Self { stream: stream.try_clone()?, executed, received: 0, answers_pings: true };
        peer.send(SETTINGS, 0, 0, &settings)?;
        stream.read_exact(&mut [0; PREFACE])?;
        Ok(peer)
    }

    fn send(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len()).expect("is short").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(id.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame)
    }

    fn frame(&mut self) -> Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        self.stream.read_exact(&mut payload)?;
        match kind {
            SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[])?,
            PING if flags & ACK == 0 && self.answers_pings => self.send(PING, ACK, 0, &payload)?,
            DATA if !payload.is_empty() => {
                self.received += payload.len();
                let more = u32::try_from(payload.len()).expect("is short").to_be_bytes();
                self.send(WINDOW_UPDATE, 0, 0, &more)?;
                self.send(WINDOW_UPDATE, 0, u32::from_be_bytes(id), &more)?;
            }
            _ => {}
        }
        let word = payload.first_chunk().map_or(0, |word| u32::from_be_bytes(*word));
        Ok(Frame { kind, flags, id: u32::from_be_bytes(id), word })
    }

    /// Waits for the end of a request, and returns its stream.
    pub(crate) fn request(&mut self) -> Result<u32> {
        loop {
            let frame = self.frame()?;
            if [DATA, HEADERS].contains(&frame.kind) && frame.flags & END_STREAM != 0 {
                return Ok(frame.id);
            }
        }
    }

    /// Waits for the head of a request, and returns its stream.
    pub(crate) fn head(&mut self) -> Result<u32> {
        loop {
            let frame = self.frame()?;
            if frame.kind == HEADERS {
                return Ok(frame.id);
            }
        }
    }

    /// Waits until so many bytes of requests have come over this connection.
    pub(crate) fn data(&mut self, bytes: usize) -> Result<()> {
        while self.received < bytes {
            self.frame()?;
        }
        Ok(())
    }

    /// Executes a request and answers it with an empty message.
    pub(crate) fn answer(&mut self, id: u32) -> Result<()> {
        self.executed.fetch_add(1, SeqCst);
        self.begin(id)?;
        self.finish(id)
    }

    /// Ends an answer that was begun, with a message.
    pub(crate) fn finish(&mut self, id: u32) -> Result<()> {
        self.message(id)?;
        self.send(HEADERS, END_HEADERS | END_STREAM, id, ENDED)
    }

    /// Begins an answer.
    pub(crate) fn begin(&mut self, id: u32) -> Result<()> {
        self.send(HEADERS, END_HEADERS, id, BEGUN)
    }

    /// Executes a request, the answer to which never comes.
    pub(crate) fn execute(&mut self) {
        self.executed.fetch_add(1, SeqCst);
    }

    pub(crate) fn go_away(&mut self, last: u32, reason: u32) -> Result<()> {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend(reason.to_be_bytes());
        self.send(GO_AWAY, 0, 0, &payload)
    }

    pub(crate) fn reset(&mut self, id: u32, reason: u32) -> Result<()> {
        self.send(RST_STREAM, 0, id, &reason.to_be_bytes())
    }

    /// Answers all requests that come.
    pub(crate) fn answer_all(&mut self) -> Result<()> {
        loop {
            let id = self.request()?;
            self.answer(id)?;
        }
    }

    /// Sends a message of an answer.
    pub(crate) fn message(&mut self, id: u32) -> Result<()> {
        self.send(DATA, 0, id, &[0; 5])
    }

    /// Waits until the client gives a stream up, and returns the reason.
    pub(crate) fn given_up(&mut self, id: u32) -> Result<u32> {
        loop {
            let frame = self.frame()?;
            if frame.kind == RST_STREAM && frame.id == id {
                return Ok(frame.word);
            }
        }
    }

    /// Answers pings or not.
    pub(crate) fn ignore_pings(&mut self) {
        self.answers_pings = false;
    }

    /// Reads on until the client closes the connection.
    pub(crate) fn drain(&mut self) -> Result<()> {
        loop {
            self.frame()?;
        }
    }
}

/// A server with a script.
pub(crate) struct Scripted {
    pub(crate) port: u16,
    executed: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    /// Runs `script` on each connection, in a thread of its own, with the number of the connection.
    pub(crate) fn start(
        streams: Option<u32>,
        script: impl Fn(usize, &mut Peer) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let port = listener.local_addr().expect("is bound").port();
        let (executed, connections) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (told, numbers, script) = (executed.clone(), connections.clone(), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (executed, script) = (told.clone(), script.clone());
                let number = numbers.fetch_add(1, SeqCst);
                thread::spawn(move || {
                    let mut peer = Peer::new(stream, executed, streams)?;
                    script(number, &mut peer)
                });
            }
        });
        Self { port, executed, connections }
    }

    pub(crate) fn executed(&self) -> usize {
        self.executed.load(SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

/// A connection to all of `servers`, once they are ready; their ids are `0`, `1`, …
pub(crate) async fn connect(servers: &[&Scripted], options: ConnectOptions) -> Connection {
    let list: Vec<_> = servers
        .iter()
        .enumerate()
        .map(|(id, server)| {
            let info = ServiceInfo::new("raw", id.to_string(), "127.0.0.1", server.port);
            Ok::<_, Error>(Change::Insert(id.to_string(), info))
        })
        .collect();
    let list = stream::iter(list).chain(stream::pending());
    let connection = Connection::balance("raw", list, options).expect("the name is good");
    let ready = crate::fleet::until(|| connection.state().ready() == servers.len());
    tokio::time::timeout(Duration::from_secs(30), ready).await.expect("all listen");
    connection
}
