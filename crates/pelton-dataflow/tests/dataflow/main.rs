//! The data plane as its users see it, with scripted sources, services and sinks, in virtual time.

mod calls;
mod changelogs;
mod checkpoints;
mod cuts;
mod plans;
mod restarts;
mod savepoints;
mod site;
mod support;
