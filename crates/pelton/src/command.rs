//! What others may ask of a running job, through its control.

use std::path::PathBuf;
use std::sync::Arc;

use pelton_control::Commands;
use pelton_core::Error;
use pelton_dataflow::savepoint::Orders;
use serde::{Deserialize, Serialize};

/// One command. Its answer is what the function of that name gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// [`Orders::savepoint`].
    Savepoint { folder: PathBuf, stop: bool },
}

/// Lets a running job take commands.
pub(crate) fn commands(orders: Orders) -> Commands {
    Arc::new(move |command| {
        let orders = orders.clone();
        Box::pin(async move {
            let command: Command = serde_json::from_value(command)
                .map_err(|e| Error::invalid(format!("this job does not know the command: {e}")))?;
            match command {
                Command::Savepoint { folder, stop } => {
                    let saved = orders.savepoint(&folder, stop).await?;
                    serde_json::to_value(saved).map_err(|e| Error::internal(e.to_string()))
                }
            }
        })
    })
}
