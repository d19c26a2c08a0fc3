//! The scenarios: what is set up, what goes wrong, and what has to hold in the end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pelton_client::Client;
use pelton_core::call::{Acknowledge, Caller, Priority};
use pelton_core::{BoxFuture, Bytes, Declaration, Kind, RequestId};
use pelton_env::simulated::{EIO, Fault};
use pelton_wire::Frame;

use crate::faults::network::{Cut, Weather};
use crate::faults::probe::{BadStart, CALL, FLOW, Plan, STREAM};
use crate::faults::stage::{Order, Setup, Stage};
use crate::faults::world::World;

/// Virtual time in which every request of a scenario has to end.
const PATIENCE: Duration = Duration::from_secs(120);

type Play = fn(Stage) -> BoxFuture<Result<(), String>>;

/// One kind of trouble.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub(crate) setup: fn(&World, &mut Setup),
    pub(crate) play: Play,
}

macro_rules! scenarios {
    ($($name:ident, $setup:expr, $about:literal;)*) => {
        /// All scenarios.
        pub const ALL: &[Scenario] = &[$(Scenario {
            name: stringify!($name),
            about: $about,
            setup: $setup,
            play: |stage| Box::pin($name(stage)),
        }),*];
    };
}

scenarios! {
    calm, |_, _| {}, "nothing goes wrong";
    crashes, crashing, "instances are killed, and crash by themselves";
    slow, slowed, "one instance is ten times slower, links stall";
    cuts, |_, _| {}, "connections are lost, instances live: nothing runs twice";
    failures, failing, "methods fail, rows are poisoned, deadlines pass, requests are cancelled";
    shares, |_, s| s.declaration.instances = 1.into(), "two callers share one instance";
    starts, bad_starts, "instances fail to open at first, or for good";
    drains, |_, _| {}, "instances are told to hand back and leave";
    drains_and_cuts, |_, _| {}, "instances leave while connections are lost";
    leaving, |_, s| s.declaration.lease = Duration::from_millis(800), "a client goes away, then control does";
    takeover, |_, s| s.declaration.instances = 1.into(), "a client is started again with the same requests";
    restart, |_, _| {}, "the whole host is started again: instances, what they run and what they know go on";
    partition, |_, _| {}, "an instance is cut off until its requests are given up";
    small_ledger, |_, s| s.declaration.ledger.bytes = Bytes::kib(1), "the ledger is too small for what is not acknowledged";
    spill, spilling, "the ledger is as small, and goes on on disk: nothing is forgotten, and nothing runs twice";
    bad_spill, spilling, "its disk is full, fails, or gives something else back: requests run again, and are answered";
    stopping, |_, s| s.declaration = s.declaration.clone().option("open", "3s"), "control is stopped at any time";
    chaos, chaotic, "all of it";
    slow_streams, narrow, "a caller takes its streams slowly: they run ahead by their bounds, and nothing else waits";
    streams, narrow, "streams while connections are lost, instances die and callers give up";
    streams_restart, narrow, "a caller of streams is started again";
}

pub fn find(name: &str) -> Option<Scenario> {
    ALL.iter().find(|s| s.name == name).copied()
}

/// What every scenario begins with; some of it the seed decides.
pub(crate) fn setup(world: &World) -> Setup {
    let us = |least, most| format!("{}us", least + world.below(most - least));
    let mut d =
        Declaration::new("s").instances(1 + world.below(3) as u32).max_rows(1 + world.below(8) as u32);
    d.batch.linger = Duration::from_micros(world.below(3) * 700);
    d.retry.backoff = Duration::from_millis(5);
    d.retry.max_backoff = Duration::from_millis(100);
    d.retry.attempts = 100;
    d = d.option("latency", us(200, 8_000)).option("per_row", us(10, 800)).option("jitter", 0.3);
    let weather = Weather {
        latency: Duration::from_micros(20 + world.below(500)),
        jitter: Duration::from_micros(world.below(1500)),
        buffer: [600, 4096, 65536][world.below(3) as usize],
    };
    let plan = Plan { concurrency: 1 + world.below(3) as usize, ..Plan::default() };
    Setup { declaration: d, plan, weather }
}

