//! Where objects go, and how a caller that blocks gets there.

use std::fmt;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig};
use pelton_core::{Error, Fate, Kind, Result, Retry};
use pelton_env::real::Host;
use pelton_env::{Env, Place};

/// How long one request is tried again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder in an object store. It may hold keys, so it shows only where it is.
#[derive(Clone)]
pub struct Store {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) folder: Path,
    pub(crate) shown: String,
    /// What uris of its objects begin with, if they have such.
    pub(crate) root: Option<String>,
}

impl Store {
    /// `s3://BUCKET/PREFIX` or `file:///FOLDER`. The options of S3 are those of the `object_store` crate: `region`, `access_key_id`,
    /// `secret_access_key`, `endpoint` (with `allow_http` = `true` for one without TLS), ..; without keys, the machine's own role is used.
    /// Nothing is read from the environment.
    pub fn open<'a>(url: &str, options: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Store> {
        Store::patient(url, options, PATIENCE)
    }

    /// The same, with the time for which one request is tried again.
    pub fn patient<'a>(
        url: &str,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
        patience: Duration,
    ) -> Result<Store> {
        if url.contains(['@', '?', '#']) {
            return Err(Error::invalid(
                "the url of an object store holds `@`, `?` or `#` (it is not shown, for there may be a key in it); write \
                 s3://BUCKET/PREFIX or file:///FOLDER, and give keys as options",
            ));
        }
        if let Some(place) = url.strip_prefix("s3://") {
            let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
            let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
            for (name, value) in options {
                let key: AmazonS3ConfigKey = name.parse().map_err(|_| {
                    Error::invalid(format!("object store {url}: there is no option `{name}` for S3"))
                })?;
                builder = builder.with_config(key, value);
            }
            let retry = RetryConfig { retry_timeout: patience, max_retries: 1000, ..RetryConfig::default() };
            let built = builder.with_retry(retry).build();
            let store = built.map_err(|e| Error::invalid(format!("object store {url}: {e}")))?;
            let store = Store::new(Arc::new(store), prefix, url)?;
            return Ok(Store { root: Some(format!("s3://{bucket}")), ..store });
        }
        if let Some(folder) = url.strip_prefix("file://").filter(|f| f.starts_with('/')) {
            if let Some((name, _)) = options.into_iter().next() {
                return Err(Error::invalid(format!("object store {url}: a folder has no option `{name}`")));
            }
            return Store::new(Arc::new(LocalFileSystem::new()), folder, url);
        }
        Err(Error::invalid(format!("object store {url}: write s3://BUCKET/PREFIX or file:///FOLDER")))
    }

    /// Any other store of the `object_store` crate. `shown` says in plans and messages where it is.
    pub fn new(store: Arc<dyn ObjectStore>, folder: &str, shown: &str) -> Result<Store> {
        let shown = shown.trim_end_matches('/').to_owned();
        let folder = Path::parse(folder.trim_matches('/'))
            .map_err(|e| Error::invalid(format!("object store {shown}: {e}")))?;
        Ok(Store { store, folder, shown, root: None })
    }
}

/// The options of S3 among variables of an environment: `AWS_REGION` is `region`. What no option is called is left out.
pub fn s3_options(variables: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let option = |(name, value): (String, String)| {
        let name = name.strip_prefix("AWS_")?.to_ascii_lowercase();
        // Which bucket is meant says the url.
        let known = name.parse::<AmazonS3ConfigKey>().is_ok() && !name.starts_with("bucket");
        known.then_some((name, value))
    };
    variables.into_iter().filter_map(option).collect()
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.shown)
    }
}

/// Threads for requests, from the first one on: a plan that is only explained starts none.
#[derive(Default)]
pub(crate) struct Threads(OnceLock<Host>);

impl Threads {
    pub(crate) fn env(&self) -> Result<Env> {
        if let Some(host) = self.0.get() {
            return Ok(host.env().clone());
        }
        let host = Host::new(1, 1)
            .map_err(|e| Error::storage(format!("starting threads for requests to an object store: {e}")))?;
        Ok(self.0.get_or_init(|| host).env().clone())
    }

    /// Blocks until `work` is done.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = mpsc::sync_channel(1);
        let _task = self.env()?.spawn(Place::Network, async move {
            // Somebody listens: the caller waits.
            let _ = tell.send(work.await);
        });
        told.recv()
            .unwrap_or_else(|_| Err(Error::internal("a request to an object store ended without a result")))
    }
}

/// What a failure of the store means, in words.
pub(crate) fn failed(doing: &str, path: &Path, e: &object_store::Error) -> Error {
    let next = match e {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            "; check the keys, and that they may list, read, write and delete there"
        }
        object_store::Error::NotFound { .. } => "; does the bucket exist?",
        _ => "",
    };
    Error::new(Kind::Storage, Fate::Unknown, Retry::Never, format!("{doing} {path}: {e}{next}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_options_where_they_are_known() {
        let variables =
            [("AWS_REGION", "x"), ("AWS_ENDPOINT_URL", "http://h"), ("AWS_PROFILE", "p"), ("PATH", "/")];
        let found = s3_options(variables.map(|(k, v)| (k.to_owned(), v.to_owned())));
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["region", "endpoint_url"]);
    }

    #[test]
    fn urls_are_read_and_keys_show_nowhere() {
        let options = [("access_key_id", "me"), ("secret_access_key", "hush"), ("region", "x")];
        let store = Store::open("s3://bucket/some/prefix/", options).unwrap();
        assert_eq!((store.folder.as_ref(), store.shown.as_str()), ("some/prefix", "s3://bucket/some/prefix"));
        assert!(!format!("{store:?}").contains("hush"));
        for (url, options, says) in [
            ("s3://me:hush@bucket", &[][..], "not shown"),
            ("s3://bucket", &[("colour", "hush")], "no option `colour`"),
            ("file:///tmp", &[("region", "hush")], "no option `region`"),
            ("file://tmp", &[], "file:///FOLDER"),
            ("gs://bucket", &[], "s3://BUCKET"),
        ] {
            let error = Store::open(url, options.iter().copied()).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("hush"), "{url}: {error}");
        }
    }
}
