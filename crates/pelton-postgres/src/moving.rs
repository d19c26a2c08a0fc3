//! Rows that waited become visible, once; or are withdrawn.

use pelton_core::{Error, Result};
use pelton_dataflow::sink::Staged;
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::failure::Failure;
use crate::layout;
use crate::sql::Names;

/// What a [`Staged`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) sink: String,
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) part: String,
    pub(crate) generation: u64,
    pub(crate) subtask: u32,
    pub(crate) checkpoint: u64,
    pub(crate) rows: u64,
    pub(crate) columns: Vec<String>,
}

impl Record {
    pub(crate) fn staged(&self) -> Result<Staged> {
        Ok(Staged(serde_json::to_value(self).map_err(|e| Error::internal(e.to_string()))?))
    }

    /// Refuses what another sink has staged.
    pub(crate) fn read(staged: &Staged, sink: &str, table: &str) -> Result<Record> {
        let record: Record = serde_json::from_value(staged.0.clone()).map_err(|e| {
            Error::storage(format!("a checkpoint names output that is not of a PostgreSQL sink: {e}"))
        })?;
        if record.sink != sink || record.table != table {
            return Err(Error::storage(format!(
                "a checkpoint names rows of sink `{}` for table `{}`, and this is sink `{sink}` for table `{table}`; give it \
                 back its name and table until the job has ended",
                record.sink, record.table
            )));
        }
        Ok(record)
    }

    fn names(&self) -> Names {
        Names::new(&self.schema, &self.table, &self.sink)
    }
}

/// All records in one transaction, each unless it was committed before.
pub(crate) async fn commit(
    client: &Client,
    records: &[Record],
    part_column: Option<&str>,
) -> Result<(), Failure> {
    client.batch_execute("begin").await?;
    for record in records {
        let names = record.names();
        // Whoever takes over waits for this, or this for them.
        let enter = format!("select 1 from {} where sink = $1 for share", names.sinks);
        client.query(&enter, &[&record.sink]).await?;
        if note(client, &names, record).await? {
            show(client, &names, record, part_column).await?;
        }
    }
    Ok(client.batch_execute("commit").await?)
}

/// Whether it is new. Waits for another process that commits the same at this moment.
async fn note(client: &Client, names: &Names, record: &Record) -> Result<bool, Failure> {
    let Record { sink, part, .. } = record;
    let (generation, checkpoint) = (record.generation as i64, record.checkpoint as i64);
    let (subtask, rows) = (record.subtask as i32, record.rows as i64);
    let noted =
        client.execute(&names.note(), &[sink, part, &generation, &subtask, &checkpoint, &rows]).await?;
    Ok(noted == 1)
}

async fn show(
    client: &Client,
    names: &Names,
    record: &Record,
    part_column: Option<&str>,
) -> Result<(), Failure> {
    let gone = |found: u64| {
        Failure::from(Error::storage(format!(
            "{found} of the {} rows of part {} wait in {}: a newer generation discarded them, or somebody removed them. If no \
             newer run goes on with this job, they are lost: empty the table and start again without checkpoints",
            record.rows, record.part, names.staged
        )))
    };
    if layout::oid(client, &names.staged).await?.is_none() {
        return Err(gone(0));
    }
    client.execute(&names.show(&record.columns, part_column), &[&record.part]).await?;
    let cleared = client.execute(&names.clear(), &[&record.part]).await?;
    if cleared == record.rows { Ok(()) } else { Err(gone(cleared)) }
}

/// Takes back the rows of parts that later checkpoints made visible; how many.
pub(crate) async fn withdraw(
    client: &Client,
    names: &Names,
    sink: &str,
    checkpoint: u64,
    part_column: &str,
) -> Result<u64, Failure> {
    for table in [&names.commits, &names.target] {
        if layout::oid(client, table).await?.is_none() {
            return Ok(0);
        }
    }
    let after = checkpoint as i64;
    let commits = &names.commits;
    client.batch_execute("begin").await?;
    let rows = format!(
        "delete from {} where {} in (select part from {commits} where sink = $1 and checkpoint > $2)",
        names.target,
        crate::sql::quoted(part_column)
    );
    let withdrawn = client.execute(&rows, &[&sink, &after]).await?;
    client
        .execute(&format!("delete from {commits} where sink = $1 and checkpoint > $2"), &[&sink, &after])
        .await?;
    client.batch_execute("commit").await?;
    Ok(withdrawn)
}
