//! The process.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{Read, Stdin};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pelton_control::{Control, Settings, Survey};
use pelton_core::declaration::Instances;
use pelton_core::endpoint::Address;
use pelton_core::{Error, Result};
use pelton_discovery::rundir;
use pelton_env::real::Host;
use pelton_env::{Connection, Env, Place};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{broadcast, watch};

use crate::order::{Order, socket};
use crate::pool::Pool;

/// Most bytes of an order: a declaration with its options, and a class in Python among them.
const LONGEST: u64 = 8 << 20;
/// How long an agent waits for one before it that is ending.
const TURN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long those who hold a pool that failed have to hear of it.
const HEARING: Duration = Duration::from_secs(1);
/// What waits for a holder that does not read.
const WAITING: usize = 1024;
/// How many instances there were, for the next agent.
const INSTANCES: &str = "instances";

/// What is said to an agent.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Said {
    Hold,
    Release,
    Tell(serde_json::Value),
}

/// Starts the agent as a process that outlives whoever started this one, with the same order on standard input.
pub fn detach() -> Result<()> {
    let program = std::env::current_exe()?;
    Command::new(program).arg("run").spawn()?;
    Ok(())
}

/// Serves the order on standard input, until nobody holds its pool any more.
pub fn run(stdin: Stdin) -> Result<()> {
    // Its own session: what ends the group or the terminal of who started it does not end it.
    let _ = rustix::process::setsid();
    let mut json = String::new();
    stdin.take(LONGEST).read_to_string(&mut json)?;
    let order: Order = serde_json::from_str(&json)
        .map_err(|e| Error::invalid(format!("no order for an agent on standard input: {e}")))?;
    let host = Host::new(1, 1)?;
    let env = host.env().clone();
    host.block_on(serve(&env, &order))
}

async fn serve(env: &Env, order: &Order) -> Result<()> {
    let base = rundir::base();
    let home = order.home(&base)?;
    rundir::make(&base)?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&home);
    made.map_err(|e| Error::from(e).context(format_args!("making {}", home.display())))?;
    let Some(_lock) = turn(env, &home).await? else {
        tracing::info!("another agent has the pool");
        return Ok(());
    };
    let before = fs::read_to_string(home.join(INSTANCES)).ok().and_then(|n| n.parse().ok());
    // Somebody wants one, or there would be no agent.
    let before: u32 = before.unwrap_or(0).max(1);
    let name = order.name()?;
    let mut declaration = order.declaration()?;
    let service = declaration.name.clone();
    declaration.instances = Instances { min: 0, max: u32::MAX, initial: before };
    let settings = Settings {
        name: name.clone(),
        run_base: base,
        logs: order.logs.clone(),
        home: home.clone(),
        lineage: name,
        services: vec![declaration],
        reaches: BTreeMap::new(),
    };
    let survey = Survey::make(env, &settings).await?;
    let control = Control::start(env, settings, survey)?;
    let at = socket(&home);
    let _ = fs::remove_file(&at);
    let mut listener = env.network.listen(&Address::Unix(at))?;
    tracing::info!("the agent {} has the pool {} with {before} instances", std::process::id(), order.pool);

    let shared = Arc::new(Shared {
        held: watch::channel(Held::default()).0,
        said: Mutex::default(),
        state: watch::channel(String::new()).0,
        news: broadcast::channel(WAITING).0,
    });
    let mut pool = Pool::new(before, order.lease(), env.now());
    let (mut held, mut changes, mut failure) =
        (shared.held.subscribe(), control.changes(), control.failure());
    let mut ending = Ending::listen()?;
    let mut released = 0;
    let failed = loop {
        let now = held.borrow_and_update().clone();
        (released..now.released).for_each(|_| pool.released());
        released = now.released;
        let wanted = pool.wanted;
        pool.held(now.holders, env.now());
        if pool.wanted != wanted {
            control.scale(&service, pool.wanted);
            let _ = fs::write(home.join(INSTANCES), pool.wanted.to_string());
        }
        if pool.wanted == 0 && now.holders == 0 {
            break None;
        }
        shared.state.send_if_modified(|state| {
            let new = state_of(&control, pool.wanted);
            *state != new && {
                *state = new;
                true
            }
        });
        tokio::select! {
            biased;
            Ok(()) = held.changed() => {}
            Ok(error) = failure.wait_for(Option::is_some) => break error.clone(),
            Ok(()) = changes.changed() => {}
            () = env.sleep_until(pool.due()) => {}
            accepted = listener.accept() => match accepted {
                Ok(connection) => {
                    let shared = shared.clone();
                    env.spawn(Place::Network, async move { shared.visit(connection).await }).detach();
                }
                Err(e) => {
                    tracing::warn!("a connection could not be accepted: {e}");
                    env.sleep(Duration::from_millis(100)).await;
                }
            },
            () = ending.next() => break None,
        }
    };
    drop(listener);
    if let Some(error) = &failed {
        tracing::error!("{error}");
        shared.state.send_replace(serde_json::json!({ "failed": error.message() }).to_string());
        let _ = env.within(HEARING, held.wait_for(|held| held.holders == 0)).await;
    }
    let _ = fs::remove_file(home.join(INSTANCES));
    control.stop().await;
    tracing::info!("the agent ends");
    failed.map_or(Ok(()), Err)
}

