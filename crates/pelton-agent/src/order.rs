//! Which instances, of what, for whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pelton_core::declaration::Instances;
use pelton_core::id::stable_hash;
use pelton_core::{Declaration, Error, Result};
use serde::{Deserialize, Serialize};

/// What a host wants of a machine's agent. Data; it travels with the host's own plans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Whoever names the same pool, with the same declaration, shares its instances.
    pub pool: String,
    /// The service's declaration, as the text of its TOML file.
    pub declaration: String,
    /// The command that an instance is started with, where the declaration names none: here no program can be its own instance.
    #[serde(default)]
    pub program: Vec<String>,
    /// Where the logs of agent and instances go.
    pub logs: PathBuf,
    /// How long a pool waits for those who held it.
    pub lease_millis: u64,
}

impl Order {
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_millis)
    }

    /// The declaration that the instances get.
    pub fn declaration(&self) -> Result<Declaration> {
        let declared = Declaration::from_toml(&self.declaration, "the service's declaration")?;
        let name = &declared.name;
        if declared.is_remote() || declared.has_endpoints() {
            return Err(Error::invalid(format!(
                "service `{name}` runs elsewhere, by its declaration, and an agent starts its instances here; take `endpoints` or `remote` out"
            )));
        }
        let mut declaration = declared.clone();
        if declaration.program.is_empty() {
            declaration.program.clone_from(&self.program);
        }
        if declaration.program.is_empty() {
            return Err(Error::invalid(format!(
                "service `{name}` names no `program`, and nothing else can start an instance of it; name the command that serves it, in the \
                 declaration or beside it"
            )));
        }
        Ok(declaration)
    }

    /// What the pool is called on its machine: another declaration is another pool.
    pub fn name(&self) -> Result<String> {
        let one = Declaration { instances: Instances::default(), ..self.declaration()? };
        let made_of = serde_json::to_string(&one).expect("a declaration is plain data");
        Ok(format!("{:.24}-{:016x}", self.pool, stable_hash(&format!("{}\n{made_of}", self.pool))))
    }

    /// The folder of the pool's agent, below the run folder of this user.
    pub(crate) fn home(&self, base: &Path) -> Result<PathBuf> {
        Ok(base.join(format!("agent-{:016x}", stable_hash(&self.name()?))))
    }
}

pub(crate) fn socket(home: &Path) -> PathBuf {
    home.join("agent.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(declaration: &str, program: &[&str]) -> Order {
        Order {
            pool: "p".into(),
            declaration: declaration.into(),
            program: program.iter().map(|w| (*w).to_owned()).collect(),
            logs: "/tmp".into(),
            lease_millis: 1,
        }
    }

    #[test]
    fn another_declaration_is_another_pool_and_another_number_of_instances_is_not() {
        let name = |text: &str| order(text, &["a"]).name().unwrap();
        let one = name("name = 's'");
        assert_eq!(one, name("name = 's'\ninstances = 3"));
        assert_ne!(one, name("name = 's'\n[options]\nmodel = 'm'"));
        assert_ne!(one, order("name = 's'", &["b"]).name().unwrap());
    }

    #[test]
    fn what_no_agent_can_start_is_refused_by_what_to_do() {
        for (text, expected) in [
            ("name = 's'", "names no `program`"),
            ("nome = 's'", "nome"),
            ("name = 's'\nendpoints = ['unix:/a']\n[access]\ntoken_file = 't'", "take `endpoints`"),
        ] {
            let said = order(text, &[]).declaration().unwrap_err().message().to_owned();
            assert!(said.contains(expected), "{text} gave: {said}");
        }
    }
}
