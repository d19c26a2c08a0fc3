//! The sink.

use std::sync::{Arc, Mutex, PoisonError};

use arrow_schema::{Schema, SchemaRef};
use pelton_core::{Error, Result};
use pelton_dataflow::sink::{Guarantee, Sink, Staged, Writer};

use crate::columns::{self, Column};
use crate::failure::Failure;
use crate::layout;
use crate::link::{Link, Session};
use crate::moving::{self, Record};
use crate::settings::Settings;
use crate::sql::Names;
use crate::starting;
use crate::writing::TableWriter;

/// How long a start waits for a server that is just coming up.
const AT_START: std::time::Duration = std::time::Duration::from_secs(5);

/// A table that receives rows, exactly once: all rows of a checkpoint at the same moment, when it is complete.
///
/// The sink keeps tables beside the target: `pelton_staged_NAME` (rows that wait), `pelton_sinks` (the newest generation) and
/// `pelton_commits` (a row for each subtask and checkpoint with rows, kept for good: what makes a commit safe to repeat). The user needs
/// `insert` on the target and `create` on its schema.
///
/// A job that goes back to an earlier checkpoint can withdraw rows only with [`Settings::part_column`]; without, it has them
/// twice.
pub struct Postgres {
    settings: Settings,
    link: Arc<Link>,
    /// The columns of the last check: so that a start can already refuse a table.
    input: Mutex<Option<Schema>>,
    /// The connection of the last commit.
    idle: Mutex<Option<Session>>,
}

impl Postgres {
    /// Connects to nothing yet.
    pub fn new(settings: Settings) -> Result<Postgres> {
        let settings = settings.checked()?;
        let link = Arc::new(Link::new(settings.clone()));
        Ok(Postgres { settings, link, input: Mutex::default(), idle: Mutex::default() })
    }

    fn records(&self, staged: &[Staged]) -> Result<Vec<Record>> {
        let (name, table) = (&self.settings.name, self.settings.table().1);
        staged.iter().map(|s| Record::read(s, name, table)).collect()
    }

    fn take_idle(&self) -> Option<Session> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put_idle(&self, session: Session) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }
}

impl Sink for Postgres {
    fn describe(&self) -> String {
        self.settings.describe()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn check(&self, input: &Schema) -> Result<()> {
        columns::check(input, self.settings.part_column.as_deref())
            .map_err(|e| e.context(self.describe()))?;
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = Some(input.clone());
        Ok(())
    }

    fn start(&self, generation: u64, recorded: &[Staged]) -> Result<()> {
        let recorded: Vec<String> = self.records(recorded)?.into_iter().map(|r| r.part).collect();
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let settings = self.settings.clone();
        let ((), session) = self.link.persist(self.take_idle(), AT_START, move |session| {
            let (settings, recorded, input) = (settings.clone(), recorded.clone(), input.clone());
            async move {
                let target = layout::look(&session.client, &settings).await?;
                if let Some(input) = &input {
                    fit(&session, &settings, input).await?;
                } else if target.columns.is_none() && !settings.create {
                    return Err(missing(None, &settings).into());
                }
                starting::take_over(&session.client, &target, &settings.name, generation, &recorded).await
            }
        })?;
        self.put_idle(session);
        Ok(())
    }

    fn rewind(&self, checkpoint: u64) -> Result<()> {
        let Some(column) = self.settings.part_column.clone() else {
            tracing::warn!(
                "{} cannot withdraw rows, for it has no part column: those that come again are there twice",
                self.describe()
            );
            return Ok(());
        };
        let settings = self.settings.clone();
        let (withdrawn, session) = self.link.persist(self.take_idle(), AT_START, move |session| {
            let (settings, column) = (settings.clone(), column.clone());
            async move {
                let names = layout::look(&session.client, &settings).await?.names;
                moving::withdraw(&session.client, &names, &settings.name, checkpoint, &column).await
            }
        })?;
        self.put_idle(session);
        tracing::debug!(withdrawn, checkpoint, "rows of later checkpoints");
        Ok(())
    }

    fn writer(&self, subtask: u32, generation: u64, schema: SchemaRef) -> Result<Box<dyn Writer>> {
        self.check(&schema)?;
        let (settings, input) = (self.settings.clone(), schema.clone());
        let ((names, columns), session) = self.link.persist(None, AT_START, move |session| {
            let (settings, input) = (settings.clone(), input.clone());
            async move { fit_and_stage(&session, &settings, &input).await }
        })?;
        let (link, settings) = (self.link.clone(), self.settings.clone());
        let idle = Some(session);
        Ok(Box::new(TableWriter {
            link,
            settings,
            names,
            columns,
            schema,
            subtask,
            generation,
            idle,
            open: None,
        }))
    }

    fn commit(&self, staged: &[Staged]) -> Result<()> {
        if staged.is_empty() {
            return Ok(());
        }
        let records = Arc::new(self.records(staged)?);
        let column = self.settings.part_column.clone();
        let ((), session) = self.link.persist(self.take_idle(), self.settings.patience, move |session| {
            let (records, column) = (records.clone(), column.clone());
            async move { moving::commit(&session.client, &records, column.as_deref()).await }
        })?;
        self.put_idle(session);
        Ok(())
    }
}

/// Makes the table if it is to be made; refuses one that cannot take the rows.
async fn fit(
    session: &Session,
    settings: &Settings,
    input: &Schema,
) -> Result<(layout::Target, Vec<Column>), Failure> {
    let part_column = settings.part_column.as_deref();
    let mut target = layout::look(&session.client, settings).await?;
    if target.columns.is_none() {
        if !settings.create {
            return Err(missing(Some(input), settings).into());
        }
        let names = &target.names;
        session.client.batch_execute("begin").await?;
        layout::alone(&session.client, names).await?;
        let make = format!(
            "create table if not exists {} ({})",
            names.target,
            columns::declaration(input, part_column)
        );
        session.client.batch_execute(&format!("{make}; commit")).await?;
        target = layout::look(&session.client, settings).await?;
    }
    let found =
        target.columns.as_ref().ok_or_else(|| Error::storage("the table vanished as soon as it was made"))?;
    let columns = columns::fit(input, found, part_column)?;
    Ok((target, columns))
}

async fn fit_and_stage(
    session: &Session,
    settings: &Settings,
    input: &Schema,
) -> Result<(Names, Vec<Column>), Failure> {
    let (target, columns) = fit(session, settings, input).await?;
    let found = target.columns.as_deref().unwrap_or_default();
    layout::make_staged(&session.client, &target.names, found, &columns).await?;
    Ok((target.names, columns))
}

fn missing(input: Option<&Schema>, settings: &Settings) -> Error {
    let columns = match input {
        Some(input) => columns::declaration(input, settings.part_column.as_deref()),
        None => "..".to_owned(),
    };
    Error::invalid(format!(
        "there is no such table; make it (create table {} ({columns})), or let the sink make it (`create`)",
        settings.table
    ))
}
