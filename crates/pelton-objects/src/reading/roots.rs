//! Where is the object of a reference, and may it be read?

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use pelton_core::object::uri::{self, Parts};
use pelton_core::{Error, ObjectRef, Result};

use super::connector;
use super::settings::ReaderSettings;

/// The places that a reader reads from.
pub(super) struct Roots(Vec<Root>);

struct Root {
    scheme: String,
    authority: String,
    names: Vec<Vec<u8>>,
    place: Place,
}

enum Place {
    /// Canonical.
    Folder(PathBuf),
    Store(Arc<dyn ObjectStore>),
}

/// An object that may be read.
pub(super) enum Spot {
    /// `path` may lead elsewhere by links; what it leads to has to be below `root`.
    File {
        root: PathBuf,
        path: PathBuf,
    },
    Stored {
        store: Arc<dyn ObjectStore>,
        path: Path,
        s3: bool,
    },
}

impl Roots {
    /// Connects to nothing. `keys` are options of S3 that go before those of the settings.
    pub(super) fn open(settings: &ReaderSettings, keys: &[(String, String)]) -> Result<Roots> {
        let open = |root: &String| {
            let Parts { scheme, authority, names } = uri::parts(root)?;
            let place = match scheme {
                "file" => folder(root, authority, &names),
                "s3" => s3(root, authority, settings, keys),
                "http" | "https" => http(root, scheme, authority),
                _ => Err(Error::invalid("file, s3, http and https can be read")),
            };
            let place = place.map_err(|e| e.context(format_args!("objects: root `{root}`")))?;
            Ok(Root { scheme: scheme.to_owned(), authority: authority.to_ascii_lowercase(), names, place })
        };
        settings.roots.iter().map(open).collect::<Result<_>>().map(Roots)
    }

    pub(super) fn find(&self, object: &ObjectRef) -> Result<Spot> {
        let Parts { scheme, authority, names } = uri::parts(object.uri())?;
        let holds = |root: &&Root| {
            root.scheme == scheme
                && root.authority == authority.to_ascii_lowercase()
                && names.starts_with(&root.names)
        };
        let root = self.0.iter().find(holds).ok_or_else(|| {
            Error::user(format!(
                "object {object}: it is in none of the places that this service reads from; add one to `roots` in its [options.objects]"
            ))
        })?;
        match &root.place {
            Place::Folder(folder) => Ok(Spot::File { root: folder.clone(), path: absolute(&names) }),
            Place::Store(store) => {
                let bad = |what: &dyn std::fmt::Display| {
                    Error::user(format!("object {object}: its path cannot be read: {what}"))
                };
                let path = String::from_utf8(names.join(&b'/')).map_err(|e| bad(&e))?;
                let path = Path::parse(path).map_err(|e| bad(&e))?;
                Ok(Spot::Stored { store: store.clone(), path, s3: scheme == "s3" })
            }
        }
    }
}

fn absolute(names: &[Vec<u8>]) -> PathBuf {
    let mut path = PathBuf::from("/");
    path.extend(names.iter().map(|name| OsStr::from_bytes(name)));
    path
}

fn folder(root: &str, authority: &str, names: &[Vec<u8>]) -> Result<Place> {
    if !authority.is_empty() {
        return Err(Error::invalid("a folder of this machine begins with three slashes: file:///FOLDER"));
    }
    let path = absolute(names);
    let canonical = fs::canonicalize(&path);
    canonical.map(Place::Folder).map_err(|e| Error::invalid(format!("{e}; is {root} there?")))
}

/// Every try is ours, so that they are counted and paid for in one place.
fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn s3(root: &str, bucket: &str, settings: &ReaderSettings, keys: &[(String, String)]) -> Result<Place> {
    if bucket.is_empty() {
        return Err(Error::invalid("write s3://BUCKET/PREFIX"));
    }
    let client = ClientOptions::new().with_timeout_disabled().with_connect_timeout(connector::CONNECTING);
    let mut builder = AmazonS3Builder::new()
        .with_client_options(client)
        .with_http_connector(connector::S3::default())
        .with_retry(once());
    let (given, settled) = (keys.iter().map(|(k, v)| (k, v)), settings.s3.iter());
    for (name, value) in settled.chain(given) {
        let key: AmazonS3ConfigKey =
            name.parse().map_err(|_| Error::invalid(format!("there is no option `{name}` for S3")))?;
        builder = builder.with_config(key, value);
    }
    let built = builder.with_bucket_name(bucket).build();
    built.map(|s| Place::Store(Arc::new(s))).map_err(|e| Error::invalid(format!("{root}: {e}")))
}

fn http(root: &str, scheme: &str, authority: &str) -> Result<Place> {
    if authority.is_empty() {
        return Err(Error::invalid("write https://HOST/PREFIX"));
    }
    let builder = HttpBuilder::new()
        .with_url(format!("{scheme}://{authority}/"))
        .with_http_connector(connector::Http)
        .with_retry(once());
    builder.build().map(|s| Place::Store(Arc::new(s))).map_err(|e| Error::invalid(format!("{root}: {e}")))
}
