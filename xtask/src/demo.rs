//! `cargo xtask demo`: indexes the Rust book with a sentence model, searches it, and classifies images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::places::{Places, publish, remove};
use crate::process::{self, cargo, step};
use crate::setup;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Index all books of the Rust documentation and not only the first
    #[arg(long, conflicts_with = "input")]
    all_books: bool,
    /// Index this folder and not the Rust book; may be given several times
    #[arg(long, value_name = "DIR")]
    input: Vec<PathBuf>,
    /// Where the index goes [default: .cache/demo/index, made anew each time]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Ask this and not the example questions; may be given several times
    #[arg(long, value_name = "TEXT")]
    question: Vec<String>,
    /// For `pelton index`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    rest: Vec<String>,
}

const BOOKS: [&str; 13] = [
    "book",
    "reference",
    "cargo",
    "edition-guide",
    "embedded-book",
    "nomicon",
    "rust-by-example",
    "rustc",
    "rustdoc",
    "style-guide",
    "clippy",
    "error_codes",
    "unstable-book",
];
const ABOUT_RUST: [&str; 3] = [
    "How do I share data between threads?",
    "When is a value dropped?",
    "What does the question mark operator do?",
];
const ABOUT_ANYTHING: [&str; 3] = ["What is this for?", "How do I install it?", "What are its limits?"];

pub(crate) fn run(places: &Places, arguments: &Arguments) -> Result<()> {
    setup::run(places)?;
    step("building pelton", || {
        process::run(&mut cargo(&places.root, ["build", "--release", "-p", "pelton-cli"]))
    })?;
    let pelton = target(places)?.join("release").join(format!("pelton{}", std::env::consts::EXE_SUFFIX));
    let (inputs, examples) = inputs(places, arguments)?;
    let index = match &arguments.output {
        Some(folder) => folder.clone(),
        None => emptied(places, "index")?,
    };

    println!("\n== Index: every passage goes through the sentence model ==");
    let mut command = Command::new(&pelton);
    command.arg("index");
    for input in &inputs {
        command.arg("--input").arg(input);
    }
    command.arg("--output").arg(&index).arg("--model").arg(places.model()).args(&arguments.rest);
    step("indexing", || process::run(&mut command))?;

    println!("\n== Search: the passages that answer best ==");
    let given: Vec<&str> = arguments.question.iter().map(String::as_str).collect();
    for question in if given.is_empty() { examples.as_slice() } else { &given } {
        println!();
        process::run(
            Command::new(&pelton).arg("search").arg(&index).arg(question).arg("--model").arg(places.model()),
        )?;
    }

    println!("\n== Classify: images of digits through a small network ==");
    let classified = emptied(places, "digits")?;
    let mut classify = Command::new(&pelton);
    classify.arg("classify").arg("--input").arg(places.digits()).arg("--output").arg(&classified);
    process::run(&mut classify)?;

    println!("\nThe index is in {}, the digits are in {}. Ask more:", index.display(), classified.display());
    println!(
        "  {} search {} QUESTION --model {}",
        pelton.display(),
        index.display(),
        places.model().display()
    );
    Ok(())
}

/// A folder of the demo's own, without what the last demo left there.
fn emptied(places: &Places, name: &str) -> Result<PathBuf> {
    let folder = places.cache().join("demo").join(name);
    remove(&folder)?;
    Ok(folder)
}

/// What is indexed, and what is asked about it.
fn inputs(places: &Places, arguments: &Arguments) -> Result<(Vec<PathBuf>, [&'static str; 3])> {
    if !arguments.input.is_empty() {
        return Ok((arguments.input.clone(), ABOUT_ANYTHING));
    }
    let sysroot =
        process::output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(&places.root))?;
    let html = Path::new(String::from_utf8_lossy(&sysroot).trim()).join("share/doc/rust/html");
    let wanted = if arguments.all_books { &BOOKS[..] } else { &BOOKS[..1] };
    let books: Vec<PathBuf> = wanted.iter().map(|b| html.join(b)).filter(|b| b.is_dir()).collect();
    if !books.is_empty() {
        return Ok((books, ABOUT_RUST));
    }
    println!(
        "\nThe Rust documentation is not installed (`rustup component add rust-docs`). Instead of it, the demo indexes"
    );
    println!("the Markdown files of the crates that the build fetched.");
    Ok((vec![markdown_of_crates(places)?], ABOUT_ANYTHING))
}

/// Copies the Markdown files of all dependencies into one folder.
fn markdown_of_crates(places: &Places) -> Result<PathBuf> {
    let metadata = metadata(places, &[])?;
    let temporary = places.temporary()?;
    let gathered = temporary.path().join("crates");
    let mut copied = 0;
    for package in metadata["packages"].as_array().into_iter().flatten().filter(|p| !p["source"].is_null()) {
        let texts = ["name", "version", "manifest_path"].map(|k| package[k].as_str());
        let [Some(name), Some(version), Some(manifest)] = texts else {
            continue;
        };
        let from = Path::new(manifest).parent().unwrap_or(Path::new("/"));
        copied += copy_markdown(from, &gathered.join(format!("{name}-{version}")))
            .with_context(|| format!("copying the Markdown of {name}"))?;
    }
    if copied == 0 {
        bail!("no crate has a Markdown file; say what to index with --input DIR");
    }
    println!("{copied} files.");
    let place = places.cache().join("demo/crates");
    publish(&gathered, &place)?;
    Ok(place)
}

fn copy_markdown(from: &Path, to: &Path) -> std::io::Result<u32> {
    let mut copied = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copied += copy_markdown(&path, &target)?;
        } else if kind.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("md")) {
            fs::create_dir_all(to)?;
            fs::copy(&path, &target)?;
            copied += 1;
        }
    }
    Ok(copied)
}

fn target(places: &Places) -> Result<PathBuf> {
    let metadata = metadata(places, &["--no-deps"])?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata does not name its target folder")
}

fn metadata(places: &Places, more: &[&str]) -> Result<Value> {
    let mut command = cargo(&places.root, ["metadata", "--format-version", "1"]);
    let text = process::output(command.args(more))?;
    serde_json::from_slice(&text).context("reading cargo metadata")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_is_gathered_with_its_folders() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("docs/empty")).unwrap();
        for name in ["README.md", "docs/a.MD", "src.rs", "docs/b.txt"] {
            fs::write(from.join(name), name).unwrap();
        }
        assert_eq!(copy_markdown(&from, &to).unwrap(), 2);
        assert_eq!(fs::read_to_string(to.join("docs/a.MD")).unwrap(), "docs/a.MD");
        assert!(!to.join("docs/empty").exists());
    }
}
