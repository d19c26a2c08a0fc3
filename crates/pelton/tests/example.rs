//! The README's first example, run as a user runs it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Cargo builds examples for the tests, next to the folder that these run from.
fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples").join(name)
}

#[test]
fn the_first_example_shouts() {
    let world = tempfile::tempdir().unwrap();
    fs::write(world.path().join("in.txt"), "one line\n\nand another\n").unwrap();
    let run =
        || Command::new(example("shout")).args(["in.txt", "out"]).current_dir(world.path()).output().unwrap();
    let output = run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let parts = || {
        let files = fs::read_dir(world.path().join("out")).unwrap().map(|e| e.unwrap().path());
        files.filter(|p| p.is_file()).collect::<Vec<_>>()
    };
    let texts: Vec<String> = parts().iter().map(|p| fs::read_to_string(p).unwrap()).collect();
    assert_eq!(
        texts.concat(),
        "{\"line\":1,\"text\":\"one line\",\"loud\":\"ONE LINE!!\"}\n{\"line\":3,\"text\":\"and another\",\"loud\":\"AND ANOTHER!!\"}\n"
    );
    let before = parts();
    assert!(String::from_utf8_lossy(&run().stdout).contains("AlreadyFinished"));
    assert_eq!(parts(), before);
}

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let readme = fs::read_to_string(format!("{root}/README.md")).unwrap();
    let example = fs::read_to_string(format!("{root}/crates/pelton/examples/shout.rs")).unwrap();
    let service = example.find("struct Shout").unwrap()..example.find("fn main").unwrap();
    assert!(
        readme.contains(example[service].trim()),
        "the service in the README is not the one of the example"
    );
}
