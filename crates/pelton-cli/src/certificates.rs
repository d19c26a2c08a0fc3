//! `pelton certificates`: what TLS between machines needs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use pelton::certificates::{Wanted, make};
use pelton::env::real::Host;

#[derive(Args, Clone)]
#[command(after_help = "\
Run it again to renew: the authority and all keys stay, the certificates are new; a process that serves uses them without a restart.
Without --host, a renewed certificate is for the same hosts as before.")]
pub(crate) struct Arguments {
    /// Folder of the certificates; made if it is not there
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// Name or number by which callers reach the server; may be given several times
    #[arg(long, value_name = "NAME_OR_IP")]
    host: Vec<String>,
    /// What the server's files are called, for more than one certificate in a folder
    #[arg(long, value_name = "NAME", default_value = "server")]
    name: String,
    /// How many days they are valid
    #[arg(long, value_name = "N", default_value_t = 365)]
    days: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { folder, host, name, days } = arguments.clone();
    let wanted = Wanted { folder, hosts: host, name, days };
    let seams = Host::new(1, 1)?;
    let env = seams.env();
    for made in make(&wanted, env.clock.unix_millis(), &env.entropy.secret())? {
        let hosts =
            if made.hosts.is_empty() { String::new() } else { format!(" for {},", made.hosts.join(", ")) };
        let how = if made.kept { " (kept)" } else { "" };
        println!("{}:{hosts} valid until {} ({} days){how}", made.path.display(), made.until, made.days);
    }
    let Wanted { folder, name, .. } = wanted;
    let folder = folder.display();
    println!();
    println!("where instances are served: ca.pem, {name}.pem, {name}-key.pem (pelton serve --tls {folder})");
    println!(
        "where jobs call them:       ca.pem; and client.pem, client-key.pem if it is served with --require-certificate"
    );
    println!("{folder}/ca-key.pem stays here: whoever has it can make certificates");
    Ok(ExitCode::SUCCESS)
}
