//! Which crate may know which: dependencies point one way.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Each crate with all crates of this workspace that it may depend on. Siblings (client, instance, control, dataflow)
/// never know one another: that is how "deployed, scaled and recovered apart" is kept by the compiler.
const MAY_KNOW: [(&str, &[&str]); 27] = [
    ("pelton-core", &[]),
    ("pelton-policy", &["pelton-core"]),
    ("pelton-wire", &["pelton-core"]),
    ("pelton-env", &["pelton-core"]),
    ("pelton-scripted", &["pelton-core"]),
    ("pelton-link", &["pelton-core", "pelton-env", "pelton-wire"]),
    ("pelton-tls", &["pelton-core", "pelton-env", "pelton-wire"]),
    ("pelton-discovery", &["pelton-core", "pelton-env", "pelton-link", "pelton-policy", "pelton-wire"]),
    ("pelton-client", &["pelton-core", "pelton-env", "pelton-link", "pelton-policy", "pelton-wire"]),
    ("pelton-instance", &["pelton-core", "pelton-env", "pelton-link", "pelton-policy", "pelton-wire"]),
    (
        "pelton-control",
        &["pelton-core", "pelton-discovery", "pelton-env", "pelton-link", "pelton-policy", "pelton-wire"],
    ),
    // What a program links that calls services and is no job: nothing that runs, starts or supervises anything.
    (
        "pelton-call",
        &[
            "pelton-client",
            "pelton-core",
            "pelton-discovery",
            "pelton-env",
            "pelton-link",
            "pelton-policy",
            "pelton-tls",
            "pelton-wire",
        ],
    ),
    // Another host's half of control: it knows nothing of callers, nor they of it.
    ("pelton-agent", &["pelton-control", "pelton-core", "pelton-discovery", "pelton-env"]),
    ("pelton-jvm", &["pelton-agent", "pelton-call", "pelton-core", "pelton-discovery"]),
    ("pelton-dataflow", &["pelton-core", "pelton-env"]),
    ("pelton-remote", &["pelton-core", "pelton-env", "pelton-policy", "pelton-wire"]),
    ("pelton-files", &["pelton-core", "pelton-dataflow", "pelton-env"]),
    ("pelton-objects", &["pelton-core", "pelton-dataflow", "pelton-env", "pelton-files", "pelton-policy"]),
    ("pelton-postgres", &["pelton-core", "pelton-dataflow", "pelton-env"]),
    // What Pelton is measured beside knows nothing of it.
    ("pelton-peers", &[]),
    ("pelton-text", &["pelton-core", "pelton-dataflow"]),
    ("pelton-models", &["pelton-core", "pelton-dataflow"]),
    (
        "pelton",
        &[
            "pelton-call",
            "pelton-client",
            "pelton-control",
            "pelton-core",
            "pelton-dataflow",
            "pelton-env",
            "pelton-files",
            "pelton-instance",
            "pelton-objects",
            "pelton-policy",
            "pelton-postgres",
            "pelton-remote",
            "pelton-scripted",
            "pelton-tls",
            "pelton-wire",
        ],
    ),
    ("pelton-cli", &["pelton", "pelton-models", "pelton-text"]),
    ("pelton-python", &["pelton", "pelton-cli", "pelton-core", "pelton-dataflow", "pelton-text"]),
    ("pelton-trials", &["pelton", "pelton-core", "pelton-models", "pelton-peers"]),
    ("xtask", &[]),
];

/// The simulator and the fuzz targets put the parts together as they like; nothing depends on them.
const ANYTHING: [&str; 2] = ["pelton-fuzz", "pelton-sim"];

/// What only these may link: heavy crates stay at the edge.
const HEAVY: [(&str, &[&str]); 17] = [
    ("arrow-pyarrow", &["pelton-python"]),
    ("pyo3", &["pelton-python"]),
    ("rcgen", &["pelton-peers", "pelton-tls"]),
    ("jni", &["pelton-jvm"]),
    ("candle-core", &["pelton-models"]),
    ("tokenizers", &["pelton-models", "pelton-text"]),
    ("rten", &["pelton-models"]),
    ("parquet", &["pelton-files", "pelton-objects"]),
    ("object_store", &["pelton-objects"]),
    ("reqwest", &["pelton-objects"]),
    ("tokio-postgres", &["pelton-postgres"]),
    ("hyper", &["pelton-peers", "pelton-remote"]),
    ("libfuzzer-sys", &["pelton-fuzz"]),
    ("memmap2", &["pelton-env"]),
    ("prost", &["pelton-peers", "pelton-remote"]),
    ("tonic", &["pelton-peers"]),
    ("tokio-rustls", &["pelton-postgres", "pelton-remote", "pelton-tls"]),
];

/// Each crate of the workspace with the names of what it depends on, tests aside.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let name = |v: &serde_json::Value| v["name"].as_str().expect("everything has a name").to_owned();
    let packages = metadata["packages"].as_array().expect("there are packages");
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().expect("a list").iter();
            (name(package), all.filter(|d| d["kind"] != "dev").map(name).collect())
        })
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    let may_know: BTreeMap<&str, &[&str]> = MAY_KNOW.into_iter().collect();
    let all = dependencies();
    let ours: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    for (package, known) in &all {
        if ANYTHING.contains(&package.as_str()) {
            continue;
        }
        let allowed = may_know.get(package.as_str());
        let allowed =
            allowed.unwrap_or_else(|| panic!("{package} is new: say in this test whom it may know"));
        for dependency in known.iter().filter(|d| ours.contains(d.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "{package} must not depend on {dependency}");
        }
    }
}

#[test]
fn heavy_dependencies_stay_at_the_edge() {
    for (package, known) in dependencies() {
        for (heavy, allowed) in HEAVY {
            assert!(
                !known.contains(heavy) || allowed.contains(&package.as_str()),
                "{package} must not depend on {heavy}, which only {allowed:?} may"
            );
        }
    }
}
