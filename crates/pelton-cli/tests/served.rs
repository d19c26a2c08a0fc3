//! Certificates, instances that are served on their own, and a job that calls them: as a user does it.

mod support;

use std::fs;

use support::{Running, World, signal, wait_for};

const INDEX: [&str; 7] =
    ["index", "--input", "{}/docs", "--output", "{}/index", "--service", "{}/endpoints.toml"];

/// A server over TLS, and where it is.
fn serve(world: &World, name: &str, more: &[&str]) -> (Running, String) {
    let common =
        ["serve", "--declaration", "{}/embedder.toml", "--listen", "127.0.0.1:0", "--tls", "{}/certificates"];
    let token = ["--token-file", "{}/token"];
    let running = world.start_saying(&[&common[..], &token, more].concat(), name);
    let at = wait_for("a server", || {
        let said = fs::read_to_string(world.path(name)).unwrap();
        let line = said.lines().find(|l| l.contains(" is served at "))?;
        Some(line.rsplit(' ').next().unwrap().to_owned())
    });
    (running, at)
}

fn endpoints(world: &World, endpoints: &[&str], access: &str) {
    let access = access.replace("{}", world.path("").to_str().unwrap());
    world.write(
        "endpoints.toml",
        format!("name = \"embedder\"\nendpoints = {endpoints:?}\n[access]\n{access}\n"),
    );
}

const ACCESS: &str = "token_file = \"{}token\"\ncertificates = \"{}certificates\"";

#[test]
fn a_job_calls_what_is_served_over_tls() {
    let world = World::new();
    world.documents(12, 40);
    world.write(
        "embedder.toml",
        "name = \"embedder\"\nkind = \"scripted\"\n[batch]\nrows = 4\n[options]\nlatency = \"500ms\"\n",
    );
    let made = world.run(&["certificates", "--folder", "{}/certificates", "--host", "127.0.0.1"]).succeeded();
    for part in ["server.pem: for 127.0.0.1, valid until", "(365 days)", "ca-key.pem stays here"] {
        assert!(made.stdout.contains(part), "`{part}` is missing in:\n{}", made.stdout);
    }
    let again = world.run(&["certificates", "--folder", "{}/certificates", "--days", "30"]).succeeded();
    assert!(again.stdout.contains("(kept)") && again.stdout.contains("for 127.0.0.1"), "{}", again.stdout);

    let (first, a) = serve(&world, "first", &["--require-certificate"]);
    let (second, b) = serve(&world, "second", &["--require-certificate"]);
    let said = fs::read_to_string(world.path("first")).unwrap();
    assert!(said.contains("made a token") && said.contains("callers have to show one"), "{said}");
    let secret = fs::read_to_string(world.path("token")).unwrap();
    endpoints(&world, &[&a, &b], ACCESS);
    let plan = world.run(&[&INDEX[..], &["--explain"]].concat()).succeeded().stdout;
    for part in [a.as_str(), &b, "starts no instance", "/token", "ca.pem", "client.pem"] {
        assert!(plan.contains(part), "`{part}` is missing in:\n{plan}");
    }
    assert!(!plan.contains(secret.trim()));

    let job = world.start(&INDEX);
    wait_for("the status of both endpoints", || {
        let status = world.run(&["status"]).stdout;
        let shown = status.contains(&format!("at {a}")) && status.contains(&format!("at {b}"));
        (shown && status.contains("2 of 2 ready")).then_some(())
    });
    job.wait().succeeded();
    let chunks = world.chunks("index");
    assert!(chunks.len() >= 12 && chunks.values().all(|n| *n == 1), "{chunks:?}");
    assert!(world.errors("index").is_empty());

    for (running, said) in [(first, "first"), (second, "second")] {
        signal(running.pid(), "INT");
        running.wait().succeeded();
        let said = fs::read_to_string(world.path(said)).unwrap();
        assert!(said.contains("finishing what is running") && said.contains("has left: drained"), "{said}");
        assert!(!said.contains(secret.trim()), "{said}");
    }
}

