//! How one gets in where instances are served: tokens and certificates, read from where the declaration says they are.

use std::path::Path;
use std::sync::Arc;

use pelton_core::access::Access;
use pelton_core::endpoint::Address;
use pelton_core::{Declaration, Error, Result};
use pelton_env::Env;
use pelton_tls::{Identity, Secured, Trust};

/// A token that is shorter can be guessed.
pub const SHORTEST_TOKEN: usize = 16;
/// No token is longer.
const LONGEST_TOKEN: usize = 1024;

/// The token that a declaration speaks of, and a network that connects to its endpoints.
pub fn access(env: &Env, declaration: &Declaration) -> Result<(String, Env)> {
    let access = declaration.access.clone().unwrap_or_default();
    Ok((token(&access)?, secured(env, declaration, &access)?))
}

fn token(access: &Access) -> Result<String> {
    match (&access.token, &access.token_file, &access.token_env) {
        (Some(token), _, _) => checked(&token.0, "`access.token`"),
        (None, Some(file), _) => token_in(file),
        (None, None, variable) => token_named(variable.as_deref().unwrap_or_default(), "access.token_env"),
    }
}

fn secured(env: &Env, declaration: &Declaration, access: &Access) -> Result<Env> {
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
    Ok(env)
}

/// The token in a file.
pub fn token_in(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        Error::invalid(format!(
            "the token file {} cannot be read: {e}; copy the one that the instances are served with (`pelton serve --token-file`)",
            file.display()
        ))
    })?;
    checked(text.trim(), &file.display().to_string())
}

/// The token in an environment variable. `setting`: what names the variable.
pub fn token_named(variable: &str, setting: &str) -> Result<String> {
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
