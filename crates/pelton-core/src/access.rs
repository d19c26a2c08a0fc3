//! Instances that somebody else started: where they are, and how one gets in.
//!
//! ```toml
//! name = "embedder"
//! endpoints = ["tls://gpu1:7000", "tls://gpu2:7000"]
//!
//! [access]
//! token_file = "secrets/token"
//! certificates = "secrets/certificates"   # as `pelton certificates` made them
//! ```

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::declaration::{Declaration, Instances};
use crate::endpoint::Address;
use crate::error::{Error, Result};
use crate::remote;

/// Most endpoints of a service.
pub const MOST_ENDPOINTS: usize = 1024;

/// Names in a folder that `pelton certificates` made.
pub const AUTHORITY: &str = "ca.pem";
pub const CLIENT: [&str; 2] = ["client.pem", "client-key.pem"];

/// How a job gets in where instances are served. Files are read when they are needed, so that renewed ones are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// The file with the token that the instances were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The environment variable with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
    /// The token itself, where a program has it from elsewhere. Never read from a file with a declaration, nor written to one.
    #[serde(skip)]
    pub token: Option<Token>,
    /// A folder as `pelton certificates` makes it: `ca.pem`, and `client.pem` with its key if they are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<PathBuf>,
    /// The certificates of the authorities that are trusted (PEM), and no others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// This side's own certificate (PEM), for instances that ask for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Lets `tcp://` leave this machine: everybody on the way reads the rows and the token.
    pub insecure: bool,
}

/// A token. It shows itself nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Access {
    /// Where the trusted authorities stand.
    pub fn authorities(&self) -> Option<PathBuf> {
        self.ca.clone().or_else(|| Some(self.certificates.as_ref()?.join(AUTHORITY)))
    }

    /// Where this side's own certificate and key stand, and whether they have to be there.
    pub fn identity(&self) -> Option<(PathBuf, PathBuf, bool)> {
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            return Some((certificate.clone(), key.clone(), true));
        }
        let folder = self.certificates.as_ref()?;
        let [certificate, key] = CLIENT.map(|name| folder.join(name));
        Some((certificate, key, false))
    }
}