fn crashing(world: &World, setup: &mut Setup) {
    if world.chance(0.4) {
        // Beyond the first batches that run side by side, so that each life gets something done.
        let after = 3 + setup.plan.concurrency as u64 + world.below(10);
        setup.declaration = setup.declaration.clone().option("crash_after", after);
    }
}

fn slowed(world: &World, setup: &mut Setup) {
    setup.declaration.instances = 3.into();
    setup.plan.slow = Some((world.below(3) as u32, 10));
}

fn failing(world: &World, setup: &mut Setup) {
    setup.declaration.retry.attempts = 3;
    setup.declaration = setup
        .declaration
        .clone()
        .option("failure_rate", world.share() * 0.5)
        .option("poison_rate", world.share() * 0.1);
}

fn spilling(world: &World, setup: &mut Setup) {
    setup.declaration.ledger.bytes = Bytes(40 + world.below(200));
    setup.declaration.ledger.spill = Some("/".into());
    if world.chance(0.3) {
        setup.declaration.ledger.spill_bytes = Bytes::kib(256);
    }
}

fn bad_starts(world: &World, setup: &mut Setup) {
    setup.declaration.retry.starts = 4;
    let kind = [BadStart::Fails, BadStart::Crashes, BadStart::Impossible][world.below(3) as usize];
    let n = if world.chance(0.3) { 1000 } else { 1 + world.below(3) };
    setup.plan.bad_starts = (n, kind);
}

fn chaotic(world: &World, setup: &mut Setup) {
    crashing(world, setup);
    if world.chance(0.5) {
        failing(world, setup);
    }
    if world.chance(0.3) {
        setup.declaration.ledger.bytes = Bytes::kib(1);
    }
}

/// Room for a few parts, which count for 1 KB each.
fn narrow(world: &World, setup: &mut Setup) {
    let stream = &mut setup.declaration.stream;
    stream.window = Bytes::kib(1 + world.below(5));
    stream.total = Bytes(stream.window.get() * (1 + world.below(4)));
    stream.kept = Bytes::kib(world.below(250));
    setup.plan.concurrency = 2 + world.below(4) as usize;
}

// --- parts that scenarios are made of ---

/// Streams in a few submissions, and calls beside them, of another operator.
async fn stream_some(stage: &Stage, client: &Client, requests: u64) -> Vec<RequestId> {
    let mut ids = Vec::new();
    let mut from = 0;
    while from < requests {
        let n = (1 + stage.world.below(8)).min(requests - from);
        let acknowledge = either(stage);
        let order = Order { acknowledge, ..Order::default() };
        ids.extend(stage.submit(client, Order { method: FLOW, ..order }, from..from + n));
        stage.submit(client, Order { operator: 2, method: CALL, ..order }, from..from + n);
        from += n;
        stage.sleep_ms(0, 4).await;
    }
    ids
}

/// Takes parts, now more and now fewer, until every request has ended.
async fn take_all(stage: &Stage, client: &Client) -> Result<(), String> {
    let end = stage.world.now() + PATIENCE;
    while stage.book.open() > 0 && stage.world.now() < end {
        stage.take(client, stage.world.below(20) as usize);
        stage.sleep_ms(0, 6).await;
    }
    while stage.take(client, 100) > 0 {}
    stage.all_ended(Duration::ZERO).await
}

