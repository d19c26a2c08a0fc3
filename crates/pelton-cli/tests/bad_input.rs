//! Whatever is wrong is said once, clearly, with the next step; and nothing that was written is lost.

mod support;

use std::fs;

use support::World;

/// A world with a document and a quick scripted embedder.
fn world() -> World {
    let world = World::new();
    world.write("docs/good.md", "# Good\n\nA good document about flow control.");
    world.scripted("");
    world
}

const INDEX: [&str; 7] =
    ["index", "--input", "{}/docs", "--output", "{}/index", "--service", "{}/embedder.toml"];

fn index(world: &World, more: &[&str]) -> support::Ran {
    world.run(&[&INDEX[..], more].concat())
}

#[test]
fn bad_documents_become_error_rows() {
    let world = world();
    world.write("docs/binary.txt", [0, 159, 146, 150, 0, 1, 2]);
    world.write("docs/latin1.txt", b"caf\xe9 is not UTF-8");
    world.write("docs/empty.md", "");
    world.write("docs/large.txt", "word ".repeat(40_000));
    std::os::unix::fs::symlink("nowhere", world.path("docs/dangling.md")).unwrap();
    let ran = index(&world, &["--max-file-size", "100KiB"]).succeeded();
    assert!(ran.stderr.contains("5 rows could not be processed"), "{}", ran.stderr);
    let errors: Vec<String> =
        world.errors("index").iter().map(|e| format!("{} {}", e["row"], e["message"])).collect();
    for (document, said) in [
        ("binary.txt", "text"),
        ("latin1.txt", "UTF-8"),
        ("empty.md", "empty"),
        ("large.txt", "--max-file-size"),
        ("dangling.md", "No such file"),
    ] {
        let found = errors.iter().any(|e| e.contains(document) && e.contains(said));
        assert!(found, "no error about {document} that says `{said}`:\n{}", errors.join("\n"));
    }
    assert_eq!(world.chunks("index").len(), 1, "the good document is indexed");
}

#[test]
fn a_bad_document_fails_the_job_if_asked_to() {
    let world = world();
    world.write("docs/empty.md", "");
    index(&world, &["--on-error", "fail"]).refused(&["empty.md"]);
}

#[test]
fn a_200_mb_file_is_named_with_its_limit() {
    let world = world();
    let file = fs::File::create(world.path("docs/huge.txt")).unwrap();
    file.set_len(200 << 20).unwrap();
    index(&world, &[]).succeeded();
    let errors = world.errors("index");
    assert_eq!(errors.len(), 1);
    assert!(errors[0]["message"].as_str().unwrap().contains("64 MiB"), "{}", errors[0]);
}

#[test]
fn declarations_that_cannot_work_are_refused() {
    let world = world();
    for (declaration, expected) in [
        ("name = \"embedder\"\nreplicas = 2", "unknown field `replicas`"),
        ("name = \"embedder\"\n[batch]\nrows = 0", "`batch.rows` must be"),
        ("name = \"embedder\"\nkind = \"magic\"", "kind `magic` is not known"),
        ("name = \"classifier\"", "calls `embedder`"),
        ("name = \"embedder\"\nkind = \"scripted\"\n[options]\nlatencie = \"1s\"", "latencie"),
        ("name = \"embedder\"\nkind = \"scripted\"\n[options]\nopen_error = \"no luck\"", "no luck"),
        ("name = ", "embedder.toml"),
    ] {
        world.write("embedder.toml", declaration);
        index(&world, &[]).refused(&[expected]);
    }
    index(&world, &["--service", "{}/none.toml"]);
    world.run(&[&INDEX[..6], &["{}/none.toml"]].concat()).refused(&["none.toml", "cannot be read"]);
}

#[test]
fn a_missing_or_wrong_model_is_named_with_the_next_step() {
    let world = world();
    let none = ["index", "--input", "{}/docs", "--output", "{}/index", "--model", "{}/nowhere"];
    world.run(&none).refused(&["nowhere", "cargo xtask setup"]);
    world
        .write("embedder.toml", format!("name = \"embedder\"\n[options]\ndigest = \"{}\"\n", "0".repeat(64)));
    index(&world, &[]).refused(&["digest", "model.safetensors"]);
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let world = world();
    world.write("index", "a file where a folder should be");
    index(&world, &[]).refused(&["index"]);
    fs::remove_file(world.path("index")).unwrap();
    world.write("index/part-00001-0000-000001.parquet", "somebody else's");
    index(&world, &[]).refused(&["no run of this command wrote", "--fresh"]);
    assert!(world.path("index/part-00001-0000-000001.parquet").exists());
}

