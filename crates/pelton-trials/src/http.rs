//! As much of HTTP/1.1 as trials speak, over any connection: messages whose length is known; of others, the head alone.

use std::io::{self, ErrorKind};

use pelton::env::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MOST_HEAD: usize = 16 << 10;
const MOST_BODY: usize = 64 << 20;

/// A request or a response.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// The words of the first line: `POST /path HTTP/1.1` or `HTTP/1.1 200 OK`.
    pub(crate) first: Vec<String>,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Empty where its length is not known beforehand; then the connection is good for nothing more.
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The status of a response.
    pub(crate) fn status(&self) -> io::Result<u16> {
        let status = self.first.get(1).and_then(|s| s.parse().ok());
        status.ok_or_else(|| invalid(format!("no response begins with {:?}", self.first.join(" "))))
    }

    /// Whether another message may follow on this connection.
    pub(crate) fn keeps(&self) -> bool {
        let closes = self.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        !closes && self.header("transfer-encoding").is_none()
    }
}

/// The bytes of a POST.
pub(crate) fn post(path: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The bytes of a response. `headers` are whole lines without their ends.
pub(crate) fn response(status: &str, headers: &[String], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A connection, and what was read of it and belongs to no message yet.
pub(crate) struct Messages {
    connection: Connection,
    read: Vec<u8>,
}

impl Messages {
    pub(crate) fn new(connection: Connection) -> Messages {
        Messages { connection, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.connection.write.write_all(bytes).await?;
        self.connection.write.flush().await
    }

    /// The next message; None if the other side ended the connection in good order.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Message>> {
        let length = loop {
            match self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None if self.read.len() > MOST_HEAD => {
                    return Err(invalid(format!("a head of more than {MOST_HEAD} bytes")));
                }
                None if self.more().await? => {}
                None if self.read.is_empty() => return Ok(None),
                None => return Err(cut()),
            }
        };
        let (mut message, body) = head(&self.read[..length])?;
        while self.read.len() < length + body {
            if !self.more().await? {
                return Err(cut());
            }
        }
        message.body = self.read[length..length + body].to_vec();
        self.read.drain(..length + body);
        Ok(Some(message))
    }

    /// Whether anything came.
    async fn more(&mut self) -> io::Result<bool> {
        Ok(self.connection.read.read_buf(&mut self.read).await? > 0)
    }
}

/// A message without its body, and how long that is.
fn head(bytes: &[u8]) -> io::Result<(Message, usize)> {
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("a head that is no text"))?;
    let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
    let first: Vec<String> = lines.next().unwrap_or_default().split(' ').map(str::to_owned).collect();
    if first.len() < 2 {
        return Err(invalid(format!("no message begins with {:?}", first.join(" "))));
    }
    let header = |line: &str| {
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("no header is {line:?}")))?;
        Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.map(header).collect::<io::Result<Vec<_>>>()?;
    let message = Message { first, headers, body: Vec::new() };
    let length = match message.header("content-length") {
        None => 0,
        Some(length) => length.parse().map_err(|_| invalid(format!("content-length {length}")))?,
    };
    if length > MOST_BODY {
        return Err(invalid(format!("a body of {length} bytes; {MOST_BODY} are the most")));
    }
    Ok((message, length))
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.into())
}

fn cut() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the connection ended within a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of these bytes: each message's first line and body, or the error that ends them.
    fn read(bytes: &[u8]) -> Vec<String> {
        let connection = Connection {
            read: Box::new(io::Cursor::new(bytes.to_vec())),
            write: Box::new(Vec::new()),
            descriptors: None,
        };
        let mut messages = Messages::new(connection);
        futures::executor::block_on(async {
            let mut all = Vec::new();
            loop {
                match messages.receive().await {
                    Ok(None) => return all,
                    Ok(Some(m)) => {
                        all.push(format!("{} | {}", m.first.join(" "), String::from_utf8_lossy(&m.body)));
                    }
                    Err(e) => {
                        all.push(e.to_string());
                        return all;
                    }
                }
            }
        })
    }

    #[test]
    fn messages_are_told_from_one_another_and_from_rubbish() {
        let two = [post("/a", "text/plain", b"one"), post("/b", "text/plain", b"")].concat();
        assert_eq!(read(&two), ["POST /a HTTP/1.1 | one", "POST /b HTTP/1.1 | "]);
        let answer = response("429 Too Many Requests", &["Retry-After: 1".to_owned()], b"{}");
        assert_eq!(read(&answer), ["HTTP/1.1 429 Too Many Requests | {}"]);
        assert_eq!(read(&answer[..answer.len() - 1]), ["the connection ended within a message"]);
        let (message, _) = head(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        assert_eq!((message.status().unwrap(), message.keeps()), (503, false));
        assert!(read(b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n")[0].contains("many"));
        assert!(read(&[b'x'; MOST_HEAD + 1])[0].contains("head"));
        let (message, _) = head(b"HTTP/1.1 503 No\r\nConnection: Close\r\nRETRY-after: 2 \r\n\r\n").unwrap();
        assert_eq!((message.status().unwrap(), message.keeps()), (503, false));
        assert_eq!(message.header("retry-after"), Some("2"));
    }
}