/// A few submissions, now and a little later: both methods, all priorities.
async fn send_some(stage: &Stage, client: &Client, order: Order, requests: u64) -> Vec<RequestId> {
    let mut ids = Vec::new();
    let mut from = 0;
    while from < requests {
        let n = (1 + stage.world.below(24)).min(requests - from);
        let method = if stage.world.chance(0.25) { STREAM } else { CALL };
        let priority =
            [Priority::Interactive, Priority::Normal, Priority::Bulk][stage.world.below(3) as usize];
        ids.extend(stage.submit(client, Order { method, priority, ..order }, from..from + n));
        from += n;
        if stage.world.chance(0.6) {
            stage.sleep_ms(0, 6).await;
        }
    }
    ids
}

fn either(stage: &Stage) -> Acknowledge {
    if stage.world.chance(0.5) { Acknowledge::Explicit } else { Acknowledge::OnReceipt }
}

fn some_pid(stage: &Stage) -> Option<u32> {
    let running = stage.machine.running();
    (!running.is_empty()).then(|| running[stage.world.below(running.len() as u64) as usize].0)
}

/// Cuts client connections, some sharply, some so that the instance learns of it late.
fn cut_some(stage: &Stage) {
    let late = Duration::from_micros(stage.world.below(20_000));
    let how = if stage.world.chance(0.5) { Cut::Sharp } else { Cut::Late(late) };
    let (all, world) = (stage.world.chance(0.3), stage.world.clone());
    stage.net.cut(how, |from, _| from != "observer" && (all || world.chance(0.5)));
}

/// Ends the job in good order: it must not take long.
async fn stop(stage: &Stage) -> Result<(), String> {
    let began = stage.world.now();
    stage.take_control().stop().await;
    let took = stage.world.now().since(began);
    if took > Duration::from_secs(1) {
        return Err(format!("control took {took:?} to stop"));
    }
    if !stage.machine.running().is_empty() {
        return Err("a process runs after control has stopped".into());
    }
    Ok(())
}

fn ran_once(stage: &Stage) -> Result<(), String> {
    stage.nothing_ran_twice()?;
    let ran = stage.executions.keys();
    let asked = stage.book.ids().len();
    if ran != asked { Err(format!("{ran} of {asked} requests ran")) } else { Ok(()) }
}

// --- the scenarios ---

async fn calm(stage: Stage) -> Result<(), String> {
    let acknowledge = either(&stage);
    let client = stage.client("a", 1);
    let n = 20 + stage.world.below(150);
    let ids = send_some(&stage, &client, Order { acknowledge, ..Order::default() }, n).await;
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[])?;
    ran_once(&stage)?;
    if acknowledge == Acknowledge::Explicit {
        stage.all_idle(false).await?;
        let kept: u64 = stage.statuses().await.iter().map(|(_, s)| s.ledger_bytes).sum();
        if kept == 0 {
            return Err("results were forgotten before they were acknowledged".into());
        }
        client.acknowledge(&ids);
    }
    stage.all_idle(true).await?;
    if client.stats().retries > 0 {
        return Err(format!("{} retries", client.stats().retries));
    }
    stop(&stage).await
}

async fn crashes(stage: Stage) -> Result<(), String> {
    let client = stage.client("a", 1);
    let order = Order { acknowledge: either(&stage), ..Order::default() };
    // A stream that was given out in part cannot be tried again, so that here may be errors of lost instances.
    send_some(&stage, &client, order, 30 + stage.world.below(100)).await;
    for _ in 0..stage.world.below(6) {
        stage.sleep_ms(0, 60).await;
        if let Some(pid) = some_pid(&stage) {
            stage.machine.kill(pid);
        }
    }
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[Kind::Reset])?;
    stage.nothing_ran_twice()?;
    stage.all_idle(false).await?;
    stop(&stage).await
}

async fn slow(stage: Stage) -> Result<(), String> {
    let client = stage.client("a", 1);
    send_some(&stage, &client, Order::default(), 50 + stage.world.below(150)).await;
    for _ in 0..stage.world.below(4) {
        stage.sleep_ms(0, 100).await;
        if let Some(pid) = some_pid(&stage) {
            stage.net.stall(pid, Duration::from_millis(stage.world.below(2_000)));
        }
    }
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[])?;
    ran_once(&stage)?;
    stage.all_idle(true).await?;
    stop(&stage).await
}

