//! Where the jobs of this machine and user are found: a private folder with a subfolder a job.
//!
//! A job's folder holds its card, control's socket, and for each instance a socket and a record. A process that was killed leaves it behind;
//! the next process of the same job takes it over, and with it what the instances have to be asked by.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pelton_core::endpoint::Address;
use pelton_core::id::InstanceId;
use pelton_core::{Error, Fate, Kind, Result, Retry};
use serde::{Deserialize, Serialize};

/// Unix socket paths are at most 107 bytes long on Linux; the rest is for the socket's own name.
const LONGEST: usize = 107 - 48;
const CARD: &str = "job.json";
const TAKEN: &str = "job.taken";
const RECORD: &str = ".instance";

/// What stands in a job's folder for those who look for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    pub job: String,
    pub name: String,
    pub pid: u32,
    /// When that process was started, in ticks since the machine was: a number may be given to another process later.
    born: u64,
    pub started: u64,
    /// Where the job keeps its state: runs with the same one are runs of one job.
    pub home: PathBuf,
    /// Of that state: a job that begins anew has another one.
    pub lineage: String,
    /// Grows with each run; callers of an older one are fenced off.
    pub epoch: u64,
    token: String,
}

/// An instance that was started, as it stands beside its socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub instance: InstanceId,
    /// What it is made of.
    pub config: String,
    pub pid: u32,
    born: u64,
    /// The socket's name in the folder.
    socket: String,
}

/// A running job's folder.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    card: Card,
    /// Makes names in it different from those of earlier runs.
    run: String,
}

/// The folder of this user: `$XDG_RUNTIME_DIR/pelton`, else `pelton-UID` among the temporary files.
pub fn base() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_dir()) {
        Some(dir) => dir.join("pelton"),
        None => PathBuf::from("/tmp").join(format!("pelton-{}", user())),
    }
}

