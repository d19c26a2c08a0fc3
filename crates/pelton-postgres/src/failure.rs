//! What a failure of the server means, in words, with the next step, and whether the same may go well a moment later.

use std::error::Error as _;
use std::io;

use pelton_core::{Error, Fate, Kind, Retry};

/// Why work with the server ended.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Nothing about the work itself is wrong: the connection broke, or the server has no time now.
    pub(crate) passing: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, passing: false }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(e: tokio_postgres::Error) -> Self {
        let Some(said) = e.as_db_error() else {
            return Failure { error: lost(&e), passing: e.is_closed() || is_of_the_network(&e) };
        };
        let code = said.code().code();
        let mut message = said.message().to_owned();
        for (what, name) in [("column", said.column()), ("constraint", said.constraint())] {
            if let Some(name) = name.filter(|name| !message.contains(*name)) {
                message.push_str(&format!(", {what} `{name}`"));
            }
        }
        let message = format!("{message} (SQLSTATE {code}){}", next_step(code));
        Failure { error: Error::storage(message).with_fate(Fate::Refused), passing: passes(code) }
    }
}

/// The server said nothing. `e` itself says "error connecting" and no more: the reason is below it.
fn lost(e: &tokio_postgres::Error) -> Error {
    let mut message = e.to_string();
    let mut cause = e.source();
    while let Some(deeper) = cause {
        message = format!("{message}: {deeper}");
        cause = deeper.source();
    }
    Error::new(Kind::Storage, Fate::Unknown, Retry::Never, message)
}

/// A socket failed, and not what was said through it: a certificate, a setting.
fn is_of_the_network(e: &tokio_postgres::Error) -> bool {
    let mut cause = e.source();
    while let Some(deeper) = cause {
        if let Some(e) = deeper.downcast_ref::<io::Error>() {
            return !matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput);
        }
        cause = deeper.source();
    }
    false
}

pub(crate) fn too_long(limit: std::time::Duration) -> Failure {
    let message = format!(
        "the server did not answer within {} s (the sink's `timeout`): see whether it is alive, and in pg_locks who waits \
         for whom",
        limit.as_secs_f64()
    );
    Failure { error: Error::new(Kind::Storage, Fate::Unknown, Retry::Never, message), passing: true }
}

/// Shutting down, starting, out of connections, the loser of a deadlock: the same passes another time.
fn passes(code: &str) -> bool {
    matches!(code, "57P01" | "57P02" | "57P03" | "53300" | "40001" | "40P01") || code.starts_with("08")
}

fn next_step(code: &str) -> &'static str {
    match code {
        "28P01" | "28000" => {
            "; check user and password in the connection string, and pg_hba.conf; where that wants TLS, add sslmode=require"
        }
        "3D000" => "; create the database, or name another in the connection string",
        "3F000" => "; create the schema, or name another before the table",
        "42501" => {
            "; the user needs insert on the table, and create on its schema, for tables of the sink's own beside it"
        }
        "53100" => {
            "; the server's disk is full: make room and start the job again, it goes on from its last checkpoint"
        }
        "53300" => "; the sink needs a connection for each subtask and one more: raise max_connections",
        "22P03" | "22P04" => "; a value does not fit the column's type",
        _ if code.starts_with("23") => {
            "; a row breaks a rule of the table, and breaks it again at each try: filter such rows before the sink, or \
             loosen the rule, and start the job again"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_tried_again_and_nothing_else() {
        for code in ["57P01", "57P03", "08006", "40P01"] {
            assert!(passes(code), "{code}");
        }
        for code in ["23505", "42501", "28P01", "53100", "22003", "42P01"] {
            assert!(!passes(code), "{code}");
        }
    }
}
