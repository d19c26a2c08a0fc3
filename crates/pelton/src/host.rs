//! The embedded host: control, clients and data plane in this process, instances as child processes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pelton_call::given_up;
use pelton_client::{Client, Stats};
use pelton_control::{CallerReport, Control, JobReport, RemoteEndpointReport, RemoteReport, Survey};
use pelton_core::remote::{Remote, Url};
use pelton_core::service::{Definition, show_columns};
use pelton_core::{Declaration, Error, Result};
use pelton_dataflow::job::{self, Summary};
use pelton_dataflow::progress::Progress;
use pelton_env::Env;
use pelton_env::real::Host;
use pelton_remote::{RemoteCaller, Secret};
use tokio::sync::watch;

use crate::call::Services;
use crate::command::commands;
use crate::ending::{End, Interrupts, Listening, Wish, cancelled};
use crate::job::Settings;
use crate::reach;
use crate::region::Region;

/// How often an observer is told.
const OBSERVE_EVERY: Duration = Duration::from_millis(250);
/// How long a second Ctrl-C waits for killed processes to be gone.
const KILLING: Duration = Duration::from_secs(2);

/// A job at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub elapsed: Duration,
    pub progress: Progress,
    pub services: JobReport,
    /// What the clients have in hand, by service.
    pub clients: BTreeMap<String, Stats>,
    /// A stop was asked for.
    pub stopping: bool,
}

fn host(settings: &Settings) -> Result<Host> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Connections share their cores with what is at their other ends; each thread beyond that would be one more to wake.
    Ok(Host::new(cores.div_ceil(2).min(4), settings.threads.unwrap_or(cores))?)
}

/// Starts the services of a job and a client for each.
async fn start(
    env: &Env,
    name: &str,
    settings: &Settings,
    services: &[(Declaration, Definition)],
    graph: bool,
) -> Result<Services> {
    let ours = || services.iter().filter(|(declaration, _)| !declaration.is_remote());
    // First, because it may find something missing, and then nothing has been started.
    let remotes = start_remotes(env, services)?;
    let lineage = lineage(env, settings)?;
    // Where nothing is restored, there is nothing to be found again either, and others of the same name may call at the same time.
    let scope = if graph { lineage.clone() } else { env.entropy.secret() };
    let reaches = reach::reaches(env, &format!("{name}-{scope}"), services)?;
    let control_settings = pelton_control::Settings {
        name: name.to_owned(),
        run_base: pelton_control::rundir::base(),
        logs: settings.state.join("logs"),
        home: std::path::absolute(&settings.state)?,
        lineage,
        services: ours().map(|(declaration, _)| declaration.clone()).collect(),
        reaches: reaches.clone(),
    };
    let survey = Survey::make(env, &control_settings).await?;
    let control = Control::start(env, control_settings, survey)?;
    let clients = ours().map(|(declaration, definition)| {
        let (env, job, token) = match reaches.get(&declaration.name) {
            Some(reach) => (&reach.env, reach.job.clone(), reach.token.clone()),
            None => (env, control.job().to_owned(), control.token().to_owned()),
        };
        let client_settings = pelton_client::Settings {
            declaration: declaration.clone(),
            methods: definition.methods.clone(),
            job,
            token,
            client: "host".into(),
            epoch: control.epoch(),
        };
        let client = Client::start(env.clone(), client_settings, control.follow(&declaration.name));
        (declaration.name.clone(), client)
    });
    let clients: BTreeMap<String, Arc<Client>> = clients.collect();
    let by_name: BTreeMap<String, std::sync::Weak<Client>> =
        clients.iter().map(|(name, client)| (name.clone(), Arc::downgrade(client))).collect();
    control.set_callers(Arc::new(move |name| {
        let stats = by_name.get(name).and_then(std::sync::Weak::upgrade).map(|client| client.stats());
        stats.map_or_else(CallerReport::default, |stats| CallerReport {
            unended: stats.unended as u64,
            held: stats.held as u64,
            meter: stats.meter,
        })
    }));
    let for_report = remotes.clone();
    control.set_remotes(Arc::new(move || for_report.iter().map(|(name, r)| report(name, r)).collect()));
    let remotes = remotes.into_iter().map(|(name, remote)| (name, remote.caller)).collect();
    Ok(Services::new(env.clone(), control, clients, remotes))
}