/// Makes the folder of this user, which nobody else may read.
pub fn make(base: &Path) -> Result<()> {
    let failed =
        |e: std::io::Error| Error::from(e).context(format_args!("making the run folder {}", base.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(base).map_err(failed)?;
    let metadata = fs::symlink_metadata(base).map_err(failed)?;
    if !metadata.is_dir() || metadata.uid() != user() || metadata.permissions().mode() & 0o077 != 0 {
        return Err(Error::invalid(format!(
            "the run folder {} is not a private folder of this user; remove it, or set XDG_RUNTIME_DIR",
            base.display()
        )));
    }
    Ok(())
}

/// Who owns this process's own entry, which is who it runs as.
fn user() -> u32 {
    fs::metadata("/proc/self").map_or(0, |m| m.uid())
}

/// When a process was started, if it is there and has not ended.
fn born(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, parentheses too.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    let born = fields.nth(18)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(born)
}

fn is_alive(pid: u32, since: u64) -> bool {
    born(pid).is_some_and(|born| since == 0 || born == since)
}

impl Card {
    pub fn new(name: &str, secret: &str, started: u64, home: PathBuf, lineage: String) -> Self {
        let job = format!("{name:.16}-{}", &secret[..8]);
        let job = job.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let pid = std::process::id();
        Card {
            job,
            name: name.to_owned(),
            pid,
            born: born(pid).unwrap_or_default(),
            started,
            home,
            lineage,
            epoch: started,
            token: secret.to_owned(),
        }
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// The process that wrote it is there.
    fn is_current(&self) -> bool {
        is_alive(self.pid, self.born)
    }
}

impl RunDir {
    /// Makes the folder of a job below `base`, which nobody else may read. If a run of the same job left one whose process is gone, it
    /// becomes this job's: with its token, a higher epoch, and its instances.
    /// Says whether it is of the same lineage.
    pub fn take(base: &Path, card: &mut Card) -> Result<(RunDir, bool)> {
        let failed = |e: std::io::Error| {
            Error::from(e).context(format_args!("making the run folder below {}", base.display()))
        };
        make(base)?;
        let path = base.join(&card.job);
        if path.as_os_str().len() > LONGEST {
            return Err(Error::invalid(format!(
                "the run folder {} has too long a path for sockets (at most {LONGEST} bytes); set XDG_RUNTIME_DIR to a shorter one",
                path.display()
            )));
        }
        let left =
            entries(base)?.into_iter().filter(|(_, left)| !left.is_current() && left.home == card.home);
        // Whoever takes the card away has the folder, and nobody else.
        let taken = left
            .max_by_key(|(_, left)| left.started)
            .filter(|(from, _)| fs::rename(from.join(CARD), from.join(TAKEN)).is_ok());
        let same = taken.as_ref().is_some_and(|(_, left)| left.lineage == card.lineage);
        let path = match taken {
            Some((from, left)) => {
                (card.job, card.token) = (left.job, left.token);
                card.epoch = card.epoch.max(left.epoch + (1 << 20));
                let _ = fs::remove_file(control_socket(&from));
                from
            }
            None => {
                DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
                path
            }
        };
        let run = format!("{:x}", card.epoch);
        let dir = RunDir { path, card: card.clone(), run };
        dir.write(CARD, card).map_err(failed)?;
        Ok((dir, same))
    }

    /// A file that appears whole.
    fn write(&self, name: &str, content: &impl Serialize) -> std::io::Result<()> {
        let json = serde_json::to_vec(content).expect("cards and records are plain data");
        let temporary = self.path.join(format!("{name}.tmp"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&json)?;
        fs::rename(&temporary, self.path.join(name))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.path);
    }

    /// Where control listens.
    pub fn control(&self) -> Address {
        Address::Unix(control_socket(&self.path))
    }

    /// Where a new instance listens. Services are told apart by number, which is shorter than their names.
    pub fn instance(&self, service: usize, number: u32, incarnation: u32) -> Address {
        Address::Unix(self.path.join(format!("{}-{service}-{number}-{incarnation}.sock", self.run)))
    }

    /// Notes an instance that was started, for a run after this one.
    pub fn note(&self, instance: &InstanceId, config: &str, pid: u32, address: &Address) {
        let Address::Unix(path) = address else { return };
        let Some(socket) = path.file_name().map(|n| n.to_string_lossy().into_owned()) else { return };
        let record = Record {
            instance: instance.clone(),
            config: config.to_owned(),
            pid,
            born: born(pid).unwrap_or_default(),
            socket: socket.clone(),
        };
        if let Err(e) = self.write(&format!("{socket}{RECORD}"), &record) {
            tracing::warn!("instance {instance} cannot be noted, and would not be taken over: {e}");
        }
    }

    /// The instance at this address is gone.
    pub fn strike(&self, address: &Address) {
        if let Address::Unix(path) = address {
            let _ = fs::remove_file(path);
            let _ = fs::remove_file(format!("{}{RECORD}", path.display()));
        }
    }

    /// The instances that were noted and whose process is there, or that nobody can tell of.
    pub fn records(&self) -> Vec<(Record, Address)> {
        records(&self.path)
            .into_iter()
            .map(|record| {
                let address = Address::Unix(self.path.join(&record.socket));
                (record, address)
            })
            .collect()
    }
}

fn control_socket(path: &Path) -> PathBuf {
    path.join("control.sock")
}

fn records(path: &Path) -> Vec<Record> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let files = entries.flatten().map(|e| e.path());
    let files = files.filter(|p| p.extension().is_some_and(|e| e == &RECORD[1..]));
    let read = |path: PathBuf| serde_json::from_slice::<Record>(&fs::read(path).ok()?).ok();
    // A name that leads elsewhere is none that was written here.
    files.filter_map(read).filter(|r| !r.socket.contains('/')).collect()
}

/// Instances that outlive it may be taken over; without any, nothing stays.
impl Drop for RunDir {
    fn drop(&mut self) {
        if records(&self.path).is_empty() {
            return self.remove();
        }
        let nobody = Card { pid: 0, ..self.card.clone() };
        let _ = self.write(CARD, &nobody);
    }
}

/// A job found in the run folder.
pub struct Found {
    pub card: Card,
    pub control: Address,
    pub path: PathBuf,
}

fn entries(base: &Path) -> Result<Vec<(PathBuf, Card)>> {
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::from(e).context(format_args!("reading {}", base.display()))),
    };
    let paths = entries.flatten().map(|e| e.path());
    Ok(paths.filter_map(|path| read_card(&path.join(CARD)).map(|card| (path, card))).collect())
}

fn read_card(path: &Path) -> Option<Card> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The jobs of this user, by start. Folders of jobs of which nothing runs any more are removed on the way: a process that was killed
/// could not.
pub fn jobs(base: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for (path, card) in entries(base)? {
        if card.is_current() {
            found.push(Found { control: Address::Unix(control_socket(&path)), card, path });
        } else if !records(&path).iter().any(|r| is_alive(r.pid, r.born)) {
            remove(&path, &card);
        }
    }
    found.sort_by_key(|f| f.card.started);
    Ok(found)
}

