//! `cargo xtask check`: formatting and lints.

use anyhow::{Context, Result};

use crate::places::Places;
use crate::process::{self, cargo};

pub(crate) fn run(places: &Places) -> Result<()> {
    process::run(&mut cargo(&places.root, ["fmt", "--all", "--", "--check"]))
        .context("the formatting differs: run `cargo fmt --all`")?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    process::run(&mut cargo(&places.root, clippy)).context("lints are left")
}
