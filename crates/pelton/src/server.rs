//! Instances that are served on their own, outside of any job: they live until they are told to leave, and jobs call them by their address.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use pelton_call::access::{token_in, token_named};
use pelton_core::endpoint::Address;
use pelton_core::id::InstanceId;
use pelton_core::service::{Definition, Service};
use pelton_core::{Declaration, Error, Result, access};
use pelton_env::real::Host;
use pelton_env::{Env, Guard};
use pelton_instance::Standing;
use pelton_tls::{Gate, certificates};
use pelton_wire::Bootstrap;
use tokio::sync::watch;

use crate::ending::Interrupts;
use crate::job::{check_definition, resolve};

/// Who may call, and how. Data, with a default for each but the token's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// The file with the token that callers have to show. If there is none, a token is made and put there, for its owner alone.
    pub token_file: Option<PathBuf>,
    /// The environment variable with it, in place of a file.
    pub token_env: Option<String>,
    /// TLS, with the certificates in this folder (see [`certificates`]): `NAME.pem` and `NAME-key.pem`, and `ca.pem` if callers are to show
    /// a certificate of theirs.
    pub certificates: Option<PathBuf>,
    /// The `NAME` of the certificate in it. Empty: `server`.
    pub name: String,
    /// Callers have to show a certificate of the same authority.
    pub require_certificate: bool,
    /// Lets an address that other machines can reach do without TLS: everybody on the way reads the rows and the token.
    pub insecure: bool,
}

/// Serves one instance of a service until Ctrl-C; see [`Server`].
pub fn serve<S: Service>(declaration: Declaration, listen: &str, serving: Serving) -> Result<()> {
    let mut server = Server::new(serving);
    server.service::<S>(declaration, listen)?;
    server.run()
}

/// Serves instances, each at its own address, in this process. They share its fate: start one process for each where one's crash must not be
/// the others'.
pub struct Server {
    serving: Serving,
    instances: Vec<(Declaration, Definition, Address)>,
    announce: Box<dyn FnMut(&str)>,
}

impl Server {
    pub fn new(serving: Serving) -> Self {
        Server { serving, instances: Vec::new(), announce: Box::new(|line| tracing::info!("{line}")) }
    }

    /// Who is told, line by line, what is served where. Otherwise the log is.
    pub fn announcing(mut self, announce: impl FnMut(&str) + 'static) -> Self {
        self.announce = Box::new(announce);
        self
    }

    /// Adds an instance of a service. `listen`: `HOST:PORT`, port 0 for any that is free, or `unix:/PATH`.
    pub fn service<S: Service>(&mut self, declaration: Declaration, listen: &str) -> Result<()> {
        self.service_with(declaration, Definition::of::<S>(), listen)
    }

    /// The same for a service whose methods are known only at run time.
    pub fn service_with(
        &mut self,
        declaration: Declaration,
        definition: Definition,
        listen: &str,
    ) -> Result<()> {
        let declaration = declaration.checked()?;
        if declaration.is_remote() || declaration.has_endpoints() {
            return Err(Error::invalid(format!(
                "service `{}` runs elsewhere, by its declaration, and cannot be served here; take `endpoints` or `remote` out",
                declaration.name
            )));
        }
        if !declaration.program.is_empty() {
            return Err(Error::invalid(format!(
                "service `{}` has a `program`, which a job starts for its instances, and this program would serve itself; take it out",
                declaration.name
            )));
        }
        let definition = resolve(&declaration, definition)?;
        check_definition(&declaration, &definition)?;
        let address = self.address(listen)?;
        self.instances.push((declaration, definition, address));
        Ok(())
    }

    fn address(&self, listen: &str) -> Result<Address> {
        let plain = listen.starts_with("unix:") || listen.contains("://");
        let text = if plain { listen.to_owned() } else { format!("tcp://{listen}") };
        let address: Address = match text.strip_prefix("tls://") {
            Some(rest) => format!("tcp://{rest}"),
            None => text.clone(),
        }
        .parse()?;
        if self.serving.certificates.is_some() {
            return Ok(address);
        }
        if text.starts_with("tls://") {
            return Err(Error::invalid(format!(
                "{listen} needs certificates: make them with `pelton certificates`, and name their folder (--tls)"
            )));
        }
        if !address.is_local() && !self.serving.insecure {
            return Err(Error::invalid(format!(
                "{listen} can be reached from other machines, and everybody on the way would read the rows and the token; name a folder \
                 of certificates (--tls; `pelton certificates` makes one), or say --insecure if the network is yours alone"
            )));
        }
        Ok(address)
    }

