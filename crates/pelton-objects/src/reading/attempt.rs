//! One try at reading a part of an object.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::{GetOptions, GetRange, ObjectMeta};
use pelton_core::{Error, ObjectRef, Result};

use super::connector::{may_pass, reason};
use super::local;
use super::roots::Spot;

/// Why a try failed.
pub(super) enum Failure {
    /// Another try may go better; at a time that the server gave, or soon.
    Passes { why: String, after: Option<Duration> },
    /// It will not.
    Stays(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::Stays(e)
    }
}

/// Bytes of an object: so many from an offset on, or all that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) length: Option<u64>,
}

/// A part of an object on its way.
pub(super) struct Body {
    /// So many bytes come.
    pub(super) length: u64,
    /// What it is a version of, where the place has versions.
    pub(super) version: Option<String>,
    chunks: BoxStream<'static, Result<Bytes, Failure>>,
    left: u64,
    /// Bytes before the part, from servers that give no ranges.
    skip: u64,
}

impl Body {
    pub(super) fn new(
        length: u64,
        version: Option<String>,
        chunks: BoxStream<'static, Result<Bytes, Failure>>,
    ) -> Body {
        Body { length, version, chunks, left: length, skip: 0 }
    }

    /// The next bytes, exactly `length` in all; None after them.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while self.left > 0 {
            let Some(mut chunk) = self.chunks.try_next().await? else {
                let why = format!("it ended {} bytes early", self.left);
                return Err(Failure::Passes { why, after: None });
            };
            let skipped = self.skip.min(chunk.len() as u64);
            self.skip -= skipped;
            chunk = chunk.split_off(skipped as usize);
            chunk.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= chunk.len() as u64;
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }
}

/// Begins to read. Checks the version, and that the part is there; `fits` says no to what is too large.
pub(super) async fn begin(
    object: &ObjectRef,
    spot: &Spot,
    span: Span,
    fits: impl Fn(u64) -> Result<()>,
) -> Result<Body, Failure> {
    let (store, path, s3) = match spot {
        Spot::File { root, path } => return local::open(object, root, path, span, fits),
        Spot::Stored { store, path, s3 } => (store, path, *s3),
    };
    let failed = |e: &object_store::Error| failed(object, e);
    let id = object.version().filter(|v| s3 && !is_etag(v));
    let options = GetOptions { version: id.map(str::to_owned), ..GetOptions::default() };
    let range = match span {
        Span { from: 0, length: None } => None,
        Span { from, length: None } => Some(GetRange::Offset(from)),
        Span { from, length: Some(n) } => Some(GetRange::Bounded(from..from.saturating_add(n))),
    };
    let asked = store.get_opts(path, GetOptions { range: range.clone(), ..options.clone() }).await;
    let (result, whole) = match asked {
        // It gives the whole object or nothing.
        Err(object_store::Error::NotSupported { .. }) if range.is_some() => {
            (store.get_opts(path, options).await.map_err(|e| failed(&e))?, true)
        }
        Err(e) if range.is_some() && may_pass(&e).is_none() => {
            // A range that is not there any more: whether it is another object by now says its head.
            let head = GetOptions { head: true, ..options };
            if let Ok(now) = store.get_opts(path, head).await {
                check_version(object, version(&now.meta, s3).filter(|_| id.is_none()).as_deref().or(id))?;
                part(object, span, now.meta.size)?;
            }
            return Err(failed(&e));
        }
        result => (result.map_err(|e| failed(&e))?, range.is_none()),
    };
    let version = match id {
        Some(id) => result.meta.version.clone().or_else(|| Some(id.to_owned())),
        None => version(&result.meta, s3),
    };
    check_version(object, version.as_deref())?;
    let length = part(object, span, result.meta.size)?;
    fits(length)?;
    let shown = object.clone();
    let chunks = result.into_stream().map_err(move |e| match may_pass(&e) {
        Some(after) => Failure::Passes { why: reason(&e), after },
        None => Failure::Passes { why: format!("{shown}: {}", reason(&e)), after: None },
    });
    let skip = if whole { span.from } else { 0 };
    Ok(Body { skip, ..Body::new(length, version, chunks.boxed()) })
}

fn is_etag(version: &str) -> bool {
    version.starts_with('"') || version.starts_with("W/\"")
}

/// What an object that a server gave is a version of.
fn version(meta: &ObjectMeta, s3: bool) -> Option<String> {
    let modified = meta.last_modified.timestamp_nanos_opt().filter(|n| *n > 0 && !s3);
    meta.e_tag.clone().or_else(|| modified.map(|n| format!("{}-{n}", meta.size)))
}

/// An object that is another than the one that the reference means is no answer.
pub(super) fn check_version(object: &ObjectRef, now: Option<&str>) -> Result<()> {
    match (object.version(), now) {
        (None, _) => Ok(()),
        (Some(listed), Some(now)) if listed == now => Ok(()),
        (Some(listed), Some(now)) => Err(Error::user(format!(
            "object {object}: it changed since it was listed: its version was {listed} and is {now}; list it again, and leave objects \
             as they are while jobs read them"
        ))),
        (Some(listed), None) => Err(Error::user(format!(
            "object {object}: its version was {listed}, and the server gives none to compare with; leave the version out of the \
             reference to read whatever is there"
        ))),
    }
}

/// An object that is not there any more.
pub(super) fn gone(object: &ObjectRef) -> Error {
    let listed = object.version().map_or(String::new(), |v| format!(" (its version was {v})"));
    Error::user(format!(
        "object {object}: it is not there{listed}; it was deleted or moved since it was listed, or never was: put it back, or list again"
    ))
}

/// How long the part is.
pub(super) fn part(object: &ObjectRef, span: Span, size: u64) -> Result<u64> {
    let rest = size.checked_sub(span.from);
    match (rest, span.length) {
        (Some(rest), None) => Ok(rest),
        (Some(rest), Some(length)) if length <= rest => Ok(length),
        _ => Err(Error::user(format!(
            "object {object}: it has {size} bytes, and {} from byte {} on were asked for; mend the range",
            span.length.map_or("all".to_owned(), |n| n.to_string()),
            span.from
        ))),
    }
}

fn failed(object: &ObjectRef, e: &object_store::Error) -> Failure {
    use object_store::Error as E;

    if let Some(after) = may_pass(e) {
        return Failure::Passes { why: reason(e), after };
    }
    Failure::Stays(match e {
        E::NotFound { .. } => gone(object),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => Error::user(format!(
            "object {object}: the server does not let it be read; give the instance's environment keys that may (AWS_ACCESS_KEY_ID, ..)"
        )),
        e => Error::user(format!("object {object}: it cannot be read: {}", reason(e))),
    })
}
