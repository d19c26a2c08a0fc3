//! The example that passes references, as a user runs it: pictures in a folder, in S3 and behind a plain HTTP server.

#[path = "../../pelton-objects/tests/objects/server.rs"]
#[allow(dead_code, reason = "the tests of the store use more of it")]
mod server;
#[path = "../../pelton-objects/tests/objects/web.rs"]
#[allow(dead_code, reason = "the tests of the reader use more of it")]
mod web;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use server::{SECRET, Server};
use web::{Fault, Web};

const PICTURES: usize = 24;
/// Pixels a side.
const SIDE: usize = 400;

/// Every third is light.
fn picture(i: usize) -> Vec<u8> {
    let value = if i.is_multiple_of(3) { 200 } else { 20 };
    let mut pgm = format!("P5 {SIDE} {SIDE} 255\n").into_bytes();
    pgm.resize(pgm.len() + SIDE * SIDE, value);
    pgm
}

fn name(i: usize) -> String {
    format!("picture {i:02}.pgm")
}

/// Cargo builds examples for the tests, next to the folder that these run from.
fn brightness(world: &Path, arguments: &[&str], environment: &[(&str, String)]) -> String {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let mut command = Command::new(path.join("examples/brightness"));
    fs::create_dir_all(world.join("run")).unwrap();
    command.args(arguments).current_dir(world).env("XDG_RUNTIME_DIR", world.join("run"));
    let output = command.envs(environment.iter().map(|(k, v)| (*k, v.as_str()))).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains(SECRET), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The rows of an output.
fn lines(folder: PathBuf) -> Vec<Value> {
    let files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let texts = files.filter(|p| p.is_file()).map(|p| fs::read_to_string(p).unwrap()).collect::<Vec<_>>();
    let parsed = texts.iter().flat_map(|t| t.lines()).map(|l| serde_json::from_str(l).unwrap());
    let mut rows: Vec<Value> = parsed.collect();
    rows.sort_by_key(|r| r["object"]["uri"].as_str().unwrap_or_default().to_owned());
    rows
}

/// All pictures but these, and what they look like.
#[track_caller]
fn judged(rows: &[Value], without: &[usize]) {
    let expected: Vec<usize> = (0..PICTURES).filter(|i| !without.contains(i)).collect();
    assert_eq!(rows.len(), expected.len());
    for (row, i) in rows.iter().zip(expected) {
        assert!(row["object"]["uri"].as_str().unwrap().ends_with(&format!("/picture%20{i:02}.pgm")), "{row}");
        assert_eq!(row["looks"], if i.is_multiple_of(3) { "light" } else { "dark" }, "{row}");
    }
}

/// Some hundred bytes a row passed each operator, and no picture.
#[track_caller]
fn nothing_large_passed(said: &str) {
    let mut nodes = 0;
    for line in said.lines().filter(|l| l.ends_with(" bytes")) {
        let bytes: u64 = line.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
        assert!(bytes < 1024 * PICTURES as u64, "{said}");
        nodes += 1;
    }
    assert!(nodes >= 3, "{said}");
}

/// What a state folder or an output holds is small, too, and holds no secret.
fn nothing_large_is_kept(folder: &Path) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let Ok(content) = fs::read(entry.path()) else { continue };
            assert!(content.len() < SIDE * SIDE, "{} has {} bytes", entry.path().display(), content.len());
            assert!(!String::from_utf8_lossy(&content).contains(SECRET), "{}", entry.path().display());
        }
    }
}

#[test]
fn pictures_of_a_folder_and_references_from_an_output() {
    let world = tempfile::tempdir().unwrap();
    let at = |name: &str| world.path().join(name);
    fs::create_dir(at("in")).unwrap();
    for i in 0..PICTURES {
        fs::write(at("in").join(name(i)), picture(i)).unwrap();
    }
    fs::write(at("in/no picture.pgm"), "P6").unwrap();
    let said = brightness(world.path(), &["in", "out"], &[]);
    nothing_large_passed(&said);
    nothing_large_is_kept(&at(".pelton"));
    let rows = lines(at("out"));
    judged(&rows, &[]);
    assert!(rows.iter().all(|r| r["object"]["media_type"] == "image/x-portable-graymap"));
    let errors = lines(at("out/errors"));
    assert_eq!(errors.len(), 1);
    assert!(errors[0]["message"].as_str().unwrap().contains("no PGM picture"), "{errors:?}");

    // The references in the output are references again, of the versions that were listed.
    let world = tempfile::tempdir().unwrap();
    let references: Vec<String> = rows.iter().map(|r| r["object"].to_string() + "\n").collect();
    fs::write(world.path().join("references.jsonl"), references.concat()).unwrap();
    fs::write(at("in").join(name(5)), picture(0)).unwrap();
    fs::remove_file(at("in").join(name(7))).unwrap();
    let root = format!("file://{}", at("in").display());
    let said = brightness(world.path(), &["references.jsonl", "out", &root], &[]);
    nothing_large_passed(&said);
    judged(&lines(world.path().join("out")), &[5, 7]);
    let errors = lines(world.path().join("out/errors"));
    let mut messages: Vec<&str> = errors.iter().map(|e| e["message"].as_str().unwrap()).collect();
    messages.sort_unstable();
    let [changed, gone] = messages[..] else { panic!("{errors:?}") };
    let listed = rows[5]["object"]["version"].as_str().unwrap();
    for part in ["/picture%2005.pgm", "it changed since it was listed", listed, "list it again"] {
        assert!(changed.contains(part), "{changed}");
    }
    assert!(gone.contains("/picture%2007.pgm") && gone.contains("it is not there"), "{gone}");
}

#[test]
fn pictures_of_a_bucket() {
    let Some(server) = Server::start() else { return };
    for i in 0..PICTURES {
        let path = format!("/bucket/pictures/{}", name(i).replace(' ', "%20"));
        let answer = server.send(&format!("PUT {path}"), &picture(i));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let environment = [
        ("AWS_ENDPOINT_URL", server.endpoint()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "me".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
    ];
    let world = tempfile::tempdir().unwrap();
    let said = brightness(world.path(), &["s3://bucket/pictures", "out"], &environment);
    nothing_large_passed(&said);
    nothing_large_is_kept(world.path());
    judged(&lines(world.path().join("out")), &[]);
    assert!(lines(world.path().join("out/errors")).is_empty());
}

#[test]
fn pictures_of_a_plain_server_that_fails_now_and_then() {
    let web = Web::start();
    let world = tempfile::tempdir().unwrap();
    let mut references = String::new();
    for i in 0..PICTURES {
        let path = format!("/pictures/{}", name(i).replace(' ', "%20"));
        web.put(&path, picture(i), &i.to_string());
        let line =
            serde_json::json!({ "uri": web.url(&path), "version": format!("\"{i}\"") }).to_string() + "\n";
        references += &line;
    }
    fs::write(world.path().join("references.jsonl"), &references).unwrap();
    web.fail([Fault::Status(500), Fault::Cut(1000), Fault::Status(429), Fault::Cut(0), Fault::Status(503)]);
    let said = brightness(world.path(), &["references.jsonl", "out", &web.url("/pictures")], &[]);
    nothing_large_passed(&said);
    nothing_large_is_kept(world.path());
    judged(&lines(world.path().join("out")), &[]);
    assert!(lines(world.path().join("out/errors")).is_empty());
    assert_eq!(web.requests().len(), PICTURES + 5);
}