/// Which state of the job this is: one that begins anew is another one. Instances of another one are not taken over, for what they
/// remember may be answers to other rows of the same ids.
fn lineage(env: &Env, settings: &Settings) -> Result<String> {
    let path = settings.state.join("lineage");
    if !settings.fresh
        && let Ok(known) = std::fs::read_to_string(&path)
        && !known.is_empty()
    {
        return Ok(known);
    }
    let new = env.entropy.secret();
    let draft = settings.state.join("lineage.tmp");
    std::fs::create_dir_all(&settings.state)
        .and_then(|()| std::fs::write(&draft, &new))
        .and_then(|()| std::fs::rename(&draft, &path))
        .map_err(|e| Error::from(e).context(format_args!("writing {}", path.display())))?;
    Ok(new)
}

#[derive(Clone)]
struct RemoteService {
    declared: Remote,
    caller: Arc<RemoteCaller>,
}

/// Makes a caller for each service that is not ours.
fn start_remotes(
    env: &Env,
    services: &[(Declaration, Definition)],
) -> Result<BTreeMap<String, RemoteService>> {
    let mut remotes = BTreeMap::new();
    for (declaration, definition) in services {
        let Some(declared) = declaration.remote.clone() else { continue };
        let key = match &declared.api_key_env {
            None => None,
            Some(variable) => match std::env::var(variable) {
                Ok(key) if !key.is_empty() => Some(Secret::new(key)),
                _ => {
                    return Err(Error::invalid(format!(
                        "service `{}`: the environment variable `{variable}` (remote.api_key_env) is not set; put the API key there",
                        declaration.name
                    )));
                }
            },
        };
        let caller = RemoteCaller::start(env, declaration, definition.methods.clone(), key)?;
        remotes.insert(declaration.name.clone(), RemoteService { declared, caller });
    }
    Ok(remotes)
}

fn report(name: &str, remote: &RemoteService) -> RemoteReport {
    let stats = remote.caller.stats();
    let endpoints = stats.endpoints.into_iter().map(|(url, e)| RemoteEndpointReport {
        url,
        window: e.window,
        in_flight: e.in_flight,
        answers: e.answers,
        refusals: e.refusals,
        failures: e.failures,
        ejected: e.ejected,
    });
    RemoteReport {
        name: name.to_owned(),
        protocol: remote.declared.protocol.to_string(),
        model: remote.declared.model.clone(),
        unended: stats.unended as u64,
        sent: stats.sent as u64,
        retries: stats.retries,
        endpoints: endpoints.collect(),
    }
}

/// Runs services alone.
pub(crate) fn serve<T>(
    name: &str,
    settings: &Settings,
    services: Vec<(Declaration, Definition)>,
    body: impl AsyncFnOnce(&Services) -> Result<T>,
) -> Result<T> {
    let host = host(settings)?;
    host.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let services = start(host.env(), name, settings, &services, false).await?;
        let result = tokio::select! {
            biased;
            result = body(&services) => result,
            () = interrupts.next() => Err(cancelled()),
        };
        services.stop().await;
        result
    })
}

/// Runs a whole job.
pub(crate) fn run(
    name: &str,
    settings: &Settings,
    services: Vec<(Declaration, Definition)>,
    regions: Vec<Region>,
    end: End,
    mut observe: impl FnMut(&Snapshot),
) -> Result<Summary> {
    let host = host(settings)?;
    let env = host.env().clone();
    host.block_on(async {
        let end = end.listen()?;
        let services = start(&env, name, settings, &services, true).await?;
        let result = drive(&env, &services, regions, end, &mut observe).await;
        services.stop().await;
        result
    })
}

