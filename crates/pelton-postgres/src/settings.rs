//! What a sink is told: where the server is, which table, and how it may treat it.

use std::fmt;
use std::time::Duration;

use pelton_core::{Error, Result};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use crate::sql;
use crate::tls::Tls;

/// How a server is reached. It may hold a password, so it shows itself nowhere.
#[derive(Clone)]
pub struct Connection {
    config: Config,
    /// None: no TLS.
    tls: Option<Tls>,
}

impl Connection {
    /// `postgresql://USER:PASSWORD@HOST:PORT/DATABASE` or `host=.. port=.. user=.. password=.. dbname=..`. Several hosts are tried in
    /// turn. With `sslmode=require` connections are encrypted, and the server's certificate has to be for its name and of an
    /// authority that this machine trusts; without, and with `prefer`, they are not encrypted.
    pub fn new(text: &str) -> Result<Connection> {
        Connection::with(text, None)
    }

    /// The same with TLS, trusting the authorities of these PEM certificates and no others.
    pub fn trusting(text: &str, authorities: &[u8]) -> Result<Connection> {
        Connection::with(text, Some(authorities))
    }

    fn with(text: &str, authorities: Option<&[u8]>) -> Result<Connection> {
        // All that is encrypted here is verified in full.
        let text = text
            .replace("sslmode=verify-full", "sslmode=require")
            .replace("sslmode=verify-ca", "sslmode=require");
        // The parser's own words may repeat a part of the password.
        let mut config: Config = text.parse().map_err(|_| {
            Error::invalid(
                "the connection string of PostgreSQL cannot be read (it is not shown, for it may hold a password); write \
                 postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %-escapes for special characters, or \
                 host=HOST port=PORT user=USER password='PASSWORD' dbname=DATABASE",
            )
        })?;
        let tls = match authorities {
            None if config.get_ssl_mode() != SslMode::Require => None,
            authorities => Some(Tls::new(authorities)?),
        };
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(Error::invalid("the connection string of PostgreSQL names no host; add host=HOST"));
        }
        if config.get_application_name().is_none() {
            config.application_name("pelton");
        }
        // A machine that is gone is noticed.
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(10));
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(Duration::from_secs(30));
        }
        config.keepalives_idle(config.get_keepalives_idle().min(Duration::from_secs(30)));
        Ok(Connection { config, tls })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// `HOST:PORT/DATABASE`: neither user nor password.
    pub(crate) fn describe(&self) -> String {
        let named: Vec<String> = self
            .config
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let addresses = || self.config.get_hostaddrs().iter().map(ToString::to_string).collect();
        let hosts: Vec<String> = if named.is_empty() { addresses() } else { named };
        let ports = self.config.get_ports();
        let port = |i: usize| ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        let hosts: Vec<String> = hosts.iter().enumerate().map(|(i, h)| format!("{h}:{}", port(i))).collect();
        match self.config.get_dbname() {
            Some(database) => format!("{}/{database}", hosts.join(",")),
            None => hosts.join(","),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.describe())
    }
}

/// A sink's settings. Data, with a default for all but where to write.
#[derive(Clone, Debug)]
pub struct Settings {
    pub connection: Connection,
    /// `TABLE` or `SCHEMA.TABLE`, spelled as it is in the catalog. It needs every column of the stream, by name.
    pub table: String,
    /// What tells this sink from others in the same schema: lower-case letters, digits and `_`, 40 at most. Each sink of each
    /// job has its own. The table's name, if that is such a name.
    pub name: String,
    /// Makes the table if it does not exist. No.
    pub create: bool,
    /// A text column of the table that gets the part each row came with: going back to an earlier checkpoint can then withdraw rows.
    /// None: it cannot, and rows that come again are there twice.
    pub part_column: Option<String>,
    /// How long a commit goes on trying to reach a server that does not answer or restarts. 30 s.
    pub patience: Duration,
    /// The longest that one exchange with the server may take, waiting for locks included. 10 minutes.
    pub timeout: Duration,
}

impl Settings {
    pub fn new(connection: Connection, table: impl Into<String>) -> Self {
        let table = table.into();
        let name = table.to_lowercase().replace('.', "_");
        Settings {
            connection,
            table,
            name,
            create: false,
            part_column: None,
            patience: Duration::from_secs(30),
            timeout: Duration::from_secs(600),
        }
    }

