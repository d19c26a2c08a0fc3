//! The pipelines with their real models: what is found makes sense.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use support::{World, digits, json_lines};

/// Of these questions, the share whose document is among the best five chunks.
fn recall(world: &World, index: &str, questions: &[(String, String)]) -> f64 {
    let mut found = 0;
    for (question, document) in questions {
        let ran = world.run(&["search", index, question, "--json"]).succeeded();
        let hits: Vec<serde_json::Value> =
            ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(hits.len(), 5);
        let hit = hits.iter().any(|h| h["uri"].as_str().unwrap().ends_with(document.as_str()));
        if !hit {
            println!("not found: {question} ({document}); best: {}", hits[0]["uri"]);
        }
        found += usize::from(hit);
    }
    found as f64 / questions.len() as f64
}

#[test]
fn questions_about_this_project_find_its_documents() {
    let world = World::new();
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let documents: Vec<String> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs"]
        .iter()
        .flat_map(|name| ["--input".to_owned(), root.join(name).to_str().unwrap().to_owned()])
        .collect();
    let mut arguments = vec!["index", "--output", "{}/index"];
    arguments.extend(documents.iter().map(String::as_str));
    let ran = world.run(&arguments).succeeded();
    assert!(ran.stderr.contains("finished"), "{}", ran.stderr);
    let questions = [
        ("How do callers tell an instance how many rows they would send?", "001-announce-and-pull.md"),
        ("Why is there no separate worker binary?", "002-one-program.md"),
        ("Why is the state machine kept behind a mutex and not a channel?", "003-state-behind-a-lock.md"),
        ("How is simulated time made deterministic?", "004-simulation.md"),
        ("What makes a request's identity the same after a restart?", "005-request-ids.md"),
        ("How do I train the handwritten digits network?", "CONTRIBUTING.md"),
        ("Which interpreter and toolchain must be installed to try it?", "README.md"),
    ];
    let questions: Vec<(String, String)> = questions.map(|(q, d)| (q.to_owned(), d.to_owned())).to_vec();
    let recall = recall(&world, "{}/index", &questions);
    println!("recall over this project's documents: {recall:.2}");
    assert!(recall >= 0.8, "recall is {recall}");
}

/// The Rust book, where the toolchain has brought it; other machines have the test above.
#[test]
fn questions_about_the_book_find_its_chapters() {
    let Some(book) = book() else {
        println!("the toolchain has no documentation (component rust-docs); nothing to look for");
        return;
    };
    let world = World::new();
    // The chapters that the questions are about, and as many others.
    let questions = book_questions();
    let chapters: Vec<String> = chapters(&book, &questions);
    let mut arguments = vec!["index".to_owned(), "--output".into(), "{}/index".into()];
    arguments.extend(chapters.iter().flat_map(|c| ["--input".to_owned(), c.clone()]));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    world.run(&arguments).succeeded();
    let recall = recall(&world, "{}/index", &questions);
    println!("recall over {} chapters of the book: {recall:.2}", chapters.len());
    assert!(recall >= 0.8, "recall is {recall}");
}

fn book() -> Option<PathBuf> {
    let output = std::process::Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    let book = Path::new(sysroot.trim()).join("share/doc/rust/html/book");
    book.is_dir().then_some(book)
}

fn book_questions() -> Vec<(String, String)> {
    let text = include_str!("../../../models/questions/the-book.json");
    let json: serde_json::Value = serde_json::from_str(text).unwrap();
    let list = json["pairs"].as_array().expect("a list of questions");
    let text =
        |v: &serde_json::Value, key: &str| v[key].as_str().expect("a question and a document").to_owned();
    list.iter().map(|q| (text(q, "question"), text(q, "document"))).collect()
}

/// The expected chapters and every fourth of the others: enough to choose wrongly from, little enough to embed in a test.
fn chapters(book: &Path, questions: &[(String, String)]) -> Vec<String> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(book).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| {
        p.file_name().unwrap().to_str().unwrap().starts_with("ch")
            && p.extension().is_some_and(|e| e == "html")
    });
    all.sort();
    let wanted = |p: &Path| questions.iter().any(|(_, d)| p.to_str().unwrap().ends_with(d.as_str()));
    let chosen = all.iter().enumerate().filter(|(i, p)| wanted(p) || i % 4 == 0);
    chosen.map(|(_, p)| p.to_str().unwrap().to_owned()).collect()
}

#[test]
fn digits_are_recognised() {
    let images = digits();
    let labels = std::fs::read_to_string(images.join("labels.json")).unwrap();
    let labels: BTreeMap<String, i64> = serde_json::from_str(&labels).expect("labels by file name");
    let world = World::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/digits/digits.onnx");
    let input = images.to_str().unwrap();
    world.run(&["classify", "--input", input, "--output", "{}/digits", "--model", model]).succeeded();
    let results = json_lines(&world.path("digits"), "part-");
    assert_eq!(results.len(), labels.len());
    let right =
        results.iter().filter(|r| labels[r["uri"].as_str().unwrap()] == r["label"].as_i64().unwrap()).count();
    let accuracy = right as f64 / labels.len() as f64;
    println!("accuracy on {} held-out images: {accuracy:.4}", labels.len());
    assert!(accuracy >= 0.95, "accuracy is {accuracy}");
    assert!(results.iter().all(|r| (0.0..=1.0).contains(&r["score"].as_f64().unwrap())));
}
