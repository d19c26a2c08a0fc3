//! `pelton serve`: instances on their own, for jobs here and on other machines.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use pelton::{Declaration, Server, Serving};
use pelton_models::{Classifier, Embedder};

use crate::{classify, index};

#[derive(Args)]
#[command(after_help = "\
Jobs call what is served with `endpoints` in their service's declaration:

    name = \"embedder\"
    endpoints = [\"tls://HOST:7000\"]
    [access]
    token_file = \"FILE\"
    certificates = \"DIR\"

Several --declaration and --listen are served by one process, in pairs. Services of your own: `pelton::serve` in your program.")]
pub(crate) struct Arguments {
    /// Declaration of the service (TOML): `embedder` or `classifier` by its name, of any kind but `remote`
    #[arg(long, required = true, value_name = "FILE")]
    declaration: Vec<PathBuf>,
    /// Where to listen: HOST:PORT (port 0: any that is free), or unix:/PATH
    #[arg(long, required = true, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// Folder of certificates (see `pelton certificates`)
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Which certificate of that folder
    #[arg(long, value_name = "NAME", default_value = "server", requires = "tls")]
    name: String,
    /// Callers have to show a certificate of the same authority
    #[arg(long, requires = "tls")]
    require_certificate: bool,
    /// File with the token that callers have to show; made if it is not there
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Environment variable with it
    #[arg(long, value_name = "NAME", conflicts_with = "token_file")]
    token_env: Option<String>,
    /// Listen for other machines without TLS: everybody on the way reads the rows and the token
    #[arg(long, conflicts_with = "tls")]
    insecure: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    crate::log();
    let Arguments { declaration, listen, .. } = arguments;
    if declaration.len() != listen.len() {
        bail!(
            "{} --declaration and {} --listen; each instance has one of both",
            declaration.len(),
            listen.len()
        );
    }
    let serving = Serving {
        token_file: arguments.token_file.clone(),
        token_env: arguments.token_env.clone(),
        certificates: arguments.tls.clone(),
        name: arguments.name.clone(),
        require_certificate: arguments.require_certificate,
        insecure: arguments.insecure,
    };
    let mut server = Server::new(serving).announcing(|line| eprintln!("{line}"));
    for (file, listen) in declaration.iter().zip(listen) {
        let declared = Declaration::from_file(file)?;
        match declared.name.as_str() {
            "embedder" => {
                let built_in = index::embedder(&index::model_folder(None))?;
                server.service::<Embedder>(completed(declared, built_in), listen)?;
            }
            "classifier" => {
                let built_in = classify::classifier(classify::MODEL.as_ref())?;
                server.service::<Classifier>(completed(declared, built_in), listen)?;
            }
            other => bail!(
                "{} declares a service `{other}`; this command serves `embedder` and `classifier`, and your own program serves yours \
                 with `pelton::serve`",
                file.display()
            ),
        }
    }
    server.run()?;
    Ok(ExitCode::SUCCESS)
}

/// A declaration that names no model gets the built-in one's; a scripted service has none.
fn completed(mut declared: Declaration, built_in: Declaration) -> Declaration {
    if declared.kind.is_none() && !declared.options.contains_key("model") {
        declared.options.extend(built_in.options);
    }
    declared
}