    pub fn with_name(self, name: impl Into<String>) -> Self {
        Settings { name: name.into(), ..self }
    }

    pub fn create(self) -> Self {
        Settings { create: true, ..self }
    }

    pub fn with_part_column(self, column: impl Into<String>) -> Self {
        Settings { part_column: Some(column.into()), ..self }
    }

    pub(crate) fn checked(self) -> Result<Settings> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.name.is_empty() || self.name.len() > 40 || !self.name.chars().all(plain) {
            return Err(Error::invalid(format!(
                "sink name `{}` for table `{}`: give it a name of lower-case letters, digits and `_`, 40 at most",
                self.name, self.table
            )));
        }
        let parts: Vec<&str> = self.table.split('.').collect();
        if parts.len() > 2 {
            return Err(Error::invalid(format!(
                "table `{}`: write TABLE or SCHEMA.TABLE; names with a dot in them are not supported",
                self.table
            )));
        }
        for name in parts.into_iter().chain(self.part_column.as_deref()) {
            sql::check_name(name).map_err(|e| e.context(format!("table `{}`", self.table)))?;
        }
        Ok(self)
    }

    /// Schema, if it was given, and table.
    pub(crate) fn table(&self) -> (Option<&str>, &str) {
        match self.table.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (None, &self.table),
        }
    }

    pub(crate) fn describe(&self) -> String {
        format!("PostgreSQL table {} at {} (sink {})", self.table, self.connection.describe(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_shows_nowhere() {
        for text in [
            "postgresql://me:pass%20word@db.example:6543/shop",
            "host=db.example port=6543 user=me password='pass word' dbname=shop",
        ] {
            let settings = Settings::new(Connection::new(text).unwrap(), "orders");
            let shown = format!("{settings:?} {}", settings.describe());
            assert!(shown.contains("db.example:6543/shop"), "{shown}");
            assert!(!shown.contains("pass word") && !shown.contains("pass%20word"), "{shown}");
        }
        for text in [
            "host=h password=se cret",
            "postgresql://me:se cret@h:port/x",
            "postgresql://me:secret@h/x?secret=cret",
        ] {
            let error = Connection::new(text).unwrap_err().to_string();
            assert!(!error.contains("cret") && error.contains("%-escapes"), "{error}");
        }
    }

    #[test]
    fn tls_is_used_where_it_is_asked_for() {
        for (mode, encrypted) in [
            ("require", true),
            ("verify-full", true),
            ("verify-ca", true),
            ("prefer", false),
            ("disable", false),
        ] {
            // Where this machine trusts nobody, there is nothing to encrypt with.
            match Connection::new(&format!("postgresql://h/d?sslmode={mode}")) {
                Ok(connection) => assert_eq!(connection.tls().is_some(), encrypted, "{mode}"),
                Err(e) => assert!(encrypted && e.to_string().contains("Connection::trusting"), "{mode}: {e}"),
            }
        }
        let nothing = Connection::trusting("host=h", b"not a certificate").unwrap_err().to_string();
        assert!(nothing.contains("no certificates of authorities"), "{nothing}");
        assert!(Connection::new("user=x").unwrap_err().to_string().contains("names no host"));
    }

    #[test]
    fn names_are_checked() {
        let settings = |table: &str| Settings::new(Connection::new("host=h").unwrap(), table);
        for table in ["orders", "shop.orders", "Mixed"] {
            settings(table).checked().unwrap();
        }
        assert_eq!(settings("shop.Orders").name, "shop_orders");
        for (table, part) in
            [("a.b.c", "SCHEMA.TABLE"), ("", "sink name"), ("a b", "sink name"), (".a", "empty")]
        {
            let error = settings(table).checked().unwrap_err().to_string();
            assert!(error.contains(part), "{table}: {error}");
        }
        settings("a b").with_name("a_b").checked().unwrap();
        let long = settings("t").with_part_column("x".repeat(64)).checked().unwrap_err().to_string();
        assert!(long.contains("63 bytes"), "{long}");
    }
}