/// Watches over a running job until it ends.
async fn drive(
    env: &Env,
    services: &Services,
    regions: Vec<Region>,
    mut end: Listening,
    observe: &mut impl FnMut(&Snapshot),
) -> Result<Summary> {
    let began = env.now();
    let (stop, stopped) = watch::channel(false);
    let channels: Vec<watch::Sender<Progress>> = regions.iter().map(|_| watch::Sender::default()).collect();
    let watched: Vec<watch::Receiver<Progress>> = channels.iter().map(watch::Sender::subscribe).collect();
    let for_status = watched.clone();
    services.control().set_progress(Arc::new(move || show_progress(&together(&for_status))));
    services.control().set_commands(commands(regions.iter().map(Region::handle).collect()));
    let mut failure = services.control().failure();
    let mut running: FuturesUnordered<_> = (regions.into_iter().zip(&channels))
        .enumerate()
        .map(|(place, (region, progress))| {
            let stopped = stopped.clone();
            async move { (place, region.run(env, services, stopped, progress).await) }
        })
        .collect();
    let mut stopping = false;
    let mut summaries: BTreeMap<usize, Summary> = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            ended = running.next() => match ended {
                Some((place, summary)) => _ = summaries.insert(place, summary?),
                None => return Ok(in_all(summaries.into_values())),
            },
            error = given_up(&mut failure) => return Err(error),
            wish = end.next() => match wish {
                Wish::Stop if !stopping => {
                    stopping = true;
                    stop.send_replace(true);
                }
                Wish::Stop => end_at_once(env, services).await,
                Wish::Cancel => {
                    services.control().kill();
                    return Err(cancelled());
                }
            },
            () = env.sleep(OBSERVE_EVERY) => {
                observe(&Snapshot {
                    elapsed: env.now().since(began),
                    progress: together(&watched),
                    services: services.report(),
                    clients: services.stats(),
                    stopping,
                });
            }
        }
    }
}

/// How far all regions are. Each is copied out before the next is looked at: a borrow within a borrow waits for ever once a writer
/// waits between them.
fn together(regions: &[watch::Receiver<Progress>]) -> Progress {
    let mut all = Progress::default();
    for region in regions {
        let Progress { nodes, checkpoint, aborted, restarts, failure } = region.borrow().clone();
        all.nodes.extend(nodes);
        all.checkpoint = checkpoint.or(all.checkpoint);
        all.aborted += aborted;
        all.restarts += restarts;
        all.failure = failure.or(all.failure);
    }
    all
}

/// What all regions did.
fn in_all(regions: impl Iterator<Item = Summary>) -> Summary {
    let both = |a: Summary, b: Summary| Summary {
        end: match (a.end, b.end) {
            (job::End::Stopped, _) | (_, job::End::Stopped) => job::End::Stopped,
            (job::End::AlreadyFinished, job::End::AlreadyFinished) => job::End::AlreadyFinished,
            _ => job::End::Finished,
        },
        nodes: [a.nodes, b.nodes].concat(),
        checkpoints: a.checkpoints + b.checkpoints,
        restored_from: a.restored_from.max(b.restored_from),
        restarts: a.restarts + b.restarts,
        changed: a.changed + b.changed,
        lost: a.lost + b.lost,
        elapsed: a.elapsed.max(b.elapsed),
    };
    regions.reduce(both).expect("a plan has a source, and so a region")
}

/// The user has asked twice. Nothing is left running: not the instances either.
async fn end_at_once(env: &Env, services: &Services) -> ! {
    services.control().kill();
    let _ = env.within(KILLING, services.control().ended()).await;
    services.control().remove_run_folder();
    eprintln!("ended at once; the same command goes on from the last checkpoint");
    std::process::exit(130)
}