async fn cuts(stage: Stage) -> Result<(), String> {
    stage.some_ready(1).await?;
    let client = stage.client("a", 1);
    let acknowledge = either(&stage);
    let ids =
        send_some(&stage, &client, Order { acknowledge, ..Order::default() }, 30 + stage.world.below(120))
            .await;
    for _ in 0..1 + stage.world.below(8) {
        stage.sleep_ms(0, 40).await;
        cut_some(&stage);
    }
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[])?;
    ran_once(&stage)?;
    client.acknowledge(&ids);
    stage.all_idle(acknowledge == Acknowledge::Explicit).await?;
    stop(&stage).await
}

async fn failures(stage: Stage) -> Result<(), String> {
    let client = stage.client("a", 1);
    for operator in 1..=4 + stage.world.below(6) as u32 {
        let timeout = stage.world.chance(0.5).then(|| Duration::from_micros(500 + stage.world.below(80_000)));
        let order = Order { operator, timeout, acknowledge: either(&stage), ..Order::default() };
        let ids = send_some(&stage, &client, order, 1 + stage.world.below(40)).await;
        if stage.world.chance(0.5) {
            stage.sleep_ms(0, 20).await;
            client.cancel(&ids[..stage.world.below(ids.len() as u64 + 1) as usize]);
        }
        if stage.world.chance(0.3) {
            // What was taken back may be asked for again.
            let order = Order { operator: 100 + operator, ..Order::default() };
            let ids = stage.submit(&client, order, 0..1 + stage.world.below(20));
            stage.sleep_ms(0, 10).await;
            client.cancel(&ids);
            stage.submit(&client, order, 0..ids.len() as u64);
        }
    }
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[Kind::User, Kind::Deadline, Kind::Cancelled])?;
    stage.book.deadlines_held()?;
    stage.all_idle(false).await?;
    stop(&stage).await
}

async fn shares(stage: Stage) -> Result<(), String> {
    stage.some_ready(1).await?;
    let clients = [stage.client("a", 1), stage.client("b", 1)];
    // Both are connected before either asks: who comes first has the first permits.
    let both = clients.clone();
    stage.until(PATIENCE, "both are connected", move || both.iter().all(|c| c.stats().ready == 1)).await?;
    for (operator, client) in (1..).zip(&clients) {
        stage.submit(client, Order { operator, ..Order::default() }, 0..200);
    }
    let book = stage.book.clone();
    stage.until(PATIENCE, "half is done", move || book.ended() >= 200).await?;
    let (a, b) = (stage.book.well(1), stage.book.well(2));
    if a.abs_diff(b) > 40 {
        return Err(format!("unfair: {a} and {b} of 200 each have ended"));
    }
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[])?;
    ran_once(&stage)?;
    stage.all_idle(true).await?;
    stop(&stage).await
}

async fn starts(stage: Stage) -> Result<(), String> {
    let client = stage.client("a", 1);
    send_some(&stage, &client, Order::default(), 20).await;
    let (n, kind) = stage.setup.plan.bad_starts;
    let hopeless = kind == BadStart::Impossible || n == 1000;
    let mut failure = stage.with_control(|c| c.failure());
    let given_up = failure.wait_for(Option::is_some);
    let env = stage.machine.env(crate::faults::world::HOST, "watcher");
    if hopeless {
        let Some(Ok(_)) = env.within(PATIENCE, given_up).await else {
            return Err("control never gave up".into());
        };
    } else {
        stage.all_ended(PATIENCE).await?;
        stage.book.only(&[])?;
        ran_once(&stage)?;
        if stage.with_control(|c| c.failure()).borrow().is_some() {
            return Err("control gave up on a service that works".into());
        }
    }
    stop(&stage).await
}