#[test]
fn rows_from_a_shell_are_answered() {
    let world = World::new();
    world.documents(40, 20);
    world.scripted("latency = \"300ms\"");
    world.run(&["certificates", "--folder", "{}/certificates", "--host", "127.0.0.1"]).succeeded();
    let (_server, at) = serve(&world, "server", &[]);
    endpoints(&world, &[&at], ACCESS);
    let job = world.start(&[
        "index",
        "--input",
        "{}/docs",
        "--output",
        "{}/index",
        "--service",
        "{}/embedder.toml",
    ]);
    let name = wait_for("the job", || {
        let status = world.status();
        Some(status.first()?["job"].as_str()?.to_owned())
    });
    let of_job = format!("{name}/embedder");
    for service in ["{}/endpoints.toml", &of_job] {
        let methods = world.run(&["call", service, "--patience", "60s"]).succeeded().stdout;
        assert!(methods.starts_with("embed(text: Utf8) -> (embedding: "), "{methods}");
        let rows = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n\n{\"text\": \"three\"}\n";
        let answers = world.run_with(&["call", service, "embed"], rows).succeeded().stdout;
        let answers: Vec<serde_json::Value> =
            answers.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(answers.len(), 3);
        assert!(
            answers.iter().all(|a| a["embedding"].as_array().is_some_and(|e| !e.is_empty())),
            "{answers:?}"
        );
    }
    let call = |arguments: &[&str], rows: &str| world.run_with(&[&["call"], arguments].concat(), rows);
    call(&["{}/endpoints.toml", "embed"], "{\"txt\": \"one\"}").refused(&["takes (text: Utf8)", "txt"]);
    call(&["{}/endpoints.toml", "embed"], "{").refused(&["takes (text: Utf8)"]);
    call(&["{}/endpoints.toml", "enbed"], "").refused(&["`enbed`", "it has: embed"]);
    call(&["{}/endpoints.toml", "embed", "--timeout", "20ms"], "{\"text\": \"one\"}").refused(&["deadline"]);
    call(&["{}/embedder.toml"], "").refused(&["no `endpoints`", "JOB/SERVICE"]);
    call(&["embedder"], "").refused(&["neither JOB/SERVICE nor FILE.toml"]);
    call(&[&format!("{name}/other")], "").refused(&["no service `other`", "it has: embedder"]);
    call(&["nobody/embedder", "--patience", "50ms"], "").refused(&["no job `nobody`", &name]);
    job.kill();
}

#[test]
fn what_cannot_be_served_or_called_is_refused() {
    let world = World::new();
    world.documents(1, 1);
    world.write("embedder.toml", "name = \"embedder\"\nkind = \"scripted\"\n");
    world.write("other.toml", "name = \"other\"\n");
    let serve = |more: &[&str]| world.run(&[&["serve", "--declaration"], more].concat());
    serve(&["{}/embedder.toml", "--listen", "0.0.0.0:0", "--token-file", "{}/token"])
        .refused(&["--tls", "--insecure"]);
    serve(&["{}/embedder.toml", "--listen", "127.0.0.1:0"]).refused(&["--token-file"]);
    serve(&["{}/other.toml", "--listen", "127.0.0.1:0", "--token-file", "{}/token"])
        .refused(&["`other`", "pelton::serve"]);
    serve(&["{}/embedder.toml", "--listen", "127.0.0.1", "--token-file", "{}/token"]).refused(&["no port"]);
    serve(&[
        "{}/embedder.toml",
        "--listen",
        "127.0.0.1:0",
        "--tls",
        "{}/nothing",
        "--token-file",
        "{}/token",
    ])
    .refused(&["nothing/server.pem", "`pelton certificates`"]);
    serve(&[
        "{}/embedder.toml",
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "127.0.0.1:0",
        "--token-file",
        "{}/token",
    ])
    .refused(&["1 --declaration and 2 --listen"]);
    world.write("short", "abc");
    serve(&["{}/embedder.toml", "--listen", "127.0.0.1:0", "--token-file", "{}/short"])
        .refused(&["16 to 1024"]);
    world.write(
        "broken.toml",
        "name = \"embedder\"\nkind = \"scripted\"\n[options]\nopen_error = \"no such model\"\n",
    );
    serve(&["{}/broken.toml", "--listen", "127.0.0.1:0", "--token-file", "{}/token"])
        .refused(&["no such model"]);

    world.run(&["certificates", "--folder", "{}/c"]).refused(&["--host"]);
    endpoints(&world, &["tls://127.0.0.1:1"], "token_file = \"{}nowhere\"\nca = \"{}ca.pem\"");
    world.run(&INDEX).refused(&["nowhere", "service `embedder`"]);
    endpoints(&world, &["tls://127.0.0.1:1"], "token_file = \"{}token\"\nca = \"{}ca.pem\"");
    world.run(&INDEX).refused(&["ca.pem", "cannot be read"]);
    endpoints(&world, &["tcp://10.0.0.1:1"], "token_file = \"{}token\"");
    world.run(&INDEX).refused(&["access.insecure"]);
    endpoints(&world, &["unix:/nowhere"], "token_file = \"{}token\"");
    world.run(&[&INDEX[..], &["--instances", "2"]].concat()).refused(&["`instances`"]);
}
