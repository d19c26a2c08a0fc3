//! How a job gets in where others serve its instances.

use std::collections::BTreeMap;
use std::fmt::Write;

use pelton_call::access::access;
use pelton_control::Reach;
use pelton_core::service::{Definition, show_columns};
use pelton_core::{Declaration, Result};
use pelton_env::Env;

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
    let (token, env) = access(env, declaration)?;
    Ok(Reach { env, token, job: job.to_owned(), methods: definition.methods.clone() })
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
        (None, Some(variable)) => format!("in variable {variable}"),
        (None, None) => "given by the program".to_owned(),
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
