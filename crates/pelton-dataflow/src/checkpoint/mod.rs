//! Checkpoints: when to take one, and how it is kept.

pub(crate) mod coordinator;
pub(crate) mod encode;
pub(crate) mod fence;
pub(crate) mod folder;
pub(crate) mod manifest;
pub(crate) mod reuse;
pub(crate) mod seal;
pub(crate) mod store;
