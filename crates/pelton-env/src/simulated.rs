//! A disk that forgets: [`Storage`] in memory, with the power cut and operations that fail where a test says so.
//!
//! It keeps two views, what the process sees and what is durable. At a cut the seed chooses what survives of the rest:
//! nothing, all, what was done up to some moment, or each change by itself; files may be torn, and have holes of zeros.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::storage::{Entry, Lock, Scratch, Storage, WriteFile};

/// What happens at an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power goes, before or after it was done; the seed says which. Only at one that changes something: a cut while it is
    /// read is one before the next change.
    Cut,
    /// It fails with this error number, and this one alone.
    Fails(i32),
    /// It fails with this error number, and so does all that needs room from then on.
    FailsOn(i32),
}

/// No room left on the device.
pub const ENOSPC: i32 = 28;
/// The device failed.
pub const EIO: i32 = 5;

/// A simulated disk, and the machine around it that is switched off and on. Cheap to clone.
#[derive(Clone)]
pub struct Machine(Arc<Mutex<Inner>>);

struct Inner {
    rng: StdRng,
    nodes: BTreeMap<u64, Node>,
    /// Grows with each process that works with it; those before can do nothing any more.
    process: u64,
    operations: u64,
    /// Of those, the ones that change something.
    changes: u64,
    fault: Option<(u64, Fault)>,
    /// Below this folder there is room for so many operations, and then this error number.
    full: Option<(PathBuf, u64, i32)>,
    locks: BTreeMap<PathBuf, String>,
    /// Files without a name.
    scratch: BTreeMap<u64, Vec<u8>>,
    /// So many reads of such files give something else than was written.
    garbled: u64,
    /// What was done last, for messages.
    last: String,
}

#[derive(Debug)]
enum Node {
    File { seen: Vec<u8>, durable: Vec<u8>, broken: bool },
    Folder { seen: BTreeMap<String, u64>, durable: BTreeMap<String, u64>, pending: Vec<Change> },
}

/// A change of a name that is not durable.
#[derive(Clone, Debug)]
struct Change {
    number: u64,
    name: String,
    to: Option<u64>,
    /// For a rename's removal of the old name: the folder of the new one.
    moved_to: Option<u64>,
}

const ROOT: u64 = 0;
/// What is torn, is torn in such blocks.
const BLOCK: usize = 64;

impl Machine {
    pub fn new(seed: u64) -> Machine {
        let root = Node::folder();
        Machine(Arc::new(Mutex::new(Inner {
            rng: StdRng::seed_from_u64(seed),
            nodes: BTreeMap::from([(ROOT, root)]),
            process: 0,
            operations: 0,
            changes: 0,
            fault: None,
            full: None,
            locks: BTreeMap::new(),
            scratch: BTreeMap::new(),
            garbled: 0,
            last: String::new(),
        })))
    }

    /// The disk as a new process finds it. The one before was killed: it does nothing any more.
    pub fn process(&self) -> Arc<dyn Storage> {
        let mut inner = self.lock();
        inner.begin();
        Arc::new(Simulated { machine: self.clone(), process: inner.process })
    }

    /// The disk as the first process after a cut of the power finds it.
    pub fn reboot(&self) -> Arc<dyn Storage> {
        self.lock().lose();
        self.process()
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// How many of them changed something.
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// What was done last, for messages.
    pub fn last(&self) -> String {
        self.lock().last.clone()
    }

    /// Lets this happen at the operation, for a cut at the change, that comes after `after` others.
    pub fn arm(&self, after: u64, fault: Fault) {
        let mut inner = self.lock();
        let now = if fault == Fault::Cut { inner.changes } else { inner.operations };
        inner.fault = Some((now + after, fault));
    }

    /// From now on there is room for so many operations below this folder, and no more.
    pub fn fill(&self, folder: &Path, operations: u64) {
        self.lock().full = Some((folder.to_owned(), operations, ENOSPC));
    }

    /// There is room again, and nothing more goes wrong.
    pub fn mend(&self) {
        let mut inner = self.lock();
        (inner.fault, inner.full) = (None, None);
    }

    /// The files below a folder as a process sees them, by path below it. Not an operation.
    pub fn files(&self, folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let inner = self.lock();
        let mut found = BTreeMap::new();
        if let Ok(node) = inner.find(folder) {
            inner.collect(node, "", &mut found);
        }
        found
    }

    /// Changes a file as a failing medium would.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.lock();
        let node = inner.find(path).expect("there is such a file");
        if let Some(Node::File { seen, durable, .. }) = inner.nodes.get_mut(&node) {
            change(seen);
            durable.clone_from(seen);
        }
    }