async fn drains_and_cuts(stage: Stage) -> Result<(), String> {
    let cutter = stage.clone();
    let rounds = stage.world.below(10);
    let cutting = async move {
        cutter.some_ready(1).await?;
        for _ in 0..rounds {
            cutter.sleep_ms(0, 30).await;
            let late = Duration::from_micros(cutter.world.below(10_000));
            cutter.net.cut(Cut::Late(late), |from, _| from == "a");
        }
        Ok::<(), String>(())
    };
    let (cut, drained) = futures::join!(cutting, drain(stage.clone()));
    cut.and(drained)?;
    // A result may be lost when a connection breaks while an instance says goodbye; then it is computed again, not twice at a time.
    stage.nothing_ran_twice()?;
    stop(&stage).await
}

async fn drains(stage: Stage) -> Result<(), String> {
    drain(stage.clone()).await?;
    stage.book.only(&[])?;
    // Nothing that an instance ran while it left was lost on the way.
    for id in stage.book.ids() {
        let runs = stage.executions.of(crate::faults::stage::key_of(id));
        if runs.len() != 1 {
            return Err(format!("{id} ran {} times: {runs:?}", runs.len()));
        }
    }
    stop(&stage).await
}

/// Instances are told to leave, one after another, while requests run.
async fn drain(stage: Stage) -> Result<(), String> {
    stage.some_ready(1).await?;
    let client = stage.client("a", 1);
    send_some(
        &stage,
        &client,
        Order { acknowledge: either(&stage), ..Order::default() },
        30 + stage.world.below(150),
    )
    .await;
    let mut links = Vec::new();
    for _ in 0..1 + stage.world.below(4) {
        stage.sleep_ms(0, 50).await;
        if let Some(pid) = some_pid(&stage)
            && let Some(link) = stage.supervise(pid).await
        {
            link.sender.send(Frame::Drain);
            links.push(link);
        }
    }
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[Kind::Reset])
}

async fn leaving(stage: Stage) -> Result<(), String> {
    stage.some_ready(1).await?;
    let (leaver, stayer) = (stage.client("a", 1), stage.client("b", 1));
    send_some(&stage, &leaver, Order::default(), 60).await;
    send_some(&stage, &stayer, Order { operator: 2, ..Order::default() }, 60).await;
    stage.sleep_ms(0, 40).await;
    drop(leaver);
    stage.book.forget(1);
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[])?;
    stage.nothing_ran_twice()?;
    stage.all_idle(false).await?;
    let lease = stage.setup.declaration.lease;
    drop(stage.take_control());
    let machine = stage.machine.clone();
    stage
        .until(lease + Duration::from_secs(2), "instances end with their lease", move || {
            machine.running().is_empty()
        })
        .await
}

async fn takeover(stage: Stage) -> Result<(), String> {
    stage.some_ready(1).await?;
    let order = Order { acknowledge: Acknowledge::Explicit, ..Order::default() };
    let mut old = Some(stage.client("a", 1));
    let n = 10 + stage.world.below(60);
    stage.submit(old.as_ref().expect("just made"), order, 0..n);
    stage.sleep_ms(0, 40).await;
    // The old one is gone, or does not know that it has been replaced.
    if stage.world.chance(0.5) {
        old = None;
    }
    let new = stage.client("a", 2);
    stage.book.turn_over();
    let ids = stage.submit(&new, order, 0..n);
    stage.all_ended(PATIENCE).await?;
    drop(old);
    stage.book.only(&[])?;
    ran_once(&stage)?;
    new.acknowledge(&ids);
    stage.all_idle(true).await?;
    stop(&stage).await
}