/// The job of this name, id, or folder.
pub fn find(base: &Path, wanted: &str) -> Result<Found> {
    let (mut named, others): (Vec<Found>, Vec<Found>) = jobs(base)?
        .into_iter()
        .partition(|f| f.card.job == wanted || f.card.name == wanted || f.path == Path::new(wanted));
    match named.len() {
        1 => Ok(named.remove(0)),
        // It may come.
        0 => Err(Error::new(
            Kind::Connect,
            Fate::NotSent,
            Retry::Elsewhere,
            match others.is_empty() {
                true => format!("no job `{wanted}` runs here, nor any other ({})", base.display()),
                false => format!("no job `{wanted}` runs here; there are: {}", show(&others)),
            },
        )),
        _ => Err(Error::invalid(format!(
            "several jobs are called `{wanted}`: {}; name one by its id",
            show(&named)
        ))),
    }
}

/// Jobs, for people.
pub fn show(jobs: &[Found]) -> String {
    let one = |f: &Found| format!("{} (process {})", f.card.job, f.card.pid);
    jobs.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Removes a folder with this card, unless a run has taken it over since the card was read.
fn remove(path: &Path, card: &Card) {
    let taken = path.join(format!("{CARD}.{}", std::process::id()));
    if fs::rename(path.join(CARD), &taken).is_err() {
        return;
    }
    match read_card(&taken) {
        Some(now) if now != *card => _ = fs::rename(&taken, path.join(CARD)),
        _ => _ = fs::remove_dir_all(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(home: &str, lineage: &str) -> Card {
        Card::new("a job", "0123456789abcdef", 100, home.into(), lineage.into())
    }

    fn instance(number: u32) -> InstanceId {
        InstanceId { service: "s".into(), number, incarnation: 3 }
    }

    #[test]
    fn what_a_killed_run_left_is_taken_over_by_the_next_of_its_job() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().join("r");
        let mut first = card("/a", "l1");
        let (dir, _) = RunDir::take(&base, &mut first).unwrap();
        let address = dir.instance(0, 1, 3);
        dir.note(&instance(1), "c", std::process::id(), &address);
        let mut parallel = Card { job: "b-2".into(), token: "t2".into(), ..card("/a", "l1") };
        let (beside, _) = RunDir::take(&base, &mut parallel).unwrap();
        assert_eq!(parallel.token, "t2", "a run that goes on keeps its folder");
        drop(beside);
        drop(dir);
        let other = Card { job: "c-3".into(), ..card("/elsewhere", "l1") };
        let (other_dir, _) = RunDir::take(&base, &mut other.clone()).unwrap();
        assert!(other_dir.records().is_empty(), "another job's");
        let mut second = Card { job: "d-4".into(), token: "t4".into(), ..card("/a", "l1") };
        let (dir, same) = RunDir::take(&base, &mut second).unwrap();
        assert!(same);
        assert_eq!(second.token, first.token);
        assert!(second.epoch > first.epoch);
        let [(record, at)] = &dir.records()[..] else { panic!("{:?}", dir.records()) };
        assert_eq!((&record.instance, record.config.as_str()), (&instance(1), "c"));
        assert_ne!(dir.instance(0, 1, 3), *at, "names of another run");
        assert!(matches!(at, Address::Unix(p) if p.starts_with(dir.path())));
        dir.strike(at);
        assert!(dir.records().is_empty());
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn folders_of_which_nothing_runs_are_removed() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().join("r");
        let mut gone = card("/a", "l");
        let (dir, _) = RunDir::take(&base, &mut gone).unwrap();
        dir.note(&instance(1), "c", u32::MAX - 1, &dir.instance(0, 1, 3));
        let left = dir.path().to_owned();
        drop(dir);
        let mut waits = Card { job: "w-1".into(), ..card("/b", "l") };
        let (dir, _) = RunDir::take(&base, &mut waits).unwrap();
        dir.note(&instance(1), "c", std::process::id(), &dir.instance(0, 1, 3));
        let kept = dir.path().to_owned();
        drop(dir);
        assert!(jobs(&base).unwrap().is_empty());
        assert!(!left.exists() && kept.exists());
        // Looked at before another run had it.
        let (path, before) = entries(&base).unwrap().pop().unwrap();
        let mut next = Card { job: "n-1".into(), ..card("/b", "l") };
        let (dir, _) = RunDir::take(&base, &mut next).unwrap();
        assert_eq!(dir.path(), path);
        remove(&path, &before);
        assert_eq!(read_card(&path.join(CARD)), Some(next));
    }
}
