//! A subtask's writer: rows go to where they wait, in one transaction from checkpoint to checkpoint.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::SinkExt;
use pelton_core::{Error, Result};
use pelton_dataflow::sink::{Staged, Writer};
use tokio_postgres::Statement;

use crate::columns::Column;
use crate::encode::{self, Rows};
use crate::failure::Failure;
use crate::link::{Link, Session};
use crate::moving::Record;
use crate::settings::Settings;
use crate::sql::Names;
use crate::starting::hold_fence;

/// What a writer holds in memory, but for one row larger than that.
const BUFFER: usize = 1 << 20;

pub(crate) struct TableWriter {
    pub(crate) link: Arc<Link>,
    pub(crate) settings: Settings,
    pub(crate) names: Names,
    pub(crate) columns: Vec<Column>,
    pub(crate) schema: SchemaRef,
    pub(crate) subtask: u32,
    pub(crate) generation: u64,
    /// Between two parts.
    pub(crate) idle: Option<Session>,
    pub(crate) open: Option<Part>,
}

/// A part that is being written: an open transaction.
pub(crate) struct Part {
    session: Session,
    copy: Statement,
    name: String,
    rows: u64,
    buffer: Vec<u8>,
}

impl Writer for TableWriter {
    fn write(&mut self, rows: RecordBatch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let rows = RecordBatch::try_new(self.schema.clone(), rows.columns().to_vec())
            .map_err(|e| Error::internal(format!("rows for {}: {e}", self.settings.describe())))?;
        let mut part = match self.open.take() {
            Some(part) => part,
            None => self.begin()?,
        };
        // What fails is not put back: the part is over, and with it its transaction.
        let encoder = Rows::new(&self.columns, &rows, &part.name, self.generation)?;
        for row in 0..rows.num_rows() {
            encoder.put(row, &mut part.buffer).map_err(|e| e.context(self.settings.describe()))?;
            part.rows += 1;
            if part.buffer.len() >= BUFFER {
                part = self.send(part)?;
            }
        }
        self.open = Some(part);
        Ok(())
    }

    fn prepare(&mut self, checkpoint: u64) -> Result<Vec<Staged>> {
        let Some(part) = self.open.take() else {
            return Ok(vec![]);
        };
        let part = self.send(part)?;
        let (names, sink, generation) = (self.names.clone(), self.settings.name.clone(), self.generation);
        let ((), session) = self.link.work(Some(part.session), move |session| async move {
            hold_fence(&session.client, &names, &sink, generation).await?;
            Ok(session.client.batch_execute("commit").await?)
        })?;
        self.idle = Some(session);
        let record = Record {
            sink: self.settings.name.clone(),
            schema: self.names.schema.clone(),
            table: self.settings.table().1.to_owned(),
            part: part.name,
            generation,
            subtask: self.subtask,
            checkpoint,
            rows: part.rows,
            columns: self.columns.iter().map(|c| c.name.clone()).collect(),
        };
        Ok(vec![record.staged()?])
    }
}

impl TableWriter {
    /// Nothing is lost yet if the connection is: another one does.
    fn begin(&mut self) -> Result<Part> {
        let columns: Vec<String> = self.columns.iter().map(|c| c.name.clone()).collect();
        let copy = self.names.copy(&columns);
        let patience = self.settings.patience;
        let (copy, session) = self.link.persist(self.idle.take(), patience, move |session| {
            let copy = copy.clone();
            async move {
                session.client.batch_execute("begin").await?;
                Ok(session.client.prepare(&copy).await?)
            }
        })?;
        let name = format!("{}-{}-{:016x}", self.generation, self.subtask, self.link.env()?.entropy.seed());
        let mut buffer = Vec::new();
        encode::begin(&mut buffer);
        Ok(Part { session, copy, name, rows: 0, buffer })
    }

    /// Hands what was gathered to the server.
    fn send(&self, mut part: Part) -> Result<Part> {
        let mut next = Vec::with_capacity(part.buffer.len());
        encode::begin(&mut next);
        if part.buffer.len() == next.len() {
            return Ok(part);
        }
        encode::end(&mut part.buffer);
        let (bytes, copy) = (Bytes::from(std::mem::replace(&mut part.buffer, next)), part.copy.clone());
        let ((), session) = self.link.work(Some(part.session), move |session| async move {
            let sink = session.client.copy_in(&copy).await?;
            let mut sink = std::pin::pin!(sink);
            // If the server has refused the rows, `finish` knows why.
            let sent = sink.send(bytes).await;
            sink.finish().await?;
            Ok::<(), Failure>(sent?)
        })?;
        Ok(Part { session, ..part })
    }
}