/// Client and control are gone at once, as with their process; what runs stays, and is taken up.
async fn restart(stage: Stage) -> Result<(), String> {
    if stage.world.chance(0.7) {
        stage.some_ready(1).await?;
    }
    let order = Order { acknowledge: Acknowledge::Explicit, ..Order::default() };
    let n = 10 + stage.world.below(60);
    for _ in 0..1 + stage.world.below(3) {
        let epoch = stage.with_control(|c| c.epoch());
        let client = stage.client("a", epoch);
        stage.submit(&client, order, 0..n);
        stage.sleep_ms(0, 60).await;
        drop(client);
        drop(stage.take_control());
        stage.sleep_ms(0, 300).await;
        stage.book.turn_over();
        stage.start_control().await?;
    }
    let client = stage.client("a", stage.with_control(|c| c.epoch()));
    let ids = stage.submit(&client, order, 0..n);
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[])?;
    stage.nothing_ran_twice()?;
    let started = stage.machine.started();
    if started > u64::from(stage.setup.declaration.instances.initial) {
        return Err(format!("{started} processes were started, of which none had died"));
    }
    client.acknowledge(&ids);
    stage.all_idle(true).await?;
    stop(&stage).await
}

async fn partition(stage: Stage) -> Result<(), String> {
    stage.some_ready(1).await?;
    let client = stage.client("a", 1);
    send_some(&stage, &client, Order::default(), 30 + stage.world.below(100)).await;
    for _ in 0..1 + stage.world.below(2) {
        stage.sleep_ms(0, 40).await;
        if let Some(pid) = some_pid(&stage) {
            let how_long = Duration::from_millis(500 + stage.world.below(12_000));
            stage.net.stall(pid, how_long);
            cut_some(&stage);
            if stage.world.chance(0.5) {
                stage.net.refuse(pid, how_long);
            }
        }
    }
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[Kind::Reset])?;
    stage.world.sleep(Duration::from_secs(13)).await;
    stage.all_idle(false).await?;
    stop(&stage).await
}

async fn small_ledger(stage: Stage) -> Result<(), String> {
    stage.some_ready(1).await?;
    let client = stage.client("a", 1);
    let order = Order { acknowledge: Acknowledge::Explicit, ..Order::default() };
    let ids = send_some(&stage, &client, order, 150).await;
    for _ in 0..stage.world.below(4) {
        stage.sleep_ms(0, 40).await;
        cut_some(&stage);
    }
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[Kind::Reset])?;
    stage.all_idle(false).await?;
    client.acknowledge(&ids);
    stage.all_idle(true).await?;
    stop(&stage).await
}

/// Clients that come and go, and ask for the same again; the last of them has answers to all.
async fn ask_again(stage: &Stage, between: impl Fn(&Stage, &Client, &[RequestId])) -> Result<(), String> {
    stage.some_ready(1).await?;
    let order = Order { acknowledge: Acknowledge::Explicit, ..Order::default() };
    let n = 40 + stage.world.below(120);
    let last = 2 + stage.world.below(3);
    for epoch in 1..last {
        let client = stage.client("a", epoch);
        let ids = stage.submit(&client, order, 0..n);
        for _ in 0..stage.world.below(4) {
            stage.sleep_ms(0, 120).await;
            between(stage, &client, &ids);
            if stage.world.chance(0.3) {
                cut_some(stage);
            }
        }
        stage.book.turn_over();
    }
    let client = stage.client("a", last);
    let ids = stage.submit(&client, order, 0..n);
    for _ in 0..stage.world.below(3) {
        stage.sleep_ms(0, 40).await;
        between(stage, &client, &[]);
        cut_some(stage);
    }
    stage.all_ended(PATIENCE).await?;
    stage.book.only(&[Kind::Reset])?;
    stage.all_idle(false).await?;
    client.acknowledge(&ids);
    stage.all_idle(true).await
}

