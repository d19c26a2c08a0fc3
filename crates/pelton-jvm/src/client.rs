//! One call operator's client: rows in, rows or errors out, each under its id.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_array::builder::{ArrayBuilder, make_builder};
use pelton_agent::Order;
use pelton_call::{MethodSpec, ServiceClient, Target};
use pelton_core::call::{Acknowledge, Caller, Outcome, Receiver, Submission};
use pelton_core::{Error, Kind, RequestId, Result};
use serde::Deserialize;

use crate::values::{Reader, append, check, encode, put_string};

/// How long one attempt to reach the service may take; whoever calls tries again.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is called, and by whom.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    order: Order,
    method: String,
    /// The names of the values that a row has, in their order.
    columns: Vec<String>,
    /// Whose requests these are: the same over all restarts.
    scope: String,
    /// Which of its callers.
    client: String,
    /// Grows with each start.
    epoch: u64,
    /// The call site's number in the ids of its requests.
    operator: u32,
    /// For a row with all its attempts. None: as the service declares.
    #[serde(default)]
    timeout_millis: Option<u64>,
}

pub(crate) struct Client {
    service: ServiceClient,
    caller: Arc<dyn Caller>,
    method: usize,
    spec: MethodSpec,
    /// For each column of the method, which value of a row it is.
    places: Vec<usize>,
    values: usize,
    operator: u32,
    timeout: Option<Duration>,
    inbox: Arc<Inbox>,
}

/// Where outcomes wait until Java takes them.
#[derive(Default)]
struct Inbox {
    state: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    ended: VecDeque<(RequestId, Result<Vec<RecordBatch>>)>,
    /// Parts of answers that have not ended.
    parts: HashMap<RequestId, Vec<RecordBatch>>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver for Inbox {
    fn deliver(&self, outcomes: Vec<Outcome>) {
        let mut waiting = self.lock();
        for Outcome { id, rows, last } in outcomes {
            let ended = match (rows, last) {
                (Ok(rows), false) => {
                    waiting.parts.entry(id).or_default().push(rows);
                    continue;
                }
                (Ok(rows), true) if waiting.parts.is_empty() => Ok(vec![rows]),
                (Ok(rows), true) => {
                    let mut all = waiting.parts.remove(&id).unwrap_or_default();
                    all.push(rows);
                    Ok(all)
                }
                (Err(error), _) => {
                    waiting.parts.remove(&id);
                    Err(error)
                }
            };
            waiting.ended.push_back((id, ended));
        }
        drop(waiting);
        self.arrived.notify_one();
    }
}

impl Client {
    /// Reaches the service, if it is there and ready. An error says that it never will be.
    pub(crate) fn connect(settings: Settings) -> Result<Option<Client>> {
        let Settings { order, method, columns, scope, client, epoch, operator, timeout_millis } = settings;
        let declaration = order.declaration()?;
        let target =
            Target::job(order.name()?, declaration.name).patience(PATIENCE).resuming(scope, client, epoch);
        let service = match ServiceClient::connect_blocking(target) {
            Ok(service) => service,
            Err(e) if e.kind() == Kind::Connect => return Ok(None),
            Err(e) => return Err(e),
        };
        let spec = service.method(&method)?.spec().clone();
        let place = |name: &String| columns.iter().position(|c| c == name);
        let wanted: Vec<&String> = spec.input.fields().iter().map(|f| f.name()).collect();
        let places: Option<Vec<usize>> = wanted.iter().copied().map(place).collect();
        let Some(places) = places else {
            return Err(Error::invalid(format!(
                "method `{method}` of service `{}` takes the columns {wanted:?}, and the call gives {columns:?}; name them in the call",
                service.service()
            )));
        };
        let index = service.methods().iter().position(|m| m.name == method).expect("it was found above");
        let caller = service.caller();
        Ok(Some(Client {
            caller,
            service,
            method: index,
            spec,
            places,
            values: columns.len(),
            operator,
            timeout: timeout_millis.map(Duration::from_millis),
            inbox: Arc::default(),
        }))
    }

    /// The names of the columns that answers have.
    pub(crate) fn output(&self) -> Vec<&str> {
        self.spec.output.fields().iter().map(|f| f.name().as_str()).collect()
    }