/// The pool is one agent's at a time. None: the one that has it serves.
async fn turn(env: &Env, home: &Path) -> Result<Option<File>> {
    let file = File::options().create(true).append(true).open(home.join("agent.lock"))?;
    let waiting = async {
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(true),
                Err(TryLockError::Error(e)) => return Err(Error::from(e)),
                Err(TryLockError::WouldBlock) => {}
            }
            if env.network.connect(&Address::Unix(socket(home))).await.is_ok() {
                return Ok(false);
            }
            env.sleep(LOOK_EVERY).await;
        }
    };
    match env.within(TURN, waiting).await {
        Some(Ok(true)) => Ok(Some(file)),
        Some(Ok(false)) => Ok(None),
        Some(Err(e)) => Err(e.context(format_args!("locking {}", home.display()))),
        None => Err(Error::internal(format!(
            "the agent before this one has {} locked, and does not end",
            home.display()
        ))),
    }
}

/// What the holders are told of the pool.
fn state_of(control: &Control, wanted: u32) -> String {
    let report = control.report();
    let instances = report.services.iter().flat_map(|s| &s.instances);
    let instances: Vec<_> = instances
        .filter(|i| i.pid.is_some())
        .map(|i| serde_json::json!({ "instance": i.instance, "phase": i.phase, "pid": i.pid }))
        .collect();
    serde_json::json!({ "state": { "wanted": wanted, "job": control.job(), "instances": instances } })
        .to_string()
}

#[derive(Clone, Debug, Default)]
struct Held {
    holders: u32,
    /// Holds that were given up for good, so far.
    released: u32,
}

struct Shared {
    held: watch::Sender<Held>,
    /// What was to be told to all who hold the pool.
    said: Mutex<Vec<String>>,
    state: watch::Sender<String>,
    news: broadcast::Sender<String>,
}

impl Shared {
    async fn visit(&self, connection: Connection) {
        let Connection { read, mut write, .. } = connection;
        let mut lines = BufReader::new(read).lines();
        let Ok(Some(first)) = lines.next_line().await else { return };
        match serde_json::from_str(&first) {
            Ok(Said::Hold) => {}
            Ok(Said::Tell(what)) => {
                let line = serde_json::json!({ "told": what }).to_string();
                self.tell(line);
                let _ = write.write_all(b"\"ok\"\n").await;
                return;
            }
            Ok(Said::Release) => return,
            Err(e) => return tracing::warn!("an agent does not know `{first:.200}`: {e}"),
        }
        self.held.send_modify(|held| held.holders += 1);
        let released = self.keep(&mut lines, &mut write).await;
        self.held.send_modify(|held| {
            held.holders -= 1;
            held.released += u32::from(released);
        });
    }

    /// Tells all who hold the pool, now or later.
    fn tell(&self, line: String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.contains(&line) {
            said.push(line.clone());
            let _ = self.news.send(line);
        }
    }

    /// Tells a holder what is new, for as long as it holds. Says whether it gives up for good.
    async fn keep<R, W>(&self, lines: &mut tokio::io::Lines<R>, write: &mut W) -> bool
    where
        R: tokio::io::AsyncBufRead + Unpin,
        W: tokio::io::AsyncWrite + Unpin,
    {
        let (before, mut news) = {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            (said.clone(), self.news.subscribe())
        };
        let mut state = self.state.subscribe();
        state.mark_changed();
        for line in before {
            if write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                return false;
            }
        }
        loop {
            let line = tokio::select! {
                biased;
                said = lines.next_line() => match said {
                    Ok(Some(line)) => match serde_json::from_str(&line) {
                        Ok(Said::Release) => return true,
                        _ => continue,
                    },
                    _ => return false,
                },
                told = news.recv() => match told {
                    Ok(line) => line,
                    // It comes back, and is told everything.
                    Err(_) => return false,
                },
                Ok(()) = state.changed() => state.borrow_and_update().clone(),
            };
            if !line.is_empty() && write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                return false;
            }
        }
    }
}

/// Somebody ends this process in good order.
struct Ending(tokio::signal::unix::Signal);

impl Ending {
    fn listen() -> Result<Ending> {
        Ok(Ending(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?))
    }

    async fn next(&mut self) {
        self.0.recv().await;
    }
}