#[test]
fn an_output_that_was_begun_with_other_settings_is_not_mixed() {
    let world = world();
    index(&world, &[]).succeeded();
    index(&world, &["--chunk-tokens", "64"]).refused(&["--chunk-tokens 128, not 64", "--fresh"]);
    index(&world, &["--chunk-tokens", "64", "--fresh"]).succeeded();
    assert_eq!(world.chunks("index").len(), 1);
}

#[test]
fn an_input_that_is_not_there_is_named() {
    let world = world();
    fs::remove_dir_all(world.path("docs")).unwrap();
    index(&world, &[]).refused(&["docs"]);
    fs::create_dir(world.path("docs")).unwrap();
    index(&world, &[]).refused(&["docs", "extension"]);
}

#[test]
fn two_runs_on_one_output_do_not_mix() {
    let world = world();
    world.documents(20, 10);
    world.scripted("latency = \"50ms\"");
    let first = world.start(&INDEX);
    world.instances_after(1);
    index(&world, &[]).refused(&[&first.pid().to_string()]);
    first.wait().succeeded();
    assert!(world.chunks("index").values().all(|n| *n == 1));
}

#[test]
fn a_damaged_checkpoint_is_refused_and_the_one_before_is_offered() {
    let world = world();
    world.documents(40, 10);
    world.scripted("latency = \"20ms\"");
    let slow = [&INDEX[..], &["--checkpoint-interval", "100ms"]].concat();
    let job = world.start(&slow);
    world.instances_after(60);
    support::signal(job.pid(), "INT");
    assert_eq!(job.wait().code, Some(75));
    let checkpoints = world.path("index/_pelton/checkpoints");
    let mut folders: Vec<_> =
        fs::read_dir(&checkpoints).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    let newest = folders.last().unwrap();
    let victim = fs::read_dir(newest)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.metadata().unwrap().len() > 0 && !p.ends_with("manifest.json"));
    let victim = victim.expect("a checkpoint has files");
    let mut bytes = fs::read(&victim).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&victim, bytes).unwrap();
    let name = newest.file_name().unwrap().to_str().unwrap();
    let number: u64 = name.rsplit('-').next().unwrap().parse().unwrap();
    let before = (number - 1).to_string();
    world.run(&slow).refused(&[name, &format!("--from-checkpoint {before}")]);

    // Going back withdraws what came after, and does it again: every chunk once.
    world.scripted("");
    world.run(&[&INDEX[..], &["--from-checkpoint", &before]].concat()).succeeded();
    let chunks = world.chunks("index");
    assert!(chunks.len() > 300 && chunks.values().all(|n| *n == 1), "{} chunks", chunks.len());
}

#[test]
fn searching_what_is_no_index_says_so() {
    let world = world();
    fs::create_dir(world.path("empty")).unwrap();
    world.run(&["search", "{}/empty", "anything"]).refused(&["pelton index"]);
    world.run(&["search", "{}/nowhere", "anything"]).refused(&["nowhere"]);
    // Made by the scripted embedder: its vectors mean nothing to the real one.
    index(&world, &[]).succeeded();
    world.run(&["search", "{}/index", "anything"]).refused(&["model"]);
}

#[test]
fn corrupt_images_become_error_rows() {
    let world = world();
    world.write("images/bad.png", b"\x89PNG\r\n\x1a\nand then nothing");
    world.write("images/text.png", "not an image");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/digits/digits.onnx");
    let classify = ["classify", "--input", "{}/images", "--output", "{}/digits", "--model", model];
    world.run(&classify).succeeded();
    let errors = world.errors("digits");
    assert_eq!(errors.len(), 2, "{errors:?}");

    // A good one, so that the model is needed.
    fs::copy(support::digits().join("digit-0002.png"), world.path("images/good.png")).unwrap();
    world
        .run(&["classify", "--input", "{}/images", "--output", "{}/other", "--model", "{}/none.onnx"])
        .refused(&["none.onnx"]);
}

#[test]
fn explain_shows_the_graph_and_runs_nothing() {
    let world = world();
    let ran = index(&world, &["--explain"]).succeeded();
    for part in ["documents", "extract", "chunk", "embedder.embed", "exactly", "instances: 2", "up to 4 rows"]
    {
        assert!(ran.stdout.contains(part), "`{part}` is missing in:\n{}", ran.stdout);
    }
    assert!(!world.path("index").exists());
}
