//! The other end of a hold, for a thread that may block.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pelton_core::{Error, Result};
use pelton_discovery::rundir;

use crate::order::{Order, socket};

/// A place in a pool: as long as it is there, so is an instance. Dropping it leaves the instance to the lease.
#[derive(Debug)]
pub struct Hold {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    /// The beginning of a line whose end has not come.
    begun: String,
}

fn connect(order: &Order) -> Result<Option<UnixStream>> {
    let socket = socket(&order.home(&rundir::base())?);
    match UnixStream::connect(&socket) {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) => {
            Err(Error::from(e).context(format_args!("connecting to the agent at {}", socket.display())))
        }
    }
}

fn say(stream: &mut UnixStream, message: &serde_json::Value) -> Result<()> {
    let line = format!("{message}\n");
    stream.write_all(line.as_bytes()).map_err(|e| Error::from(e).context("telling the agent"))
}

impl Hold {
    /// Holds the pool, if its agent is there.
    pub fn take(order: &Order) -> Result<Option<Hold>> {
        let Some(mut writer) = connect(order)? else { return Ok(None) };
        say(&mut writer, &serde_json::json!("hold"))?;
        let reader = BufReader::new(writer.try_clone()?);
        Ok(Some(Hold { writer, reader, begun: String::new() }))
    }

    /// The next thing the agent says, as one line of JSON; none if it says nothing for so long. An error: it is gone.
    pub fn next(&mut self, wait: Duration) -> Result<Option<String>> {
        self.reader.get_ref().set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        match self.reader.read_line(&mut self.begun) {
            Ok(_) if self.begun.ends_with('\n') => {
                let line = std::mem::take(&mut self.begun);
                Ok(Some(line.trim_end().to_owned()))
            }
            Ok(_) => Err(Error::internal("the agent is gone")),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(Error::from(e).context("the agent is gone")),
        }
    }

    /// Gives the place up for good: the instance is not waited for.
    pub fn release(mut self) {
        let _ = say(&mut self.writer, &serde_json::json!("release"));
    }
}

/// Lets the agent of a pool pass something on to all who hold it, now or later. Says whether there is an agent.
pub fn tell(order: &Order, what: &serde_json::Value) -> Result<bool> {
    let Some(mut stream) = connect(order)? else { return Ok(false) };
    say(&mut stream, &serde_json::json!({ "tell": what }))?;
    // It answers when it has it.
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(!answer.is_empty())
}
