//! Kills a job, its instances, or both, at random moments, makes its data plane fail, lets all of them hang, be slow and out of reach, fills
//! the disk, and checks that nothing is lost, doubled, or wrong.

mod counted;
mod disk;
mod executions;
mod faults;
mod faulty;
pub(crate) mod job;
mod output;
mod trial;
mod whole;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use pelton::env::real::Host;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use trial::Trial;

#[derive(Args, Clone)]
pub(crate) struct Arguments {
    /// How often something is killed
    #[arg(long, default_value_t = 20)]
    pub(crate) kills: usize,
    /// How often something else goes wrong: an instance hangs, is slow, or cannot be connected to; the data plane fails; the job stands still
    #[arg(long, default_value_t = 8)]
    pub(crate) faults: usize,
    /// What is killed or goes wrong, and when, is drawn from it; by default another one each time. It is printed
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Rows to go through the job; by default enough for the job to outlast the kills
    #[arg(long)]
    pub(crate) rows: Option<u64>,
    #[arg(long, default_value_t = 2)]
    pub(crate) instances: u32,
    /// Let answers leave as they come, instead of in the order of the rows
    #[arg(long)]
    pub(crate) unordered: bool,
    /// Also stop the job now and then, as Ctrl-C does
    #[arg(long)]
    pub(crate) stop: bool,
    /// Let the disk be full now and then, too. Needs user name spaces; output and state are then in memory
    #[arg(long)]
    pub(crate) full_disk: bool,
    /// Given by the trial to itself, once it may mount
    #[arg(long, hide = true)]
    may_mount: bool,
    /// Servers of other people in place of instances: they refuse, answer with rubbish, with half an answer, late or not at all
    #[arg(long)]
    pub(crate) remote: bool,
    /// The part of requests to those servers that meet with one of these
    #[arg(long, default_value_t = 0.1)]
    pub(crate) fault_share: f64,
    /// How long the scripted service takes for a row, in microseconds
    #[arg(long, default_value_t = 500)]
    pub(crate) row_micros: u64,
    /// How long it takes for a batch, whatever its rows, in milliseconds; a quarter to one and three quarters of all that in each case
    #[arg(long, default_value_t = 5)]
    pub(crate) batch_millis: u64,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 300)]
    pub(crate) limit: u64,
}

/// What is done to the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Blow {
    /// One instance gets SIGKILL.
    Instance,
    /// The job gets SIGKILL, and is started again.
    Job,
    /// The job and all its instances get SIGKILL at once, and the job is started again.
    Host,
    /// The job gets SIGINT, ends by itself, and is started again.
    Stop,
    /// One instance stands still for a while.
    Hang,
    /// The method of one instance never returns again.
    Wedge,
    /// One instance is slow for a while.
    Slow,
    /// One instance gets SIGKILL, and nobody can connect to its successor for a while.
    Refuse,
    /// One server is gone for a while.
    Outage,
    /// An operator fails.
    DataPlane,
    /// The job stands still for a while.
    Freeze,
    /// There is no room on the disk for a while.
    FullDisk,
}

const OF_INSTANCES: [Blow; 4] = [Blow::Hang, Blow::Wedge, Blow::Slow, Blow::Refuse];
const OF_SERVERS: [Blow; 1] = [Blow::Outage];
const OF_THE_JOB: [Blow; 2] = [Blow::DataPlane, Blow::Freeze];

impl Blow {
    fn name(self) -> &'static str {
        match self {
            Blow::Instance => "instances",
            Blow::Job => "jobs",
            Blow::Host => "hosts",
            Blow::Stop => "stops",
            Blow::Hang => "hung",
            Blow::Wedge => "wedged",
            Blow::Slow => "slow",
            Blow::Refuse => "refused",
            Blow::Outage => "outages",
            Blow::DataPlane => "data-planes",
            Blow::Freeze => "frozen",
            Blow::FullDisk => "full-disks",
        }
    }
}

