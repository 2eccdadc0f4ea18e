//! An HTTP/1.1 client that can do what well-behaved ones do not: leave, stop reading, send ahead.

use std::{collections::HashMap, net::SocketAddr};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// One connection. Dropped, it is closed, whatever is still under way.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Received and not yet looked at.
    buffer: BytesMut,
}

/// The head of a response.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// By name in lower case.
    pub(crate) headers: HashMap<String, String>,
}

/// What followed a head.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Ended {
    /// The whole body.
    Whole(Vec<u8>),
    /// The connection ended before the body did; this much came.
    BrokeOff(Vec<u8>),
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).expect("it is connected");
        Self { stream, buffer: BytesMut::new() }
    }

    /// Sends bytes as they are.
    pub(crate) async fn write(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.expect("the server reads");
    }

    /// Sends a request without a body.
    pub(crate) async fn ask(&mut self, method: &str, path: &str) {
        self.write(&format!("{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    }

    /// Reads the head of a response; `None` if the server ends the connection instead.
    pub(crate) async fn head(&mut self) -> Option<Head> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.split_to(end + 4);
                return Some(Head::parse(std::str::from_utf8(&head).expect("heads are ASCII")));
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Reads the body that follows `head` in answer to a GET.
    pub(crate) async fn body(&mut self, head: &Head) -> Ended {
        let header = |name: &str| head.headers.get(name).map(String::as_str);
        if header("transfer-encoding") == Some("chunked") {
            self.chunks().await
        } else if matches!(head.status, 100..200 | 204 | 304) {
            Ended::Whole(Vec::new())
        } else {
            let length = header("content-length").expect("a length, or chunks");
            self.sized(length.parse().expect("a number")).await
        }
    }

    /// Asks and reads the whole answer.
    pub(crate) async fn get(&mut self, path: &str) -> (u16, Ended) {
        self.ask("GET", path).await;
        self.answer().await
    }

    /// Reads a whole answer to a GET.
    pub(crate) async fn answer(&mut self) -> (u16, Ended) {
        let head = self.head().await.expect("the server answers");
        let body = self.body(&head).await;
        (head.status, body)
    }

    /// Reads until at least `n` bytes have come since the last head, and forgets them.
    pub(crate) async fn read_about(&mut self, n: usize) {
        let mut seen = self.buffer.len();
        self.buffer.clear();
        while seen < n {
            assert!(self.receive().await, "the server has more to say");
            seen += self.buffer.len();
            self.buffer.clear();
        }
    }

    /// Has the server ended the connection, with nothing more to read?
    pub(crate) async fn is_over(&mut self) -> bool {
        self.buffer.is_empty() && !self.receive().await
    }

    /// Reads whatever comes until the server ends the connection.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.receive().await {}
        self.buffer.split().to_vec()
    }

    /// Has nothing more to send, and goes on reading.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.expect("it is connected");
    }

    async fn sized(&mut self, length: usize) -> Ended {
        while self.buffer.len() < length {
            if !self.receive().await {
                return Ended::BrokeOff(self.buffer.split().to_vec());
            }
        }
        Ended::Whole(self.buffer.split_to(length).to_vec())
    }

    async fn chunks(&mut self) -> Ended {
        let mut body = Vec::new();
        loop {
            let Some(end) = find(&self.buffer, b"\r\n") else {
                if self.receive().await {
                    continue;
                }
                return Ended::BrokeOff(body);
            };
            let line = std::str::from_utf8(&self.buffer[..end]).expect("a length in hex");
            let length = usize::from_str_radix(line, 16).expect("a length in hex");
            self.buffer.advance(end + 2);
            match self.sized(length + 2).await {
                Ended::Whole(chunk) => body.extend(&chunk[..length]),
                Ended::BrokeOff(part) => {
                    body.extend(part);
                    return Ended::BrokeOff(body);
                }
            }
            if length == 0 {
                return Ended::Whole(body);
            }
        }
    }

    /// Receives some more; false at the end of the connection, however it came.
    async fn receive(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..))
    }
}

impl Head {
    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let status = lines.next().expect("a status line").split(' ').nth(1).expect("a status");
        let headers = lines.filter_map(|line| line.split_once(": "));
        Self {
            status: status.parse().expect("a number"),
            headers: headers.map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())).collect(),
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
