//! The sink against folders and a real S3-compatible server.

mod jobs;
mod reading;
mod server;
mod sink;
mod web;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStoreExt, RetryConfig};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pelton_dataflow::sink::{Sink, Staged};
use pelton_env::real::Host;
use pelton_objects::{Format, Objects, Settings, Store};
use serde_json::Value;

use crate::server::{SECRET, Server};

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
    ]))
}

pub(crate) fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    // Texts that do not compress away.
    let text: StringArray = ids
        .clone()
        .map(|i| (i % 2 == 0).then(|| format!("{:016x}", (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))))
        .collect();
    RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(text)]).unwrap()
}

/// Where parts go, and how the tests look there.
pub(crate) struct World {
    pub(crate) url: String,
    options: Vec<(String, String)>,
    store: Arc<dyn ObjectStore>,
    folder: Path,
    host: Host,
    _folder: Option<tempfile::TempDir>,
}

pub(crate) fn options(port: u16) -> Vec<(String, String)> {
    let options = [
        ("endpoint", server::endpoint(port)),
        ("allow_http", "true".to_owned()),
        ("region", "us-east-1".to_owned()),
        ("access_key_id", "me".to_owned()),
        ("secret_access_key", SECRET.to_owned()),
    ];
    options.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

impl World {
    pub(crate) fn folder() -> World {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        World {
            url: format!("file://{}", path.display()),
            options: vec![],
            store: Arc::new(LocalFileSystem::new()),
            folder: Path::parse(path.to_str().unwrap()).unwrap(),
            host: Host::new(1, 1).unwrap(),
            _folder: Some(dir),
        }
    }

    /// Puts an object there by another way than the product's. Gives the id of its version, where the bucket keeps versions.
    pub(crate) fn put(&self, name: &str, content: &[u8]) -> Option<String> {
        let path = Path::parse(format!("{}/{name}", self.folder)).unwrap();
        self.host.block_on(self.store.put(&path, content.to_vec().into())).unwrap().version
    }

    pub(crate) fn remove(&self, name: &str) {
        let path = Path::parse(format!("{}/{name}", self.folder)).unwrap();
        self.host.block_on(self.store.delete(&path)).unwrap();
    }

    /// A prefix of the server's bucket.
    pub(crate) fn s3(server: &Server, prefix: &str) -> World {
        let builder = AmazonS3Builder::new().with_bucket_name("bucket").with_endpoint(server.endpoint());
        let keys = builder.with_allow_http(true).with_access_key_id("me").with_secret_access_key(SECRET);
        World {
            url: format!("s3://bucket/{prefix}"),
            options: options(server.port),
            store: Arc::new(keys.with_retry(RetryConfig::default()).build().unwrap()),
            folder: Path::from(prefix),
            host: Host::new(1, 1).unwrap(),
            _folder: None,
        }
    }

    pub(crate) fn store(&self, patience: Duration) -> Store {
        let options = self.options.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        Store::patient(&self.url, options, patience).unwrap()
    }

    pub(crate) fn sink(&self, format: Format) -> Objects {
        Objects::new(Settings::new(self.store(Duration::from_secs(30))).with_format(format)).unwrap()
    }

    /// All objects: those that are visible, and those that wait.
    pub(crate) fn names(&self) -> (Vec<String>, Vec<String>) {
        let listed = self.host.block_on(self.store.list(Some(&self.folder)).try_collect::<Vec<_>>()).unwrap();
        let below = |p: &Path| p.as_ref()[self.folder.as_ref().len() + 1..].to_owned();
        let mut names: Vec<String> = listed.iter().map(|o| below(&o.location)).collect();
        names.sort();
        names.into_iter().partition(|name| !name.starts_with("_staging/"))
    }

    fn get(&self, name: &str) -> bytes::Bytes {
        let path = Path::parse(format!("{}/{name}", self.folder)).unwrap();
        self.host.block_on(async { self.store.get(&path).await.unwrap().bytes().await.unwrap() })
    }

    /// The numbers in all visible parts.
    pub(crate) fn ids(&self) -> Vec<i64> {
        let mut ids = Vec::new();
        for name in self.names().0 {
            let content = self.get(&name);
            if name.ends_with(".parquet") {
                let reader = ParquetRecordBatchReaderBuilder::try_new(content).unwrap().build().unwrap();
                for batch in reader {
                    ids.extend(batch.unwrap().column(0).as_primitive::<Int64Type>().values());
                }
            } else {
                let lines = std::str::from_utf8(&content).unwrap().lines();
                ids.extend(lines.map(|l| serde_json::from_str::<Value>(l).unwrap()["id"].as_i64().unwrap()));
            }
        }
        ids.sort_unstable();
        ids
    }

    #[track_caller]
    pub(crate) fn holds(&self, ids: std::ops::Range<i64>) {
        let found = self.ids();
        let different: BTreeSet<i64> = found.iter().copied().collect();
        let shown = format!("{} rows, {} different", found.len(), different.len());
        assert!(found.iter().copied().eq(ids.clone()), "not {ids:?}: {shown}");
    }
}

/// A subtask of a generation that writes rows and prepares them as a checkpoint.
pub(crate) fn stage(
    sink: &Objects,
    generation: u64,
    subtask: u32,
    checkpoint: u64,
    ids: std::ops::Range<i64>,
) -> Vec<Staged> {
    let mut writer = sink.writer(subtask, generation, schema()).unwrap();
    writer.write(rows(ids)).unwrap();
    writer.prepare(checkpoint).unwrap()
}

/// Fails unless the message has all of these, and not the secret.
#[track_caller]
pub(crate) fn says<T>(result: pelton_core::Result<T>, parts: &[&str]) {
    let Err(error) = result else { panic!("it should have failed") };
    let shown = format!("{error} {error:?}");
    for part in parts {
        assert!(shown.contains(part), "`{part}` is not in: {shown}");
    }
    assert!(!shown.contains(SECRET), "the secret is in: {shown}");
}
