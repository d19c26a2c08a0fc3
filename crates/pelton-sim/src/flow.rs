//! How much of what a backend can do is got out of it: flow control against modelled backends.
//!
//! A [`scenario`] says which backends there are, how they change over time, and who calls them. [`backend`] has the models.
//! [`real`] plays it with the project's own client and instance; [`windowed`] with callers that each keep a [`window`] of
//! calls in flight, as published limiters do; [`oracle`] finds the best fixed windows with hindsight. [`suite`] plays
//! several with several, [`score`] compares, [`report`] shows. [`scale`] counts what is said as all of it grows.

pub mod algorithm;
pub mod backend;
pub mod clock;
pub mod draw;
pub mod oracle;
pub mod real;
pub mod record;
pub mod report;
pub mod scale;
pub mod scenario;
pub mod score;
pub mod suite;
pub mod window;
pub mod windowed;
