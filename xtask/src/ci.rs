//! `cargo xtask ci`: what a change has to pass.

use anyhow::Result;

use crate::places::Places;
use crate::{check, test};

pub(crate) fn run(places: &Places) -> Result<()> {
    check::run(places)?;
    test::run(places, &test::Arguments::default())
}