    /// Serves until Ctrl-C or SIGTERM: then what has not started is handed back, the rest finishes, and results are given out; a second one
    /// ends the process at once. An instance that cannot be opened ends all.
    pub fn run(self) -> Result<()> {
        let Server { serving, instances, mut announce } = self;
        crate::instance::log("info");
        if instances.is_empty() {
            return Err(Error::invalid("there is no service to serve; declare one"));
        }
        let host = Host::new(instances.len().min(4), 1)?;
        let env = host.env().clone();
        let token = token(&env, &serving, &mut announce)?;
        let guard = guard(&env, &serving, &mut announce)?;
        host.block_on(async {
            let mut interrupts = Interrupts::listen()?;
            let (drain, drained) = watch::channel(false);
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            let mut running: FuturesUnordered<_> = instances
                .into_iter()
                .enumerate()
                .map(|(number, (declaration, definition, address))| {
                    free(&address);
                    let name = declaration.name.clone();
                    let guarded = guard.is_some();
                    let (tell, shown) = (tell.clone(), name.clone());
                    let standing = Standing {
                        guard: guard.clone().filter(|_| !matches!(address, Address::Unix(_))),
                        drain: drained.clone(),
                        listening: Box::new(move |at| _ = tell.send(said(&shown, at, guarded))),
                    };
                    let bootstrap = bootstrap(&env, declaration, number, &token, address);
                    let env = env.clone();
                    async move {
                        let ended =
                            pelton_instance::serve_standing(env, bootstrap, definition, standing).await;
                        (name, ended)
                    }
                })
                .collect();
            let mut leaving = false;
            loop {
                tokio::select! {
                    biased;
                    Some(line) = told.recv() => announce(&line),
                    ended = running.next() => match ended {
                        Some((name, Ok(why))) => announce(&format!("service {name} has left: {why}")),
                        Some((name, Err(e))) => return Err(e.context(format_args!("service `{name}`"))),
                        None => return Ok(()),
                    },
                    () = interrupts.next() => {
                        if std::mem::replace(&mut leaving, true) {
                            announce("ended at once");
                            std::process::exit(130);
                        }
                        announce("finishing what is running; Ctrl-C again to end at once");
                        let _ = drain.send(true);
                    }
                }
            }
        })
    }
}

fn bootstrap(env: &Env, declaration: Declaration, number: usize, token: &str, address: Address) -> Bootstrap {
    // No two processes have the same one: callers tell by it that what another held is gone.
    let incarnation = (env.entropy.seed() as u32).max(1);
    let instance = InstanceId { service: declaration.name.clone(), number: number as u32, incarnation };
    let (job, config) = ("served on its own".to_owned(), String::new());
    Bootstrap { instance, job, token: token.to_owned(), address, config, declaration }
}

fn said(service: &str, at: &Address, guarded: bool) -> String {
    match at {
        Address::Unix(path) => format!("service {service} is served at unix:{}", path.display()),
        Address::Tcp(at) => {
            format!("service {service} is served at {}://{at}", if guarded { "tls" } else { "tcp" })
        }
        other => format!("service {service} is served at {other}"),
    }
}

/// A socket that a killed process left is in the way of the next one.
fn free(address: &Address) {
    if let Address::Unix(path) = address
        && let Err(e) = UnixStream::connect(path)
        && e.kind() == std::io::ErrorKind::ConnectionRefused
    {
        let _ = std::fs::remove_file(path);
    }
}

/// The token that callers have to show; made if there is none yet.
fn token(env: &Env, serving: &Serving, announce: &mut dyn FnMut(&str)) -> Result<String> {
    match (&serving.token_file, &serving.token_env) {
        (Some(_), Some(_)) => Err(Error::invalid(
            "the token is said to be in a file and in an environment variable; leave one out",
        )),
        (None, None) => Err(Error::invalid(
            "nothing says what token callers have to show: name a file with --token-file (it is made if it is not there), or \
             an environment variable with --token-env",
        )),
        (None, Some(variable)) => token_named(variable, "--token-env"),
        (Some(file), None) => {
            if make_token(env, file)? {
                announce(&format!("made a token: {} (callers need it, too)", file.display()));
            }
            token_in(file)
        }
    }
}

/// Says whether it was made. Whoever comes second, of two that start together, finds the first one's.
fn make_token(env: &Env, file: &Path) -> Result<bool> {
    if file.exists() {
        return Ok(false);
    }
    let at =
        |e: std::io::Error| Error::from(e).context(format_args!("making the token file {}", file.display()));
    let draft = file.with_extension(format!("{:016x}.tmp", env.entropy.seed()));
    let secret = format!("{}{}\n", env.entropy.secret(), env.entropy.secret());
    let put = |mut made: File| {
        made.write_all(secret.as_bytes())?;
        made.sync_all()
    };
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).and_then(put);
    let linked = made.and_then(|()| std::fs::hard_link(&draft, file));
    let _ = std::fs::remove_file(&draft);
    match linked {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        other => other.map(|()| true).map_err(at),
    }
}

fn guard(env: &Env, serving: &Serving, announce: &mut dyn FnMut(&str)) -> Result<Option<Arc<dyn Guard>>> {
    let Some(folder) = &serving.certificates else {
        if serving.require_certificate {
            return Err(Error::invalid(
                "callers can only show a certificate under TLS; name a folder of certificates (--tls)",
            ));
        }
        return Ok(None);
    };
    let name = if serving.name.is_empty() { "server" } else { serving.name.as_str() };
    let identity = certificates::server(folder, name);
    let callers = serving.require_certificate.then(|| folder.join(access::AUTHORITY));
    let shown = certificates::look_at(&identity.certificate, env.clock.unix_millis()).map_err(|e| {
        let next = "make it with `pelton certificates`, and say with --host how callers reach this machine";
        Error::invalid(format!("{}; {next}", e.message()))
    })?;
    let wanted = if callers.is_some() { ", and callers have to show one of the same authority" } else { "" };
    announce(&format!("certificate for {}, valid until {}{wanted}", shown.hosts.join(", "), shown.until));
    if shown.days < certificates::SOON_DAYS {
        announce(&format!(
            "{} ends in {} days: run `pelton certificates` again; a new one is used without a restart",
            identity.certificate.display(),
            shown.days.max(0)
        ));
    }
    Ok(Some(Arc::new(Gate::new(identity, callers, env.clock.clone())?)))
}
