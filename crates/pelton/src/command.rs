//! What others may ask of a running job, through its control.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pelton_control::Commands;
use pelton_core::{Error, Result};
use pelton_dataflow::savepoint::Saved;
use serde::{Deserialize, Serialize};

use crate::region::{Handle, Rescaled};

/// One command. Its answer is what the comment names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Takes a savepoint: [`Saved`].
    Savepoint { folder: PathBuf, stop: bool },
    /// Gives an operator of the data plane another number of subtasks: [`Rescaled`].
    Scale { operator: String, parallelism: u32 },
}

/// Lets a running job take commands.
pub(crate) fn commands(regions: Vec<Handle>) -> Commands {
    Arc::new(move |command| {
        let regions = regions.clone();
        Box::pin(async move {
            let command: Command = serde_json::from_value(command)
                .map_err(|e| Error::invalid(format!("this job does not know the command: {e}")))?;
            let answer = match command {
                Command::Savepoint { folder, stop } => {
                    serde_json::to_value(savepoint(&regions, &folder, stop).await?)
                }
                Command::Scale { operator, parallelism } => {
                    serde_json::to_value(scale(&regions, &operator, parallelism).await?)
                }
            };
            answer.map_err(|e| Error::internal(e.to_string()))
        })
    })
}

/// Of all regions, each in a folder of its own where there are several. Says the newest checkpoint and the bytes of all.
async fn savepoint(regions: &[Handle], folder: &Path, stop: bool) -> Result<Saved> {
    let mut all = Saved { checkpoint: 0, bytes: 0 };
    for region in regions {
        let orders = region.orders.borrow().clone();
        let orders = orders.ok_or_else(|| Error::invalid("the job has not begun yet; try again"))?;
        let folder = region.folder.as_ref().map_or_else(|| folder.to_owned(), |name| folder.join(name));
        let saved = orders.savepoint(&folder, stop).await?;
        all = Saved { checkpoint: all.checkpoint.max(saved.checkpoint), bytes: all.bytes + saved.bytes };
    }
    Ok(all)
}

async fn scale(regions: &[Handle], operator: &str, parallelism: u32) -> Result<Rescaled> {
    let of = regions.iter().find(|r| r.operators.iter().any(|name| name == operator));
    let region = of.ok_or_else(|| {
        let names: Vec<&str> = regions.iter().flat_map(|r| r.operators.iter().map(String::as_str)).collect();
        Error::invalid(format!("this job has no operator `{operator}`; it has: {}", names.join(", ")))
    })?;
    region.rescale(operator, parallelism).await
}