fn show_progress(progress: &Progress) -> serde_json::Value {
    let nodes = progress.nodes.iter().map(|n| {
        serde_json::json!({
            "name": n.name, "rows_in": n.rows_in, "rows_out": n.rows_out, "errors": n.errors, "pending": n.pending,
            "stored_keys": n.stored_keys, "stored_bytes": n.stored_bytes,
            "splits_done": n.splits_done, "splits_total": n.splits_total,
        })
    });
    let checkpoint = progress.checkpoint.map(
        |c| serde_json::json!({ "number": c.number, "took_ms": c.took.as_millis() as u64, "bytes": c.bytes, "new": c.new }),
    );
    serde_json::json!({
        "nodes": nodes.collect::<Vec<_>>(), "checkpoint": checkpoint, "aborted": progress.aborted,
        "restarts": progress.restarts, "failure": progress.failure,
    })
}

/// A service and its resources, for people.
pub(crate) fn explain_service(declaration: &Declaration, definition: &Definition) -> String {
    if let Some(remote) = &declaration.remote {
        return explain_remote(declaration, remote, definition);
    }
    if declaration.has_endpoints() {
        return reach::explain(declaration, definition);
    }
    let Declaration { name, instances, batch, resources, retry, timeout, lease, .. } = declaration;
    let mut text = String::new();
    let program = declaration.program.join(" ");
    let made_of = if program.is_empty() { definition.type_name } else { &program };
    let kind = declaration.kind.as_deref().unwrap_or(made_of);
    let _ = writeln!(text, "  {name}: {kind}");
    let count = if instances.min == instances.max {
        instances.max.to_string()
    } else {
        format!("{}..={}", instances.min, instances.max)
    };
    let memory = resources.memory.map_or_else(String::new, |m| format!(", {m} memory"));
    let _ = writeln!(
        text,
        "    instances: {count}, each a process with {} cpu{memory}; scope: this job",
        resources.cpu
    );
    let _ = writeln!(
        text,
        "    batches: up to {} rows or {}, linger {:?}; permitted ahead: {}",
        batch.rows,
        batch.bytes,
        batch.linger,
        declaration.permits.rows.map_or_else(|| "as measured".to_owned(), |rows| format!("{rows} rows"))
    );
    let timeout = timeout.map_or_else(|| "none".to_owned(), |t| format!("{t:?}"));
    let _ = writeln!(text, "    timeout: {timeout}; attempts: {}; lease: {lease:?}", retry.attempts);
    for method in definition.methods.iter() {
        let order =
            method.concurrency.map_or("serial".to_owned(), |n| format!("up to {n} batches at a time"));
        let (input, output) = (show_columns(&method.input), show_columns(&method.output));
        let _ = writeln!(text, "    {}({input}) -> ({output}), {order}", method.name);
    }
    text
}

/// The same for servers of other people. Names where the key comes from, never the key.
fn explain_remote(declaration: &Declaration, remote: &Remote, definition: &Definition) -> String {
    let Declaration { name, batch, retry, timeout, attempt_timeout, .. } = declaration;
    let mut text = String::new();
    let urls: Vec<String> =
        remote.urls.iter().filter_map(|u| Url::parse(u).ok()).map(|u| u.to_string()).collect();
    let key = remote.api_key_env.as_ref().map_or_else(|| "none".to_owned(), |v| format!("in variable {v}"));
    let _ =
        writeln!(text, "  {name}: remote, not ours; protocol {}, model {}", remote.protocol, remote.model);
    let _ = writeln!(text, "    servers: {}; api key: {key}", urls.join(", "));
    let _ = writeln!(
        text,
        "    in flight: as many calls as answers allow, measured at each server; calls of up to {}",
        batch.bytes
    );
    let shown = |t: &Option<Duration>| t.map_or_else(|| "none".to_owned(), |t| format!("{t:?}"));
    let attempt = attempt_timeout.unwrap_or(pelton_remote::state::ATTEMPT_TIMEOUT);
    let _ = writeln!(
        text,
        "    timeout: {}; attempts: {}, each within {attempt:?}",
        shown(timeout),
        retry.attempts
    );
    let calls = pelton_remote::mapping::explain(declaration, &definition.methods).unwrap_or_default();
    for (method, call) in definition.methods.iter().zip(calls) {
        let (input, output) = (show_columns(&method.input), show_columns(&method.output));
        let _ = writeln!(text, "    {}({input}) -> ({output}), {call}", method.name);
    }
    text
}
