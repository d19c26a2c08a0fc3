//! What is to be called, and where it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pelton_core::access::{Access, Token};
use pelton_core::{Declaration, Error, Result};
use pelton_discovery::rundir;

/// How long nothing may be reachable, unless a target says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// A service that can be called from outside, and how one gets there.
#[derive(Clone, Debug)]
pub struct Target {
    pub(crate) place: Place,
    pub(crate) patience: Duration,
    /// What was said of tokens and certificates beside the place.
    access: Option<Access>,
    jobs_in: Option<PathBuf>,
    pub(crate) identity: Option<Identity>,
}

/// Whose calls these are, where somebody who is started again goes on with them.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) scope: String,
    pub(crate) client: String,
    pub(crate) epoch: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Instances that are served on their own. `learn`: what is not said is as they say.
    Served { declaration: Box<Declaration>, learn: bool },
    /// Those of a job that runs on this machine.
    Job(JobTarget),
}

#[derive(Clone, Debug)]
pub(crate) struct JobTarget {
    /// Its name, its id, or its run folder.
    pub(crate) job: String,
    pub(crate) service: String,
    /// Where the jobs are.
    pub(crate) base: PathBuf,
}

impl Target {
    /// Instances that are served on their own, by `pelton serve` or a program of yours: `tls://HOST:PORT`,
    /// `tcp://127.0.0.1:PORT` or `unix:/PATH`, one each. Say with [`token_file`](Target::token_file), [`token_env`](Target::token_env) or
    /// [`token`](Target::token) what lets one in, and for `tls://` with [`certificates`](Target::certificates) whom to trust.
    pub fn endpoints<T: Into<String>>(endpoints: impl IntoIterator<Item = T>) -> Target {
        let mut declaration = Declaration::new("service");
        declaration.endpoints = endpoints.into_iter().map(Into::into).collect();
        Target::served(declaration, true)
    }

    /// The same as a job would call them: a declaration with `endpoints` and `[access]`.
    pub fn declared(declaration: Declaration) -> Target {
        Target::served(declaration, false)
    }

    /// The same from the TOML file that a job would read (`pelton index --service embedder.toml`).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Target> {
        Ok(Target::declared(Declaration::from_file(path.as_ref())?))
    }

    /// A service of a job that runs on this machine, under this user. `job`: its name, its id (see `pelton status`), or its run folder.
    pub fn job(job: impl Into<String>, service: impl Into<String>) -> Target {
        let base = rundir::base();
        Target::at(Place::Job(JobTarget { job: job.into(), service: service.into(), base }))
    }

    fn served(declaration: Declaration, learn: bool) -> Target {
        Target::at(Place::Served { declaration: Box::new(declaration), learn })
    }

    fn at(place: Place) -> Target {
        Target { place, patience: PATIENCE, access: None, jobs_in: None, identity: None }
    }

    /// How long nothing may be reachable before calls fail: at the start, and whenever all that was there is gone. 10 s unless it is said.
    /// A service whose models take minutes to load needs more.
    pub fn patience(mut self, patience: Duration) -> Target {
        self.patience = patience;
        self
    }

    /// The file with the token that the instances are served with.
    pub fn token_file(self, file: impl Into<PathBuf>) -> Target {
        self.access(|access| access.token_file = Some(file.into()))
    }

    /// The environment variable with the token.
    pub fn token_env(self, variable: impl Into<String>) -> Target {
        self.access(|access| access.token_env = Some(variable.into()))
    }

    /// The token itself.
    pub fn token(self, token: impl Into<String>) -> Target {
        self.access(|access| access.token = Some(Token(token.into())))
    }

    /// The folder with `ca.pem`, and with `client.pem` and its key if instances ask for them, as `pelton certificates` makes it.
    pub fn certificates(self, folder: impl Into<PathBuf>) -> Target {
        self.access(|access| access.certificates = Some(folder.into()))
    }

    /// Where jobs are looked for, in place of this user's run folder.
    pub fn jobs_in(mut self, base: impl Into<PathBuf>) -> Target {
        self.jobs_in = Some(base.into());
        self
    }

    /// For a program that keeps its requests and, started again, goes on with them: the instances remember requests by `scope` and id, and
    /// attach whoever presents one of them again to what runs, or finished. `client` tells callers of one scope apart; of two with the same
    /// name the one with the higher `epoch` is heard, and the other is fenced off. Otherwise each client is a scope of its own.
    pub fn resuming(mut self, scope: impl Into<String>, client: impl Into<String>, epoch: u64) -> Target {
        self.identity = Some(Identity { scope: scope.into(), client: client.into(), epoch });
        self
    }

    fn access(mut self, set: impl FnOnce(&mut Access)) -> Target {
        set(self.access.get_or_insert_default());
        self
    }

    /// Puts together what was said, or says what does not fit.
    pub(crate) fn checked(self) -> Result<Place> {
        match (self.place, self.access, self.jobs_in) {
            (Place::Job(_), Some(_), _) => Err(Error::invalid(
                "what lets one in to a job stands in its run folder; leave token and certificates out",
            )),
            (Place::Served { .. }, _, Some(_)) => Err(Error::invalid(
                "instances that are served on their own have no run folder; leave `jobs_in` out, or name a job",
            )),
            (Place::Job(target), None, base) => {
                Ok(Place::Job(JobTarget { base: base.unwrap_or(target.base), ..target }))
            }
            (Place::Served { mut declaration, learn }, access, None) => {
                if !declaration.has_endpoints() {
                    return Err(Error::invalid(format!(
                        "the declaration of service `{}` has no `endpoints`, so that there is nothing to call: a job \
                         starts such instances; name the job and its service (Target::job, JOB/SERVICE), or say where instances are served",
                        declaration.name
                    )));
                }
                declaration.access = access.or(declaration.access);
                Ok(Place::Served { declaration: Box::new(declaration.checked()?), learn })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_by_what_to_do() {
        let plain = || Target::endpoints(["unix:/a.sock"]);
        for (target, expected) in [
            (plain().token("0123456789abcdef"), "served"),
            (plain(), "`access.token_file`"),
            (plain().token("t").token_file("f"), "leave one out"),
            (plain().token("t").certificates("c"), "write tls://"),
            (Target::endpoints(["tls://gpu1:1"]).token("t"), "`access.certificates`"),
            (Target::endpoints(["tcp://gpu1:1"]).token("t"), "`access.insecure = true`"),
            (Target::endpoints(["gpu1:1"]).token("t"), "no address"),
            (plain().token("t").jobs_in("/r"), "have no run folder"),
            (Target::declared(Declaration::new("a")), "no `endpoints`"),
            (Target::job("j", "s").jobs_in("/r"), "job"),
            (Target::job("j", "s").token_env("T"), "stands in its run folder"),
        ] {
            let shown = format!("{target:?}");
            let said = match target.checked() {
                Ok(Place::Served { .. }) => "served".to_owned(),
                Ok(Place::Job(target)) => format!("job {}", target.base.display()),
                Err(e) => e.message().to_owned(),
            };
            assert!(said.contains(expected), "{shown} gave: {said}");
        }
    }

    #[test]
    fn a_token_does_not_show_itself() {
        let target = Target::endpoints(["unix:/a.sock"]).token("0123456789abcdef");
        assert!(!format!("{target:?}").contains("0123456789"));
    }
}