async fn spill(stage: Stage) -> Result<(), String> {
    ask_again(&stage, |_, _, _| {}).await?;
    ran_once(&stage)?;
    let meters = stage.statuses().await.into_iter().map(|(_, status)| status.meter.ledger);
    let mut all = pelton_core::meter::LedgerMeter::default();
    meters.for_each(|meter| all.merge(&meter));
    if all.spilled == 0 || all.evicted > 0 || all.on_disk > 0 || all.disk_bytes > 0 {
        return Err(format!("results were not spilled, were forgotten, or are left on disk: {all:?}"));
    }
    let left =
        stage.machine.running().into_iter().filter_map(|(pid, _)| Some((pid, stage.machine.disk(pid)?)));
    if let Some((pid, disk)) = { left }.find(|(_, disk)| disk.scratch() != (0, 0)) {
        return Err(format!("process {pid} has files left: {:?}", disk.scratch()));
    }
    stop(&stage).await
}

async fn bad_spill(stage: Stage) -> Result<(), String> {
    let spoil = |stage: &Stage, client: &Client, ids: &[RequestId]| {
        if stage.world.chance(0.2) {
            client.cancel(&ids[ids.len() / 2..]);
        }
        let Some(disk) = some_pid(stage).and_then(|pid| stage.machine.disk(pid)) else { return };
        match stage.world.below(5) {
            0 => disk.fill(Path::new("/"), stage.world.below(20)),
            1 => disk.arm(stage.world.below(20), Fault::Fails(EIO)),
            2 => disk.garble(1 + stage.world.below(3)),
            3 => disk.mend(),
            _ => {}
        }
    };
    ask_again(&stage, spoil).await?;
    stop(&stage).await
}

async fn stopping(stage: Stage) -> Result<(), String> {
    let client = stage.client("a", 1);
    stage.submit(&client, Order::default(), 0..50);
    let at = if stage.world.chance(0.5) { 100 } else { 4_000 };
    stage.sleep_ms(0, at).await;
    if stage.world.chance(0.3) {
        cut_some(&stage);
    }
    stop(&stage).await
}

async fn chaos(stage: Stage) -> Result<(), String> {
    let clients: Vec<Arc<Client>> =
        (0..1 + stage.world.below(3)).map(|i| stage.client(&format!("c{i}"), 1)).collect();
    let mut sent = Vec::new();
    for (operator, client) in (1..).zip(&clients) {
        let timeout =
            stage.world.chance(0.2).then(|| Duration::from_micros(500 + stage.world.below(200_000)));
        let order = Order { operator, acknowledge: either(&stage), timeout, ..Order::default() };
        sent.push(send_some(&stage, client, order, 20 + stage.world.below(80)).await);
    }
    let mut links = Vec::new();
    for _ in 0..2 + stage.world.below(10) {
        stage.sleep_ms(0, 50).await;
        let pid = some_pid(&stage);
        match (stage.world.below(7), pid) {
            (0, Some(pid)) => stage.machine.kill(pid),
            (1, Some(pid)) => stage.net.stall(pid, Duration::from_millis(stage.world.below(5_000))),
            (2, Some(pid)) => stage.net.refuse(pid, Duration::from_millis(stage.world.below(3_000))),
            (3 | 4, _) => cut_some(&stage),
            (5, Some(pid)) => {
                let env = stage.machine.env(crate::faults::world::HOST, "drainer");
                let link = env.within(Duration::from_millis(20), stage.supervise(pid)).await.flatten();
                link.iter().for_each(|link| link.sender.send(Frame::Drain));
                links.extend(link);
            }
            (6, _) => {
                let i = stage.world.below(clients.len() as u64) as usize;
                let ids = &sent[i];
                clients[i].cancel(&ids[..stage.world.below(ids.len() as u64) as usize]);
            }
            _ => {}
        }
    }
    drop(links);
    stage.all_ended(PATIENCE).await?;
    stage.book.deadlines_held()?;
    stage.book.only(&[Kind::User, Kind::Deadline, Kind::Cancelled, Kind::Reset])?;
    stage.world.sleep(Duration::from_secs(6)).await;
    for (client, ids) in clients.iter().zip(&sent) {
        client.acknowledge(ids);
    }
    stage.all_idle(false).await?;
    stop(&stage).await
}

