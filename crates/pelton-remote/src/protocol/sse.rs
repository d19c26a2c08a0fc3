//! Server-sent events, as far as chat streams use them: the data of each event.
//! (html.spec.whatwg.org/multipage/server-sent-events.html)

/// Takes bytes as they come and gives the data of whole events.
#[derive(Default)]
pub(crate) struct Events {
    /// Not a whole line yet.
    rest: Vec<u8>,
    data: Option<Vec<u8>>,
}

impl Events {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        self.rest.extend_from_slice(bytes);
        let mut lines = std::mem::take(&mut self.rest);
        let mut from = 0;
        while let Some(end) = lines[from..].iter().position(|b| *b == b'\n') {
            let line = &lines[from..from + end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                events.extend(self.data.take());
            } else if let Some(value) = line.strip_prefix(b"data:") {
                let value = value.strip_prefix(b" ").unwrap_or(value);
                match &mut self.data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                    None => self.data = Some(value.to_vec()),
                }
            }
            from += end + 1;
        }
        lines.drain(..from);
        self.rest = lines;
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let text = b": hello\r\ndata: one\r\n\r\nevent: x\ndata:two\ndata: lines\n\n\nid: 7\n\ndata: half";
        for size in [1, 2, 3, 7, 1000] {
            let mut events = Events::default();
            let all: Vec<Vec<u8>> = text.chunks(size).flat_map(|c| events.push(c)).collect();
            assert_eq!(all, [b"one".to_vec(), b"two\nlines".to_vec()], "in pieces of {size}");
            assert_eq!(events.rest, b"data: half");
        }
    }
}
