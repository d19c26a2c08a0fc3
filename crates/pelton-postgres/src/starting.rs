//! A generation takes over: the fence is raised, and what nobody will commit any more is discarded.

use pelton_core::{Error, Fate, Kind, Retry};
use tokio_postgres::Client;

use crate::failure::Failure;
use crate::layout::{self, Target};
use crate::sql::Names;

/// In one transaction, which writers and commits of older generations come before or after, and never in between.
pub(crate) async fn take_over(
    client: &Client,
    target: &Target,
    sink: &str,
    generation: u64,
    recorded: &[String],
) -> Result<(), Failure> {
    let names = &target.names;
    client.batch_execute("begin").await?;
    layout::alone(client, names).await?;
    // Whoever may not make tables may use those that somebody made.
    for table in [&names.sinks, &names.commits] {
        if layout::oid(client, table).await?.is_none() {
            client.batch_execute(&names.make_bookkeeping()).await?;
        }
    }
    let own = generation as i64;
    raise(client, names, sink, own).await?;
    refuse_other_run(client, names, sink, own).await?;
    if layout::oid(client, &names.staged).await?.is_some() {
        let discarded = client.execute(&names.discard(), &[&own, &recorded]).await?;
        if discarded > 0 {
            tracing::debug!(sink, discarded, "rows of older generations that no checkpoint recorded");
        }
    }
    Ok(client.batch_execute("commit").await?)
}

async fn raise(client: &Client, names: &Names, sink: &str, own: i64) -> Result<(), Failure> {
    let enter =
        format!("insert into {} (sink, generation) values ($1, $2) on conflict do nothing", names.sinks);
    client.execute(&enter, &[&sink, &own]).await?;
    let newest = format!("select generation from {} where sink = $1 for update", names.sinks);
    let newest: i64 = client.query_one(&newest, &[&sink]).await?.get(0);
    if newest > own {
        return Err(Error::invalid(format!(
            "generation {newest} has written as sink `{sink}`, and this is generation {own}: another job writes under this name, \
             or this job's state folder was emptied. Give the sink a name of its own, or forget the earlier runs: \
             delete from {sinks} where sink = '{sink}'; delete from {commits} where sink = '{sink}'",
            sinks = names.sinks,
            commits = names.commits,
        ))
        .into());
    }
    let raise = format!("update {} set generation = $2 where sink = $1", names.sinks);
    client.execute(&raise, &[&sink, &own]).await?;
    Ok(())
}

async fn refuse_other_run(client: &Client, names: &Names, sink: &str, own: i64) -> Result<(), Failure> {
    let other = format!("select part from {} where sink = $1 and generation >= $2 limit 1", names.commits);
    let Some(other) = client.query_opt(&other, &[&sink, &own]).await? else { return Ok(()) };
    let part: String = other.get(0);
    Err(Error::invalid(format!(
        "part {part} was committed as sink `{sink}` by another run; give the sink a name of its own, or forget that run: \
         delete from {commits} where sink = '{sink}'",
        commits = names.commits,
    ))
    .into())
}

/// Says no if a newer generation has taken over. Nothing does so before the end of this transaction.
pub(crate) async fn hold_fence(client: &Client, names: &Names, sink: &str, own: u64) -> Result<(), Failure> {
    let newest = format!("select generation from {} where sink = $1 for share", names.sinks);
    let newest: Option<i64> = client.query_opt(&newest, &[&sink]).await?.map(|row| row.get(0));
    match newest {
        Some(newest) if newest <= own as i64 => Ok(()),
        Some(newest) => {
            let message =
                format!("this job (generation {own}) was replaced by generation {newest} as sink `{sink}`; it writes no more");
            Err(Error::new(Kind::Denied, Fate::Refused, Retry::Never, message).into())
        }
        None => Err(Error::storage(format!(
            "the row of sink `{sink}` in {} is gone: somebody removed it under a running job; start the job again",
            names.sinks
        ))
        .into()),
    }
}
