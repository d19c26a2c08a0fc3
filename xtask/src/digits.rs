//! Images of handwritten digits, made from the data that scikit-learn carries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::fetch::hex;
use crate::places::{Places, publish};
use crate::process::step;
use crate::python::Python;

/// Below `models/digits`: the images depend on these and nothing else.
const SCRIPTS: [&str; 2] = ["make_images.py", "split.py"];
const PIXELS: &str = "make_pixels.py";
const REQUIREMENTS: &str = "requirements-images.txt";
/// Says what the images were made of.
const MADE_OF: &str = ".made-of";

pub(crate) fn install(places: &Places) -> Result<()> {
    let scripts = places.root.join("models/digits");
    let made_of = made_of(&scripts, &[SCRIPTS[0], SCRIPTS[1], REQUIREMENTS])?;
    let images = places.digits();
    if fs::read_to_string(images.join(MADE_OF)).is_ok_and(|m| m == made_of) {
        println!("images of digits: there ({})", images.display());
        return Ok(());
    }
    step("making images of digits", || {
        let python = Python::find()?.environment(places, "digits", &scripts.join(REQUIREMENTS))?;
        let temporary = places.temporary()?;
        let finished = temporary.path().join("images");
        python.run(["-B"], [&scripts.join(SCRIPTS[0]), &finished])?;
        let made =
            fs::read_dir(&finished).with_context(|| format!("reading {}", finished.display()))?.count();
        if made < 2 || !finished.join("labels.json").is_file() {
            bail!("{} made {made} files and should make images and labels.json", SCRIPTS[0]);
        }
        fs::write(finished.join(MADE_OF), &made_of)?;
        publish(&finished, &images)
    })
}

/// All of them as numbers, in one file.
pub(crate) fn pixels(places: &Places) -> Result<PathBuf> {
    let scripts = places.root.join("models/digits");
    let made_of = made_of(&scripts, &[PIXELS, "split.py", REQUIREMENTS])?;
    let file = places.cache().join(format!("digits/pixels-{}.npz", &made_of[..12]));
    if !file.exists() {
        step("writing digits as numbers", || {
            let python = Python::find()?.environment(places, "digits", &scripts.join(REQUIREMENTS))?;
            let temporary = places.temporary()?;
            let finished = temporary.path().join("pixels.npz");
            python.run(["-B"], [&scripts.join(PIXELS), &finished])?;
            publish(&finished, &file)
        })?;
    }
    Ok(file)
}

fn made_of(scripts: &Path, of: &[&str]) -> Result<String> {
    let mut digest = Sha256::new();
    for name in of {
        let path = scripts.join(name);
        digest.update(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        digest.update([0]);
    }
    Ok(hex(&digest.finalize()))
}
