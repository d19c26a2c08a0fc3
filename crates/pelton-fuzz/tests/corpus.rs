//! Everything in the corpus, and every input that ever broke a law, with some hundred changes of them for each target: the same ones each time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pelton_fuzz::{TARGETS, Target, mutate::mutate, seeds};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// One at a time: memory is measured for the whole process.
static ONE: Mutex<()> = Mutex::new(());
/// Panics, also those that are caught by the code under test.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Changed inputs that are run for each target; `PELTON_FUZZ_CHANGES` says otherwise.
const CHANGES: usize = 600;

fn folder(kind: &str, target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target.name)
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("the folder can be read").path();
            (path.display().to_string(), std::fs::read(&path).expect("the file can be read"))
        })
        .collect();
    files.sort();
    files
}

fn run(target: &Target, name: &str, input: &[u8]) {
    let before = PANICS.load(Ordering::Relaxed);
    let ended = catch_unwind(AssertUnwindSafe(|| target.run(input)));
    let panics = PANICS.load(Ordering::Relaxed) - before;
    if ended.is_err() || panics > 0 {
        let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
        panic!("target `{}` broke a law at {name} (see above); the input is {hex}", target.name);
    }
}

fn check(target: &Target) {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        usual(info);
    }));
    let corpus: Vec<(String, Vec<u8>)> =
        ["corpus", "regressions"].iter().flat_map(|kind| files(&folder(kind, target))).collect();
    assert!(!corpus.is_empty(), "{} has no corpus", target.name);
    for (name, input) in &corpus {
        run(target, name, input);
    }
    let changes = std::env::var("PELTON_FUZZ_CHANGES").ok().and_then(|n| n.parse().ok()).unwrap_or(CHANGES);
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..changes {
        let (name, input) = &corpus[rng.random_range(0..corpus.len())];
        let (_, other) = &corpus[rng.random_range(0..corpus.len())];
        run(target, &format!("a change of {name}"), &mutate(input, other, &mut rng));
    }
}

#[test]
fn frames_hold() {
    check(&TARGETS[0]);
}
#[test]
fn bodies_hold() {
    check(&TARGETS[1]);
}
#[test]
fn handshakes_hold() {
    check(&TARGETS[2]);
}
#[test]
fn readers_hold() {
    check(&TARGETS[3]);
}
#[test]
fn clients_hold() {
    check(&TARGETS[4]);
}
#[test]
fn instances_hold() {
    check(&TARGETS[5]);
}

/// `PELTON_FUZZ_INPUT=TARGET=FILE` runs one input; with `PELTON_FUZZ_TRACE` the states say what happens.
#[test]
fn one_input_that_is_named() {
    let Ok(named) = std::env::var("PELTON_FUZZ_INPUT") else { return };
    let (target, file) = named.split_once('=').expect("TARGET=FILE");
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let input = std::fs::read(file).expect("the file can be read");
    run(Target::named(target).expect("a target's name"), file, &input);
}

/// With `PELTON_WRITE_CORPUS` they are written.
#[test]
fn the_seeds_are_in_the_corpus() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for target in &TARGETS {
        let folder = folder("corpus", target);
        let write = std::env::var_os("PELTON_WRITE_CORPUS").is_some();
        if write {
            std::fs::create_dir_all(&folder).expect("it can be made");
        }
        for (name, seed) in seeds::of(target.name) {
            let path = folder.join(format!("seed-{name}"));
            if write {
                std::fs::write(&path, &seed).expect("it can be written");
            }
            let there = std::fs::read(&path).unwrap_or_default();
            assert!(
                there == seed,
                "{} is not what seeds.rs makes; PELTON_WRITE_CORPUS=1 writes it",
                path.display()
            );
        }
    }
}