    /// Takes requests: their number, then for each its id and its values. Those that do not fit the method end at once, with an error.
    pub(crate) fn submit(&self, block: &[u8]) -> Result<()> {
        let mut reader = Reader::new(block);
        let rows = reader.int()? as u32 as usize;
        let fields = self.spec.input.fields();
        let mut builders: Vec<Box<dyn ArrayBuilder>> =
            fields.iter().map(|f| make_builder(f.data_type(), rows)).collect();
        let (mut ids, mut refused) = (Vec::with_capacity(rows), Vec::new());
        let mut values = Vec::with_capacity(self.values);
        for _ in 0..rows {
            let (group, sequence) = (reader.long()? as u64, reader.long()? as u64);
            let id = RequestId { operator: self.operator, group, sequence };
            values.clear();
            for _ in 0..self.values {
                values.push(reader.value()?);
            }
            let wrong = fields.iter().zip(&self.places).find_map(|(field, place)| {
                let fits = check(field.data_type(), field.is_nullable(), &values[*place]);
                fits.err().map(|why| format!("column `{}`: {why}", field.name()))
            });
            if let Some(why) = wrong {
                let what = format!("a row for `{}.{}`: {why}", self.service.service(), self.spec.name);
                refused.push(Outcome { id, rows: Err(Error::invalid(what)), last: true });
                continue;
            }
            for ((builder, field), place) in builders.iter_mut().zip(fields).zip(&self.places) {
                append(builder, field.data_type(), &values[*place]);
            }
            ids.push(id);
        }
        if !refused.is_empty() {
            self.inbox.deliver(refused);
        }
        if !ids.is_empty() {
            let columns = builders.iter_mut().map(|b| b.finish()).collect();
            let arguments = RecordBatch::try_new(self.spec.input.clone(), columns)?;
            let submission = Submission {
                timeout: self.timeout,
                acknowledge: Acknowledge::Explicit,
                ..Submission::new(self.method, ids, arguments)
            };
            self.caller.submit(submission, self.inbox.clone());
        }
        Ok(())
    }

    /// What has ended, about so many bytes of it: for each its id, and then its rows or its error. Waits for the first for so long.
    pub(crate) fn take(&self, wait: Duration, most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let waiting = self.inbox.lock();
        let (mut waiting, _) = self
            .inbox
            .arrived
            .wait_timeout_while(waiting, wait, |w| w.ended.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        while out.len() < most
            && let Some((id, ended)) = waiting.ended.pop_front()
        {
            write_ended(id, ended, &mut out);
        }
        out
    }

    /// These ended requests are covered by a checkpoint, or need none: nobody asks for them again.
    pub(crate) fn acknowledge(&self, ids: &[u8]) -> Result<()> {
        let mut reader = Reader::new(ids);
        let count = reader.int()? as u32;
        let mut all = Vec::new();
        for _ in 0..count {
            let (group, sequence) = (reader.long()? as u64, reader.long()? as u64);
            all.push(RequestId { operator: self.operator, group, sequence });
        }
        self.caller.acknowledge(&all);
        Ok(())
    }
}

/// The id, a length, and of that length the number of rows and then their values; or -1 and then what the error says.
fn write_ended(id: RequestId, ended: Result<Vec<RecordBatch>>, out: &mut Vec<u8>) {
    out.extend((id.group as i64).to_le_bytes());
    out.extend((id.sequence as i64).to_le_bytes());
    out.extend(0u32.to_le_bytes());
    let from = out.len();
    if let Err(error) = ended.and_then(|rows| write_rows(&rows, out)) {
        out.truncate(from);
        out.extend((-1i32).to_le_bytes());
        put_string(out, error.kind().name());
        put_string(out, &format!("{:?}", error.fate()));
        put_string(out, error.message());
    }
    let length = (out.len() - from) as u32;
    out[from - 4..from].copy_from_slice(&length.to_le_bytes());
}

fn write_rows(batches: &[RecordBatch], out: &mut Vec<u8>) -> Result<()> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    out.extend((rows as i32).to_le_bytes());
    for batch in batches {
        for row in 0..batch.num_rows() {
            batch.columns().iter().try_for_each(|column| encode(column, row, out))?;
        }
    }
    Ok(())
}
