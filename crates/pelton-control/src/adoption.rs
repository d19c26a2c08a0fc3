//! What a run of the same job left behind: instances that still hold their models, their work and its results. Those that are what is wanted
//! now are taken over; the others are told to leave.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use pelton_core::endpoint::Address;
use pelton_core::id::{InstanceId, stable_hash};
use pelton_core::{Bytes, Declaration, Result};
use pelton_discovery::rundir::{Card, Record, RunDir};
use pelton_env::{Env, Process};
use pelton_link::Link;
use pelton_wire::{Frame, Role, State, Status};

use crate::control::Settings;

/// How long all that is left may take to answer. A live instance does at once.
const PATIENCE: Duration = Duration::from_secs(3);
const KNOCK_EVERY: Duration = Duration::from_millis(10);

/// What stands ready before a job's instances are started.
pub struct Survey {
    pub(crate) directory: RunDir,
    pub(crate) card: Card,
    /// By service and number.
    pub(crate) adopted: BTreeMap<(String, u32), Adopted>,
    /// The newest incarnation that there was, so that new ones have other names.
    pub(crate) incarnations: BTreeMap<(String, u32), u32>,
}

/// An instance that was taken over.
pub(crate) struct Adopted {
    pub(crate) instance: InstanceId,
    pub(crate) address: Address,
    pub(crate) status: Status,
    pub(crate) link: Link,
    pub(crate) process: Box<dyn Process>,
}

/// What an instance is made of: its declaration, but for how many there are, and the program. An identity stands for the options.
pub(crate) fn config(env: &Env, declaration: &Declaration) -> String {
    let mut one = Declaration { instances: Default::default(), ..declaration.clone() };
    if one.identity.is_some() {
        one.options.clear();
    }
    let text = serde_json::to_string(&one).expect("a declaration is plain data");
    format!("{:016x}", stable_hash(&format!("{text} {}", env.processes.program())))
}

impl Survey {
    /// Makes the job's run folder, or takes over the one that an earlier run of it left, and asks the instances in it who they are. An
    /// instance is taken over if it belongs to the same state of the job and is made of the same program and declaration.
    pub async fn make(env: &Env, settings: &Settings) -> Result<Survey> {
        let (mut survey, same) = Survey::begin(env, settings)?;
        let mut records = survey.directory.records();
        // Whatever order the folder has them in.
        records.sort_by_key(|(record, _)| {
            (Reverse(record.instance.incarnation), record.instance.service.clone(), record.instance.number)
        });
        let mut leaving = Vec::new();
        let asked = records.into_iter().map(|(record, address)| ask(env, &survey.card, record, address));
        for Asked { record, address, found } in join_all(asked).await {
            let Some((process, status, link)) = found else {
                tracing::info!("{}, left by an earlier run, does not answer", record.instance);
                survey.directory.strike(&address);
                continue;
            };
            let place = (record.instance.service.clone(), record.instance.number);
            let newest = survey.incarnations.entry(place.clone()).or_default();
            *newest = (*newest).max(record.instance.incarnation);
            let wanted = settings.services.iter().find(|d| d.name == place.0);
            let fits = wanted
                .is_some_and(|d| same && place.1 < d.instances.initial && config(env, d) == record.config);
            let works = matches!(status.state, State::Opening | State::Ready);
            if fits && works && !survey.adopted.contains_key(&place) {
                tracing::info!("{} (process {}) is taken over", record.instance, record.pid);
                let instance = record.instance;
                survey.adopted.insert(place, Adopted { instance, address, status, link, process });
            } else {
                let (instance, pid) = (&record.instance, record.pid);
                tracing::info!("{instance} (process {pid}) is not what is wanted now, and is told to leave");
                link.sender.send(Frame::Stop);
                survey.directory.strike(&address);
                leaving.push(link);
            }
        }
        // What they occupy may be what the new ones need.
        let left = join_all(
            leaving
                .into_iter()
                .map(|mut link| async move { while let Ok(Some(_)) = link.receiver.next().await {} }),
        );
        let _ = env.within(PATIENCE, left).await;
        Ok(survey)
    }

    fn begin(env: &Env, settings: &Settings) -> Result<(Survey, bool)> {
        let secret = env.entropy.secret();
        let mut card = Card::new(
            &settings.name,
            &secret,
            env.clock.unix_millis(),
            settings.home.clone(),
            settings.lineage.clone(),
        );
        let (directory, same) = RunDir::take(&settings.run_base, &mut card)?;
        Ok((Survey { directory, card, adopted: BTreeMap::new(), incarnations: BTreeMap::new() }, same))
    }
}

/// What came of asking after an instance that was noted.
struct Asked {
    record: Record,
    address: Address,
    found: Option<(Box<dyn Process>, Status, Link)>,
}

/// Whether an instance is there and is who it is said to be. It may have been started a moment ago: then it is not listening yet.
async fn ask(env: &Env, card: &Card, record: Record, address: Address) -> Asked {
    let Ok(mut process) = env.processes.adopt(record.pid) else {
        return Asked { record, address, found: None };
    };
    let knock = async {
        loop {
            let greeting =
                pelton_link::greeting(Role::Control, card.token(), &card.job, "control", card.epoch);
            match pelton_link::connect(env, &address, greeting, Bytes::kib(64)).await {
                Ok(answer) => return Some(answer),
                Err(e) if e.kind().counts_against_endpoint() => env.sleep(KNOCK_EVERY).await,
                Err(_) => return None,
            }
        }
    };
    let answer = tokio::select! {
        biased;
        answer = env.within(PATIENCE, knock) => answer.flatten(),
        _ = process.exited() => None,
    };
    let found = answer
        .filter(|(w, _)| w.instance == record.instance && w.config == record.config)
        .map(|(welcome, link)| (process, welcome.status, link));
    Asked { record, address, found }
}
