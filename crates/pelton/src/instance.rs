//! The other life of a program: as an instance of one of its services.

use std::io::Read;

use pelton_core::service::Definition;
use pelton_core::{Declaration, Error, Result};
use pelton_env::INSTANCE_VARIABLE;
use pelton_env::real::Host;
use pelton_wire::Bootstrap;

/// Most bytes of a bootstrap: a declaration with its options.
const LONGEST: u64 = 4 << 20;

/// If this process was started as an instance of this service, serves it and ends the process.
pub(crate) fn serve_if_asked(declaration: &Declaration, definition: &Definition) {
    let asked = std::env::var_os(INSTANCE_VARIABLE).is_some_and(|service| service == *declaration.name);
    // One with a program of its own is never this program.
    if !asked || !declaration.program.is_empty() {
        return;
    }
    match serve_instance(|_| Ok(definition.clone())) {
        Ok(why) => {
            tracing::info!("the instance leaves: {why}");
            std::process::exit(0);
        }
        Err(e) => {
            tracing::error!("the instance cannot serve: {e}");
            std::process::exit(1);
        }
    }
}

/// A log on standard error, unless the program has set up another; from this level on, unless `PELTON_LOG` names one.
pub fn log(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PELTON_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(filter)
        .try_init();
}

/// Serves the instance that this process was started as, and returns why it leaves. For programs that a declaration names in its
/// `program`; those that declare a job do it by themselves (see [`Job::service`](crate::Job::service)).
pub fn serve_instance(definition: impl FnOnce(&Declaration) -> Result<Definition>) -> Result<String> {
    log("info");
    let mut json = String::new();
    std::io::stdin().take(LONGEST).read_to_string(&mut json)?;
    let bootstrap: Bootstrap = serde_json::from_str(&json).map_err(|e| {
        Error::invalid(format!(
            "no bootstrap on standard input ({e}); {INSTANCE_VARIABLE} is set by Pelton, not by hand"
        ))
    })?;
    tracing::info!(
        "instance {} of job {} begins as process {}",
        bootstrap.instance,
        bootstrap.job,
        std::process::id()
    );
    let definition = crate::job::resolve(&bootstrap.declaration, definition(&bootstrap.declaration)?)?;
    let host = Host::new(1, 1)?;
    let env = host.env().clone();
    host.block_on(pelton_instance::serve(env, bootstrap, definition))
}