async fn slow_streams(stage: Stage) -> Result<(), String> {
    stage.some_ready(stage.setup.declaration.instances.initial as usize).await?;
    let client = stage.client("a", 1);
    let ids = stream_some(&stage, &client, 20 + stage.world.below(40)).await;
    // Nothing is taken: all calls end, and the streams stop at their bounds.
    let (book, calls) = (stage.book.clone(), ids.len());
    stage.until(PATIENCE, "calls end beside streams that stand", move || book.well(2) == calls).await?;
    stage.sleep_ms(500, 1000).await;
    let instances = u64::from(stage.setup.declaration.instances.initial);
    let limits = stage.setup.declaration.stream;
    // Every instance its share of the total, one part beyond it, and one for each stream that had begun.
    let share = (limits.total.get() / instances).max(limits.window.get()).div_ceil(1 << 10);
    let most = instances * (share + 1 + stage.setup.plan.concurrency as u64);
    let there = stage.take(&client, 0) as u64;
    if there > most {
        return Err(format!("{there} parts came that nobody took; at most {most} may"));
    }
    take_all(&stage, &client).await?;
    stage.book.only(&[])?;
    ran_once(&stage)?;
    client.acknowledge(&stage.book.ids());
    stage.all_idle(true).await?;
    stop(&stage).await
}

async fn streams(stage: Stage) -> Result<(), String> {
    stage.some_ready(1).await?;
    let client = stage.client("a", 1);
    let ids = stream_some(&stage, &client, 20 + stage.world.below(40)).await;
    let (mut killed, mut cancelled) = (false, false);
    for _ in 0..2 + stage.world.below(12) {
        stage.sleep_ms(0, 30).await;
        stage.take(&client, stage.world.below(30) as usize);
        match stage.world.below(8) {
            0 => {
                killed = true;
                some_pid(&stage).into_iter().for_each(|pid| stage.machine.kill(pid));
            }
            1 => {
                cancelled = true;
                let from = stage.world.below(ids.len() as u64) as usize;
                client.cancel(&ids[from..(from + 5).min(ids.len())]);
            }
            2 => {
                let how_long = Duration::from_millis(stage.world.below(500));
                some_pid(&stage).into_iter().for_each(|pid| stage.net.stall(pid, how_long));
            }
            3..6 => cut_some(&stage),
            _ => {}
        }
    }
    take_all(&stage, &client).await?;
    let kinds = [(killed, Kind::Reset), (cancelled, Kind::Cancelled)];
    let kinds: Vec<Kind> = kinds.into_iter().filter(|(may, _)| *may).map(|(_, kind)| kind).collect();
    stage.book.only(&kinds)?;
    stage.nothing_ran_twice()?;
    client.acknowledge(&stage.book.ids());
    stage.all_idle(false).await?;
    stop(&stage).await
}

async fn streams_restart(stage: Stage) -> Result<(), String> {
    stage.some_ready(1).await?;
    let order = Order { method: FLOW, acknowledge: Acknowledge::Explicit, ..Order::default() };
    let n = 10 + stage.world.below(30);
    let mut client = stage.client("a", 1);
    for epoch in 2..4 + stage.world.below(2) {
        stage.submit(&client, order, 0..n);
        for _ in 0..stage.world.below(6) {
            stage.sleep_ms(0, 10).await;
            stage.take(&client, stage.world.below(20) as usize);
        }
        stage.book.turn_over();
        stage.untaken.lock().expect("nobody panics with it").clear();
        drop(client);
        client = stage.client("a", epoch);
    }
    let ids = stage.submit(&client, order, 0..n);
    take_all(&stage, &client).await?;
    stage.book.only(&[])?;
    // The longest stream has 22 parts; where each may keep that, nothing runs again.
    if stage.setup.declaration.stream.kept.get() / stage.setup.plan.concurrency as u64 >= 25 << 10 {
        ran_once(&stage)?;
    }
    client.acknowledge(&ids);
    stage.all_idle(true).await?;
    stop(&stage).await
}