impl Declaration {
    /// Whether its instances are served by others, and this job starts none.
    pub fn has_endpoints(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Where its instances are served, in the order in which they are numbered.
    pub fn addresses(&self) -> Result<Vec<Address>> {
        self.endpoints.iter().map(|text| text.parse()).collect()
    }

    /// Refuses what cannot be reached, what contradicts it, and what would be sent for all to read.
    pub(crate) fn check_endpoints(&mut self) -> Result<()> {
        let name = self.name.clone();
        let bad = |what: String| Err(Error::invalid(format!("service `{name}`: {what}")));
        if !self.has_endpoints() {
            return match self.access {
                Some(_) => {
                    bad("`[access]` is for `endpoints`, and there are none; name them, or leave it out"
                        .into())
                }
                None => Ok(()),
            };
        }
        if self.endpoints.len() > MOST_ENDPOINTS {
            return bad(format!("{} endpoints; at most {MOST_ENDPOINTS}", self.endpoints.len()));
        }
        let count = Instances::fixed(self.endpoints.len() as u32);
        if self.kind.as_deref() == Some(remote::KIND) || self.remote.is_some() {
            return bad(
                "`endpoints` are instances of Pelton, and kind `remote` is servers of others; leave one of them out".into(),
            );
        }
        if self.kind.is_some() {
            return bad(
                "`kind` is set where the instances are served, not beside `endpoints`; leave it out".into()
            );
        }
        // Set here, so that a declaration that was checked can be checked again.
        if self.instances == count {
            self.instances = Instances::default();
        }
        if let Some(field) = self.set_for_instances_only().or_else(|| self.set_where_batches_form()) {
            return bad(format!(
                "`{field}` is set where the instances are served, not beside `endpoints`; leave it out here"
            ));
        }
        self.instances = count;
        let access = self.access.clone().unwrap_or_default();
        let addresses =
            self.addresses().map_err(|e| e.context(format_args!("service `{name}`: `endpoints`")))?;
        if let Some(twice) = (addresses.iter().enumerate()).find(|(i, a)| addresses[..*i].contains(a)) {
            return bad(format!("`endpoints` has {} twice; each instance stands there once", twice.1));
        }
        let tls = addresses.iter().find(|a| matches!(a, Address::Tls(..)));
        if let Some(at) = tls.filter(|_| access.authorities().is_none()) {
            return bad(format!(
                "{at} needs `access.certificates` (a folder made by `pelton certificates`) or `access.ca`, to know whom to trust"
            ));
        }
        let trusts = access.ca.is_some() || access.certificates.is_some() || access.certificate.is_some();
        if tls.is_none() && trusts {
            return bad(
                "`[access]` names certificates, and no endpoint is `tls://`; write tls:// for tcp://".into(),
            );
        }
        if access.certificate.is_some() != access.key.is_some() {
            return bad("`access.certificate` and `access.key` belong together; name both, or none".into());
        }
        let said = [access.token_file.is_some(), access.token_env.is_some(), access.token.is_some()];
        match said.into_iter().filter(|said| *said).count() {
            0 => {
                return bad(
                    "`access.token_file` or `access.token_env` has to say where the instances' token is"
                        .into(),
                );
            }
            1 => {}
            _ => {
                return bad(
                    "`access.token_file` and `access.token_env` both say what the token is; leave one out"
                        .into(),
                );
            }
        }
        let open = |a: &&Address| !a.is_local() && !matches!(a, Address::Tls(..));
        if let Some(at) = addresses.iter().find(open).filter(|_| !access.insecure) {
            return bad(format!(
                "{at} is on another machine, and everybody on the way would read the rows and the token; write tls://, or set \
                 `access.insecure = true` if the network between is yours alone"
            ));
        }
        Ok(())
    }

    fn set_where_batches_form(&self) -> Option<&'static str> {
        let plain = Declaration::new(&self.name);
        (self.batch != plain.batch).then_some("batch")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A declaration with these lines: the message that it is refused with, or the number of its instances.
    fn read(top: &str, access: &str) -> String {
        let text = format!("name = \"a\"\n{top}\n[access]\n{access}");
        match Declaration::from_toml(&text, "test.toml").and_then(Declaration::checked) {
            Ok(d) => format!("{} instances", d.instances.initial),
            Err(e) => e.message().to_owned(),
        }
    }

    #[test]
    fn what_contradicts_endpoints_is_refused_by_name() {
        let two = "endpoints = [\"tls://gpu1:7000\", \"unix:/run/a.sock\"]";
        let whole = "token_file = \"t\"\ncertificates = \"c\"";
        for (top, access, expected) in [
            (two, whole, "2 instances"),
            (two, "token_env = \"T\"\nca = \"ca.pem\"", "2 instances"),
            (
                "endpoints = [\"tcp://127.0.0.1:1\", \"tcp://localhost:2\"]",
                "token_file = \"t\"",
                "2 instances",
            ),
            ("endpoints = [\"tcp://gpu1:1\"]", "token_file = \"t\"\ninsecure = true", "1 instances"),
            ("endpoints = [\"tcp://gpu1:1\"]", "token_file = \"t\"", "`access.insecure = true`"),
            ("endpoints = [\"tcp://127.0.0.1:1\"]", whole, "write tls://"),
            (two, "token_file = \"t\"", "`access.certificates`"),
            (two, "certificates = \"c\"", "`access.token_file`"),
            (two, "token_file = \"t\"\ntoken_env = \"T\"\ncertificates = \"c\"", "leave one out"),
            (two, "token_file = \"t\"\ncertificates = \"c\"\nkey = \"k\"", "`access.certificate`"),
            (two, "token = \"t\"", "unknown field `token`"),
            (&format!("instances = 3\n{two}"), whole, "`instances`"),
            (&format!("kind = \"scripted\"\n{two}"), whole, "`kind`"),
            (&format!("kind = \"remote\"\n{two}"), whole, "kind `remote`"),
            (&format!("lease = \"5s\"\n{two}"), whole, "`lease`"),
            (&format!("options = {{ model = \"m\" }}\n{two}"), whole, "`options`"),
            (&format!("batch = {{ rows = 3 }}\n{two}"), whole, "`batch`"),
            ("endpoints = [\"gpu1:7000\"]", whole, "`gpu1:7000` is no address"),
            ("endpoints = [\"tls://a:1\", \"tls://a:1\"]", whole, "twice"),
            ("", whole, "`[access]`"),
        ] {
            let said = read(top, access);
            assert!(said.contains(expected), "{top} / {access} gave: {said}");
        }
    }

    #[test]
    fn a_checked_declaration_passes_again() {
        let text = "name = \"a\"\nendpoints = [\"unix:/a\", \"unix:/b\"]\n[access]\ntoken_env = \"T\"";
        let checked = Declaration::from_toml(text, "t").and_then(Declaration::checked).unwrap();
        assert_eq!(checked.clone().checked(), Ok(checked));
    }
}
