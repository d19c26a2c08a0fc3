//! What the catalog says of a table, and the tables that the sink keeps beside it.

use tokio_postgres::Client;

use crate::columns::{Column, Found};
use crate::failure::Failure;
use crate::settings::Settings;
use crate::sql::{GENERATION, Names, PART};
use pelton_core::Error;

/// The target and its columns.
pub(crate) struct Target {
    pub(crate) names: Names,
    /// None: there is no such table.
    pub(crate) columns: Option<Vec<Found>>,
}

/// Looks the target up, where the server would find it.
pub(crate) async fn look(client: &Client, settings: &Settings) -> Result<Target, Failure> {
    let (schema, table) = settings.table();
    let full = match schema {
        Some(schema) => format!("{}.{}", crate::sql::quoted(schema), crate::sql::quoted(table)),
        None => crate::sql::quoted(table),
    };
    let found = client
        .query_opt(
            "select n.nspname::text, c.relkind::text, c.oid::bigint from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.oid = to_regclass($1)",
            &[&full],
        )
        .await?;
    let Some(row) = found else {
        let schema = match schema {
            Some(schema) => schema.to_owned(),
            None => client
                .query_one("select current_schema()::text", &[])
                .await?
                .get::<_, Option<String>>(0)
                .ok_or_else(|| Error::invalid("no schema of the search path exists; write SCHEMA.TABLE"))?,
        };
        return Ok(Target { names: Names::new(&schema, table, &settings.name), columns: None });
    };
    let kind: String = row.get(1);
    if !["r", "p"].contains(&kind.as_str()) {
        return Err(Error::invalid("it is not a table (a view, say); name a table").into());
    }
    let names = Names::new(row.get(0), table, &settings.name);
    let columns = columns(client, row.get(2)).await?;
    Ok(Target { names, columns: Some(columns) })
}

async fn columns(client: &Client, table: i64) -> Result<Vec<Found>, Failure> {
    let rows = client
        .query(
            "select a.attname::text, t.typname::text, t.typelem::bigint, format_type(a.atttypid, a.atttypmod), \
             a.attnotnull, a.atthasdef or a.attidentity <> '', a.attgenerated <> '' or a.attidentity = 'a' \
             from pg_attribute a join pg_type t on t.oid = a.atttypid \
             where a.attrelid::bigint = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum",
            &[&table],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Found {
            name: row.get(0),
            kind: row.get(1),
            element: row.get::<_, i64>(2) as u32,
            sql: row.get(3),
            required: row.get(4),
            filled: row.get(5),
            computed: row.get(6),
        })
        .collect())
}

/// The oid of a table that is named in full, if it exists.
pub(crate) async fn oid(client: &Client, full: &str) -> Result<Option<i64>, Failure> {
    Ok(client.query_one("select to_regclass($1)::oid::bigint", &[&full]).await?.get(0))
}

/// One sink at a time makes tables; until the end of the transaction.
pub(crate) async fn alone(client: &Client, names: &Names) -> Result<(), Failure> {
    client.query("select pg_advisory_xact_lock($1)", &[&names.lock()]).await?;
    Ok(())
}

/// Makes the table for rows that wait, or makes it anew if the columns have changed.
pub(crate) async fn make_staged(
    client: &Client,
    names: &Names,
    target: &[Found],
    columns: &[Column],
) -> Result<(), Failure> {
    let wanted: Vec<(String, String, bool)> = columns
        .iter()
        .filter_map(|c| target.iter().find(|f| f.name == c.name))
        .map(|f| (f.name.clone(), f.sql.clone(), f.required))
        .collect();
    client.batch_execute("begin").await?;
    alone(client, names).await?;
    if let Some(oid) = oid(client, &names.staged).await? {
        let there = self::columns(client, oid).await?;
        let own = |f: &&Found| f.name != PART && f.name != GENERATION;
        let there: Vec<_> =
            there.iter().filter(own).map(|f| (f.name.clone(), f.sql.clone(), f.required)).collect();
        if there == wanted {
            return Ok(client.batch_execute("commit").await?);
        }
        let full = format!("select exists (select from {})", names.staged);
        if client.query_one(&full, &[]).await?.get(0) {
            return Err(Error::invalid(format!(
                "rows with other columns wait in {}: another sink has the same name; give this one a name of its own",
                names.staged
            ))
            .into());
        }
        client.batch_execute(&format!("drop table {}", names.staged)).await?;
    }
    client.batch_execute(&names.make_staged(&wanted)).await?;
    Ok(client.batch_execute("commit").await?)
}