/// Most of what passes between a start or blow and the next blow.
const LONGEST_PAUSE: Duration = Duration::from_millis(1400);

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.full_disk && !arguments.may_mount {
        return disk::begin_again("--may-mount");
    }
    let kills = if arguments.remote { &[Blow::Job][..] } else { &[Blow::Instance, Blow::Job, Blow::Host] };
    let stops = arguments.stop.then_some(Blow::Stop);
    let kinds: Vec<Blow> = kills.iter().copied().chain(stops).collect();
    let faults = if arguments.remote { &OF_SERVERS[..] } else { &OF_INSTANCES };
    let full = arguments.full_disk.then_some(Blow::FullDisk);
    let faults: Vec<Blow> = full.into_iter().chain(OF_THE_JOB).chain(faults.iter().copied()).collect();
    ensure!((0.0..1.0).contains(&arguments.fault_share), "--fault-share must be at least 0 and below 1");
    ensure!(
        arguments.kills >= kinds.len(),
        "--kills must be at least {}, for each kind to occur",
        kinds.len()
    );
    ensure!(arguments.instances >= 1, "--instances must be at least 1");
    let host = Host::new(1, 1).context("starting threads")?;
    let seed = arguments.seed.unwrap_or_else(|| host.env().entropy.seed() % 1_000_000);
    let mut rng = StdRng::seed_from_u64(seed);
    let kills = (0..arguments.kills).map(|i| kinds[i % kinds.len()]);
    let faults = (0..arguments.faults).map(|i| faults[i % faults.len()]);
    let mut blows: Vec<Blow> = kills.chain(faults).collect();
    blows.shuffle(&mut rng);
    let rows = arguments.rows.unwrap_or_else(|| enough(arguments));
    let order = if arguments.unordered { "unordered" } else { "ordered" };
    let what = match arguments.remote {
        true => format!("servers that fail {} of requests", arguments.fault_share),
        false => format!("{} instances", arguments.instances),
    };
    println!(
        "chaos: --seed {seed}, {rows} rows, {what}, {order}, {} kills, {} other faults",
        arguments.kills, arguments.faults
    );
    let limit = Duration::from_secs(arguments.limit);
    let env = host.env().clone();
    let ended = host.block_on(async {
        let mut trial = Trial::begin(&env, arguments, rows, seed)?;
        let finished = env.within(limit, trial_of(&mut trial, &blows, &mut rng)).await;
        let finished = finished.unwrap_or_else(|| bail!("not done after {limit:?} (--limit)"));
        if finished.is_err() {
            trial.keep();
        }
        finished
    });
    ended.with_context(|| format!("chaos with --seed {seed}"))
}

async fn trial_of(trial: &mut Trial, blows: &[Blow], rng: &mut StdRng) -> Result<()> {
    for (i, blow) in blows.iter().enumerate() {
        trial.start()?;
        trial.pause(LONGEST_PAUSE.mul_f64(rng.random_range(0.05..1.0))).await?;
        let what = match blow {
            Blow::Instance => trial.kill_instance(rng).await,
            Blow::Job => trial.kill_job().await,
            Blow::Host => trial.kill_host().await,
            Blow::Stop => trial.stop_job().await,
            Blow::Hang => trial.hang_instance(rng).await,
            Blow::Wedge => trial.wedge_instance(rng).await,
            Blow::Slow => trial.slow_instance(rng).await,
            Blow::Outage => trial.outage(rng).await,
            Blow::Refuse => trial.refuse_connections(rng).await,
            Blow::DataPlane => trial.fail_data_plane().await,
            Blow::Freeze => trial.freeze_job(rng).await,
            Blow::FullDisk => trial.fill_disk(rng).await,
        };
        let what = what?;
        trial.look()?;
        trial.say(&format!("{:>3}/{} {what}", i + 1, blows.len()));
    }
    trial.start()?;
    trial.finish().await?;
    trial.judge(blows)
}

/// Rows that take longer than the kills and faults; the mean pause is half of the longest, and a fault takes a while itself.
fn enough(arguments: &Arguments) -> u64 {
    let batch =
        Duration::from_millis(arguments.batch_millis) + 32 * Duration::from_micros(arguments.row_micros);
    let a_second = match arguments.remote {
        true => faulty::RATE,
        false => 32.0 / batch.as_secs_f64() * f64::from(arguments.instances),
    };
    (a_second
        * LONGEST_PAUSE.as_secs_f64()
        * (4.0 + 0.65 * arguments.kills as f64 + 1.5 * arguments.faults as f64)) as u64
}
