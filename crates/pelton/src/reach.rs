//! How a job gets in where others serve its instances: tokens and certificates, read from where the declaration says they are.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use pelton_control::Reach;
use pelton_core::endpoint::Address;
use pelton_core::service::{Definition, show_columns};
use pelton_core::{Declaration, Error, Result};
use pelton_env::Env;
use pelton_tls::{Identity, Secured, Trust};

/// A token that is shorter can be guessed.
pub(crate) const SHORTEST_TOKEN: usize = 16;
/// No token is longer.
const LONGEST_TOKEN: usize = 1024;

/// How the services that have endpoints are reached. `job`: whose requests these are.
pub(crate) fn reaches(
    env: &Env,
    job: &str,
    services: &[(Declaration, Definition)],
) -> Result<BTreeMap<String, Reach>> {
    let elsewhere = services.iter().filter(|(declaration, _)| declaration.has_endpoints());
    elsewhere
        .map(|(declaration, definition)| {
            let reach = reach(env, job, declaration, definition);
            let reach = reach.map_err(|e| e.context(format_args!("service `{}`", declaration.name)))?;
            Ok((declaration.name.clone(), reach))
        })
        .collect()
}

fn reach(env: &Env, job: &str, declaration: &Declaration, definition: &Definition) -> Result<Reach> {
    let access = declaration.access.clone().unwrap_or_default();
    let token = match (&access.token_file, &access.token_env) {
        (Some(file), _) => token_in(file)?,
        (None, variable) => token_named(variable.as_deref().unwrap_or_default(), "access.token_env")?,
    };
    let mut env = env.clone();
    if declaration.addresses()?.iter().any(|a| matches!(a, Address::Tls(..))) {
        let authorities = access
            .authorities()
            .ok_or_else(|| Error::invalid("tls:// without `access.certificates` or `access.ca`"))?;
        let identity = access.identity().filter(|(certificate, _, needed)| *needed || certificate.exists());
        let identity = identity.map(|(certificate, key, _)| Identity { certificate, key });
        let trust = Trust { authorities, identity };
        // Files that are missing now are not to be found out by the first call.
        trust.check(&env.clock)?;
        env.network = Arc::new(Secured::new(env.network.clone(), env.clock.clone(), trust));
    }
    Ok(Reach { env, token, job: job.to_owned(), methods: definition.methods.clone() })
}

/// The token in a file.
pub(crate) fn token_in(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        Error::invalid(format!(
            "the token file {} cannot be read: {e}; copy the one that the instances are served with (`pelton serve --token-file`)",
            file.display()
        ))
    })?;
    checked(text.trim(), &file.display().to_string())
}

/// The token in an environment variable.
pub(crate) fn token_named(variable: &str, setting: &str) -> Result<String> {
    let text = std::env::var(variable).map_err(|_| {
        Error::invalid(format!(
            "the environment variable `{variable}` ({setting}) is not set; put the instances' token there"
        ))
    })?;
    checked(text.trim(), &format!("the environment variable `{variable}`"))
}

/// Says what is wrong with a token, and never the token.
fn checked(token: &str, origin: &str) -> Result<String> {
    let plain = token.chars().all(|c| c.is_ascii_graphic());
    if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&token.len()) || !plain {
        return Err(Error::invalid(format!(
            "{origin} holds no token: one is a word of {SHORTEST_TOKEN} to {LONGEST_TOKEN} plain characters; \
             `pelton serve --token-file` makes one where there is none"
        )));
    }
    Ok(token.to_owned())
}

/// A service whose instances others serve, for people. Names where secrets come from, never a secret.
pub(crate) fn explain(declaration: &Declaration, definition: &Definition) -> String {
    let Declaration { name, endpoints, retry, timeout, .. } = declaration;
    let access = declaration.access.clone().unwrap_or_default();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "  {name}: {}, served on its own; this job starts no instance of it",
        definition.type_name
    );
    let _ = writeln!(text, "    endpoints: {}", endpoints.join(", "));
    let token = match (&access.token_file, &access.token_env) {
        (Some(file), _) => format!("in {}", file.display()),
        (None, variable) => format!("in variable {}", variable.as_deref().unwrap_or("?")),
    };
    let trust = match access.authorities() {
        Some(path) => format!("; trusts {}", path.display()),
        None => "; no TLS".to_owned(),
    };
    let shows = match access.identity() {
        Some((path, _, needed)) if needed || path.exists() => format!("; shows {}", path.display()),
        _ => String::new(),
    };
    let open = if access.insecure { "; INSECURE: plain text may leave this machine" } else { "" };
    let _ = writeln!(text, "    token: {token}{trust}{shows}{open}");
    let _ = writeln!(text, "    batches form, and are limited, where the instances are served");
    let timeout = timeout.map_or_else(|| "none".to_owned(), |t| format!("{t:?}"));
    let _ = writeln!(text, "    timeout: {timeout}; attempts: {}", retry.attempts);
    for method in definition.methods.iter() {
        let (input, output) = (show_columns(&method.input), show_columns(&method.output));
        let _ = writeln!(text, "    {}({input}) -> ({output})", method.name);
    }
    text
}