    /// The next so many reads of files without a name give something else than was written there.
    pub fn garble(&self, reads: u64) {
        self.lock().garbled = reads;
    }

    /// How many files without a name there are, and how many bytes they take.
    pub fn scratch(&self) -> (usize, u64) {
        let inner = self.lock();
        (inner.scratch.len(), inner.scratch.values().map(|content| content.len() as u64).sum())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Node {
    fn file() -> Node {
        Node::File { seen: Vec::new(), durable: Vec::new(), broken: false }
    }

    fn folder() -> Node {
        Node::Folder { seen: BTreeMap::new(), durable: BTreeMap::new(), pending: Vec::new() }
    }
}

fn not_found() -> io::Error {
    ErrorKind::NotFound.into()
}

/// What a process gets that is no more. Nobody reads it.
fn gone() -> io::Error {
    io::Error::other("the process is gone")
}

impl Inner {
    fn begin(&mut self) {
        self.process += 1;
        self.locks.clear();
        self.scratch.clear();
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            at = self.child(at, &name.to_string_lossy()).ok_or_else(not_found)?;
        }
        Ok(at)
    }

    fn child(&self, folder: u64, name: &str) -> Option<u64> {
        match self.nodes.get(&folder) {
            Some(Node::Folder { seen, .. }) => seen.get(name).copied(),
            _ => None,
        }
    }

    /// The folder that a path is in, and its name there.
    fn place(&self, path: &Path) -> io::Result<(u64, String)> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        let folder = self.find(path.parent().unwrap_or(Path::new("/")))?;
        match self.nodes[&folder] {
            Node::Folder { .. } => Ok((folder, name)),
            Node::File { .. } => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn change(&mut self, folder: u64, name: &str, to: Option<u64>, moved_to: Option<u64>) {
        let number = self.operations;
        if let Some(Node::Folder { seen, pending, .. }) = self.nodes.get_mut(&folder) {
            match to {
                Some(node) => _ = seen.insert(name.to_owned(), node),
                None => _ = seen.remove(name),
            }
            pending.push(Change { number, name: name.to_owned(), to, moved_to });
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<u64> {
        let (folder, name) = self.place(path)?;
        if self.child(folder, &name).is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let id = self.nodes.keys().next_back().map_or(1, |last| last + 1);
        self.nodes.insert(id, node);
        self.change(folder, &name, Some(id), None);
        Ok(id)
    }

    fn file(&self, path: &Path) -> io::Result<&Vec<u8>> {
        match &self.nodes[&self.find(path)?] {
            Node::File { seen, .. } => Ok(seen),
            Node::Folder { .. } => Err(ErrorKind::IsADirectory.into()),
        }
    }

    fn sync_folder(&mut self, folder: u64) -> io::Result<()> {
        let Some(Node::Folder { durable, pending, .. }) = self.nodes.get_mut(&folder) else {
            return Err(ErrorKind::NotADirectory.into());
        };
        let changes = std::mem::take(pending);
        for change in &changes {
            apply(durable, change);
        }
        // An old name is not gone before the new one is there.
        for change in changes.into_iter().filter(|c| c.moved_to.is_some()) {
            let Some(Node::Folder { durable, pending, .. }) =
                change.moved_to.and_then(|f| self.nodes.get_mut(&f))
            else {
                continue;
            };
            let (with, rest) = std::mem::take(pending).into_iter().partition(|c| c.number <= change.number);
            *pending = rest;
            let with: Vec<Change> = with;
            with.iter().for_each(|c| apply(durable, c));
        }
        Ok(())
    }

    /// The power is gone: what survives of what is not durable?
    fn lose(&mut self) {
        let style = self.rng.random_range(0..4);
        let moment = self.rng.random_range(0..=self.operations);
        let mut kept: BTreeMap<(u64, u64), bool> = BTreeMap::new();
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        // New names first, for whether an old one may be gone depends on them.
        for removals in [false, true] {
            for id in &ids {
                let Some(Node::Folder { durable, pending, .. }) = self.nodes.get_mut(id) else { continue };
                for change in pending.iter().filter(|c| c.moved_to.is_some() == removals) {
                    let by_itself = self.rng.random_bool(0.5);
                    let survives = match style {
                        0 => false,
                        1 => true,
                        2 => change.number <= moment,
                        _ => by_itself,
                    };
                    let survives = match change.moved_to {
                        // Within a folder, both or neither.
                        Some(folder) if folder == *id => kept[&(folder, change.number)],
                        Some(folder) => {
                            survives && kept.get(&(folder, change.number)).copied().unwrap_or(true)
                        }
                        None => survives,
                    };
                    if !removals {
                        kept.insert((*id, change.number), survives);
                    }
                    if survives && removals {
                        // A later change of the same name has the last word.
                        let later = pending.iter().any(|c| {
                            c.name == change.name
                                && c.number > change.number
                                && kept.get(&(*id, c.number)).copied().unwrap_or(false)
                        });
                        if !later {
                            apply(durable, change);
                        }
                    } else if survives {
                        apply(durable, change);
                    }
                }
            }
        }
        for id in ids {
            let rng = &mut self.rng;
            match self.nodes.get_mut(&id) {
                Some(Node::Folder { seen, durable, pending }) => {
                    pending.clear();
                    seen.clone_from(durable);
                }
                Some(Node::File { seen, durable, broken }) => {
                    if *seen != *durable {
                        match if *broken { 0 } else { style } {
                            0 => {}
                            1 => durable.clone_from(seen),
                            _ => *durable = torn(seen, durable, rng),
                        }
                    }
                    seen.clone_from(durable);
                }
                None => {}
            }
        }
        self.last = "the power was cut".to_owned();
    }

    fn collect(&self, node: u64, path: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        match &self.nodes[&node] {
            Node::File { seen, .. } => _ = found.insert(path.to_owned(), seen.clone()),
            Node::Folder { seen, .. } => {
                for (name, node) in seen {
                    let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                    self.collect(*node, &below, found);
                }
            }
        }
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change.to {
        Some(node) => _ = names.insert(change.name.clone(), node),
        None => _ = names.remove(&change.name),
    }
}

/// A part of what was written: some length of it, and zeros where blocks did not make it.
fn torn(seen: &[u8], durable: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let safe = if seen.starts_with(durable) { durable.len() } else { 0 };
    if safe == 0 && rng.random_bool(0.3) {
        return durable.to_vec();
    }
    let mut left = seen[..rng.random_range(safe..=seen.len())].to_vec();
    for block in left[safe..].chunks_mut(BLOCK) {
        if rng.random_bool(0.3) {
            block.fill(0);
        }
    }
    left
}

/// What one process sees.
struct Simulated {
    machine: Machine,
    process: u64,
}

impl std::fmt::Debug for Simulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a simulated disk, process {}", self.process)
    }
}

/// What an operation needs.
#[derive(PartialEq)]
enum Needs {
    Nothing,
    /// It changes something.
    Change,
    /// It changes something, and takes room.
    Room,
}

impl Simulated {
    /// One operation. `act` is told whether it comes to its end; only a write can be done in part.
    fn operate<T>(
        &self,
        what: &str,
        path: &Path,
        needs: Needs,
        act: impl FnOnce(&mut Inner, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut inner = self.machine.lock();
        if inner.process != self.process {
            return Err(gone());
        }
        inner.operations += 1;
        inner.changes += u64::from(needs != Needs::Nothing);
        inner.last = format!("operation {}: {what} {}", inner.operations, path.display());
        let due = |(at, fault): &(u64, Fault)| {
            *at < if *fault == Fault::Cut { inner.changes } else { inner.operations }
        };
        match inner.fault.filter(due).map(|(_, fault)| fault) {
            None => {}
            Some(Fault::Cut) => {
                inner.fault = None;
                if inner.rng.random_bool(0.5) {
                    let whole = inner.rng.random_bool(0.5);
                    let _ = act(&mut inner, whole);
                }
                inner.begin();
                return Err(gone());
            }
            Some(Fault::Fails(code)) => {
                inner.fault = None;
                if what == "write" {
                    let _ = act(&mut inner, false);
                }
                if what == "sync" {
                    inner.break_file(path);
                }
                return Err(io::Error::from_raw_os_error(code));
            }
            Some(Fault::FailsOn(code)) => {
                inner.fault = None;
                inner.full = Some((PathBuf::from("/"), 0, code));
            }
        }
        match &mut inner.full {
            Some((folder, left, _)) if needs == Needs::Room && path.starts_with(&*folder) && *left > 0 => {
                *left -= 1;
                act(&mut inner, true)
            }
            Some((folder, _, code)) if needs == Needs::Room && path.starts_with(&*folder) => {
                let code = *code;
                if what == "write" {
                    let _ = act(&mut inner, false);
                }
                Err(io::Error::from_raw_os_error(code))
            }
            _ => act(&mut inner, true),
        }
    }
}

impl Inner {
    /// What could not be synced is lost, also where the next sync says yes: the kernel has marked the pages clean.
    fn break_file(&mut self, path: &Path) {
        if let Ok(id) = self.find(path)
            && let Some(Node::File { broken, .. }) = self.nodes.get_mut(&id)
        {
            *broken = true;
        }
    }
}

impl Storage for Simulated {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let node = self.operate("create", path, Needs::Room, |inner, _| match inner.find(path) {
            Ok(id) => match inner.nodes.get_mut(&id) {
                Some(Node::File { seen, .. }) => {
                    seen.clear();
                    Ok(id)
                }
                _ => Err(ErrorKind::IsADirectory.into()),
            },
            Err(_) => inner.add(path, Node::file()),
        })?;
        Ok(self.writer(node, path))
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let node = self.operate("create", path, Needs::Room, |inner, _| inner.add(path, Node::file()))?;
        Ok(self.writer(node, path))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.operate("read", path, Needs::Nothing, |inner, _| inner.file(path).cloned())
    }

    fn read_at(&self, path: &Path, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        self.operate("read", path, Needs::Nothing, |inner, _| {
            let from = offset as usize;
            let content = inner.file(path)?.get(from..from + bytes);
            content.map(<[u8]>::to_vec).ok_or_else(|| ErrorKind::UnexpectedEof.into())
        })
    }

    fn look(&self, path: &Path) -> io::Result<Option<Entry>> {
        self.operate("look", path, Needs::Nothing, |inner, _| {
            let Ok(id) = inner.find(path) else { return Ok(None) };
            let (folder, bytes) = match &inner.nodes[&id] {
                Node::File { seen, .. } => (false, seen.len() as u64),
                Node::Folder { .. } => (true, 0),
            };
            Ok(Some(Entry { folder, bytes, identity: (0, id) }))
        })
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.operate("list", folder, Needs::Nothing, |inner, _| match &inner.nodes[&inner.find(folder)?] {
            Node::Folder { seen, .. } => Ok(seen.keys().cloned().collect()),
            Node::File { .. } => Err(ErrorKind::NotADirectory.into()),
        })
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.operate("create folder", path, Needs::Room, |inner, _| inner.add(path, Node::folder()).map(drop))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate("rename", from, Needs::Room, |inner, _| {
            let ((old, name), (new, new_name)) = (inner.place(from)?, inner.place(to)?);
            let node = inner.child(old, &name).ok_or_else(not_found)?;
            inner.change(new, &new_name, Some(node), None);
            inner.change(old, &name, None, Some(new));
            Ok(())
        })
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate("link", to, Needs::Room, |inner, _| {
            let node = inner.find(from)?;
            let (folder, name) = inner.place(to)?;
            if inner.child(folder, &name).is_some() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            inner.change(folder, &name, Some(node), None);
            Ok(())
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.operate("remove", path, Needs::Change, |inner, _| {
            let (folder, name) = inner.place(path)?;
            inner.child(folder, &name).ok_or_else(not_found)?;
            inner.change(folder, &name, None, None);
            Ok(())
        })
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        for name in self.list(path)? {
            let below = path.join(name);
            match self.look(&below)? {
                Some(entry) if entry.folder => self.remove_folder(&below)?,
                Some(_) => self.remove_file(&below)?,
                None => {}
            }
        }
        self.remove_file(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.operate("sync folder", path, Needs::Change, |inner, _| {
            let folder = inner.find(path)?;
            inner.sync_folder(folder)
        })
    }

    fn scratch(&self, folder: &Path) -> io::Result<Box<dyn Scratch>> {
        let file = self.operate("create scratch", folder, Needs::Room, |inner, _| {
            match inner.nodes[&inner.find(folder)?] {
                Node::Folder { .. } => {}
                Node::File { .. } => return Err(ErrorKind::NotADirectory.into()),
            }
            let file = inner.operations;
            inner.scratch.insert(file, Vec::new());
            Ok(file)
        })?;
        let disk = Simulated { machine: self.machine.clone(), process: self.process };
        Ok(Box::new(ScratchFile { disk, file, folder: folder.to_owned() }))
    }

    fn lock(&self, path: &Path, note: &str) -> io::Result<Lock> {
        let taken = self.operate("lock", path, Needs::Room, |inner, _| {
            if let Some(note) = inner.locks.get(path) {
                return Ok(Some(note.clone()));
            }
            if inner.find(path).is_err() {
                inner.add(path, Node::file())?;
            }
            inner.locks.insert(path.to_owned(), note.to_owned());
            Ok(None)
        })?;
        let (machine, path, process) = (self.machine.clone(), path.to_owned(), self.process);
        Ok(taken.map_or_else(|| Lock::Held(Box::new(Held { machine, path, process })), Lock::Taken))
    }
}

impl Simulated {
    fn writer(&self, node: u64, path: &Path) -> Box<dyn WriteFile> {
        let disk = Simulated { machine: self.machine.clone(), process: self.process };
        Box::new(Writer { disk, node, path: path.to_owned() })
    }
}

struct Held {
    machine: Machine,
    path: PathBuf,
    process: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.machine.lock();
        if inner.process == self.process {
            inner.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct Writer {
    disk: Simulated,
    node: u64,
    path: PathBuf,
}

impl Write for Writer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let node = self.node;
        self.disk.operate("write", &self.path, Needs::Room, |inner, whole| {
            let bytes = if whole { buffer.len() } else { inner.rng.random_range(0..=buffer.len()) };
            if let Some(Node::File { seen, .. }) = inner.nodes.get_mut(&node) {
                seen.extend_from_slice(&buffer[..bytes]);
            }
            Ok(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for Writer {
    fn sync(&mut self) -> io::Result<()> {
        let node = self.node;
        self.disk.operate("sync", &self.path, Needs::Change, |inner, _| {
            if let Some(Node::File { seen, durable, broken: false }) = inner.nodes.get_mut(&node) {
                durable.clone_from(seen);
            }
            Ok(())
        })
    }
}

#[derive(Debug)]
struct ScratchFile {
    disk: Simulated,
    file: u64,
    folder: PathBuf,
}

impl Scratch for ScratchFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (file, from) = (self.file, offset as usize);
        self.disk.operate("write", &self.folder, Needs::Room, |inner, whole| {
            let bytes = &bytes[..if whole { bytes.len() } else { inner.rng.random_range(0..=bytes.len()) }];
            if let Some(content) = inner.scratch.get_mut(&file) {
                content.resize(content.len().max(from + bytes.len()), 0);
                content[from..from + bytes.len()].copy_from_slice(bytes);
            }
            Ok(())
        })
    }

    fn read_at(&mut self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let (file, from) = (self.file, offset as usize);
        self.disk.operate("read", &self.folder, Needs::Nothing, |inner, _| {
            let content = inner.scratch.get(&file).and_then(|content| content.get(from..from + bytes));
            let mut content = content.map(<[u8]>::to_vec).ok_or(ErrorKind::UnexpectedEof)?;
            if inner.garbled > 0 && !content.is_empty() {
                inner.garbled -= 1;
                let at = inner.rng.random_range(0..content.len());
                content[at] ^= 1 << inner.rng.random_range(0..8);
            }
            Ok(content)
        })
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        let mut inner = self.disk.machine.lock();
        if inner.process == self.disk.process {
            inner.scratch.remove(&self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{make_folders, replace, sync_folder, write_synced};

    fn path(text: &str) -> PathBuf {
        PathBuf::from(text)
    }

    /// What is left of one scenario over many cuts, as text.
    fn left(scenario: impl Fn(&dyn Storage)) -> std::collections::BTreeSet<String> {
        let after = |seed| {
            let machine = Machine::new(seed);
            scenario(&*machine.process());
            machine.reboot();
            let files = machine.files(&path("/"));
            let shown =
                files.iter().map(|(name, bytes)| format!("{name}={}", String::from_utf8_lossy(bytes)));
            shown.collect::<Vec<_>>().join(" ")
        };
        (0..200).map(after).collect()
    }

    fn check(scenario: impl Fn(&dyn Storage), expected: &[&str]) {
        let found = left(scenario);
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_file_survives_with_its_content_synced_and_its_name() {
        let write = |disk: &dyn Storage| write_synced(disk, &path("/a"), b"text").unwrap();
        check(write, &["", "a=text"]);
        check(|disk| (write(disk), sync_folder(disk, &path("/")).unwrap()).0, &["a=text"]);
        let unsynced = left(|disk| {
            disk.create(&path("/a")).unwrap().write_all(b"text").unwrap();
            disk.sync_folder(&path("/")).unwrap();
        });
        assert!(["a=", "a=te", "a=text", "a=\0\0\0\0"].iter().all(|s| unsynced.contains(*s)), "{unsynced:?}");
    }

    #[test]
    fn a_rename_leaves_one_name_or_across_folders_both() {
        let begin = |disk: &dyn Storage| {
            disk.create_folder(&path("/f")).unwrap();
            write_synced(disk, &path("/f/a"), b"1").unwrap();
            disk.sync_folder(&path("/f")).unwrap();
            disk.sync_folder(&path("/")).unwrap();
        };
        check(
            |disk| (begin(disk), disk.rename(&path("/f/a"), &path("/f/b")).unwrap()).0,
            &["f/a=1", "f/b=1"],
        );
        let across = |disk: &dyn Storage| (begin(disk), disk.rename(&path("/f/a"), &path("/b")).unwrap()).0;
        check(across, &["b=1", "b=1 f/a=1", "f/a=1"]);
        check(|disk| (across(disk), disk.sync_folder(&path("/f")).unwrap()).0, &["b=1"]);
        check(|disk| (across(disk), disk.sync_folder(&path("/")).unwrap()).0, &["b=1", "b=1 f/a=1"]);
    }

    #[test]
    fn replacing_and_making_folders_are_durable() {
        let begin = |disk: &dyn Storage| {
            make_folders(disk, &path("/f/g/h")).unwrap();
            replace(disk, &path("/f/g/h/a.json"), b"1").unwrap();
        };
        check(begin, &["f/g/h/a.json=1"]);
        let machine = Machine::new(0);
        begin(&*machine.process());
        let before = machine.changes();
        replace(&*machine.process(), &path("/f/g/h/a.json"), b"2").unwrap();
        for at in 0..machine.changes() - before {
            for seed in 0..20 {
                let machine = Machine::new(seed);
                let disk = machine.process();
                begin(&*disk);
                machine.arm(at, Fault::Cut);
                assert!(replace(&*disk, &path("/f/g/h/a.json"), b"2").is_err());
                machine.reboot();
                let content = machine.files(&path("/f/g/h"))["a.json"].clone();
                assert!([b"1", b"2"].contains(&content.as_slice().try_into().unwrap()), "{content:?}");
            }
        }
    }

    #[test]
    fn faults_come_where_they_were_ordered() {
        let machine = Machine::new(1);
        let disk = machine.process();
        machine.arm(1, Fault::Fails(EIO));
        disk.create(&path("/a")).unwrap();
        assert_eq!(disk.create(&path("/b")).unwrap_err().raw_os_error(), Some(EIO));
        disk.create(&path("/b")).unwrap();
        machine.arm(0, Fault::FailsOn(ENOSPC));
        assert!(disk.read(&path("/a")).is_ok(), "reading needs no room");
        assert_eq!(disk.create(&path("/c")).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(disk.create(&path("/c")).unwrap_err().kind(), ErrorKind::StorageFull);
        machine.mend();
        disk.create(&path("/c")).unwrap();
        let other = machine.process();
        assert!(disk.read(&path("/a")).is_err(), "that process is gone");
        assert!(other.read(&path("/a")).is_ok());
    }

    #[test]
    fn what_could_not_be_synced_is_not_durable_whatever_the_next_sync_says() {
        let machine = Machine::new(3);
        let disk = machine.process();
        let mut file = disk.create(&path("/a")).unwrap();
        disk.sync_folder(&path("/")).unwrap();
        file.write_all(b"text").unwrap();
        machine.arm(0, Fault::Fails(EIO));
        assert!(file.sync().is_err());
        file.sync().unwrap();
        machine.reboot();
        assert_eq!(machine.files(&path("/"))["a"], b"");
    }

    #[test]
    fn files_without_a_name_go_with_their_process_and_fail_as_others_do() {
        let machine = Machine::new(1);
        let disk = machine.process();
        let mut file = disk.scratch(&path("/")).unwrap();
        file.write_at(2, b"text").unwrap();
        assert_eq!(file.read_at(0, 6).unwrap(), b"\0\0text");
        assert_eq!(file.read_at(3, 6).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(machine.scratch(), (1, 6));
        machine.garble(1);
        assert_ne!(file.read_at(2, 4).unwrap(), b"text");
        assert_eq!(file.read_at(2, 4).unwrap(), b"text");
        machine.fill(&path("/"), 0);
        assert_eq!(file.write_at(6, b"more").unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(disk.scratch(&path("/")).unwrap_err().kind(), ErrorKind::StorageFull);
        machine.mend();
        drop(file);
        assert_eq!(machine.scratch(), (0, 0));
        let mut file = disk.scratch(&path("/")).unwrap();
        machine.process();
        assert!(file.write_at(0, b"text").is_err(), "that process is gone");
        assert_eq!((machine.scratch(), machine.files(&path("/")).len()), ((0, 0), 0));
    }
}
