//! Where jobs and instances are, for those who look for them from outside.
//!
//! [`rundir`] is the folder with the jobs of this machine, [`ask`] what a running job says and does for who asks, [`report`] the words
//! for it, and [`served`] watches instances that nobody's job has started. Nothing here starts a process.

pub mod ask;
pub mod report;
pub mod rundir;
pub mod served;
