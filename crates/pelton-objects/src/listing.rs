//! What is in a folder of an object store, as references.

use std::path::Path as FilePath;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use futures::TryStreamExt;
use object_store::ObjectMeta;
use pelton_core::id::stable_hash;
use pelton_core::object::uri;
use pelton_core::{Error, ObjectRef, Result};
use pelton_dataflow::source::{Reader, Source, Split};
use pelton_files::filter::Filter;
use pelton_files::references::{reader, schema, typed};
use pelton_files::{References, Selection};

use crate::names::STAGING;
use crate::store::{Store, Threads, failed};

/// Which objects are listed: all below the store's folder that the filters take. Names that begin with a dot are left out with all that
/// is below them, as is what an output has staged.
#[derive(Clone, Debug)]
pub struct ListingSettings {
    pub store: Store,
    /// Extensions without a dot, upper and lower case alike; empty for all.
    pub extensions: Vec<String>,
    /// Patterns as those of [`Selection`].
    pub globs: Vec<String>,
    /// Patterns of what is left out.
    pub exclude: Vec<String>,
}

impl ListingSettings {
    pub fn new(store: Store) -> Self {
        ListingSettings { store, extensions: vec![], globs: vec![], exclude: vec![] }
    }

    /// Only objects with one of these extensions.
    pub fn with_extensions(self, extensions: impl IntoIterator<Item = impl Into<String>>) -> Self {
        ListingSettings { extensions: extensions.into_iter().map(Into::into).collect(), ..self }
    }

    fn selection(&self) -> Selection {
        Selection {
            extensions: self.extensions.clone(),
            globs: self.globs.clone(),
            exclude: self.exclude.clone(),
            ..Selection::default()
        }
    }
}

/// Reads each object as one row: `uri` (its key below the folder), `object` (a reference to all of it, with its version and its media
/// type) and `bytes` (its size). Nothing of an object is read but what the listing says. An object is a split of its own, with position
/// 0 before it and 1 after it. Of a `file://` store it is the listing of [`References`].
pub struct Listing(Kind);

enum Kind {
    Files(References),
    Store { settings: ListingSettings, filter: Filter, threads: Arc<Threads> },
}

impl Listing {
    /// Sends nothing yet.
    pub fn new(settings: ListingSettings) -> Result<Listing> {
        let selection = settings.selection();
        if settings.store.shown.starts_with("file://") {
            let folder = FilePath::new("/").join(settings.store.folder.as_ref());
            let selection = Selection { inputs: vec![folder], ..selection };
            return References::new(&selection).map(|files| Listing(Kind::Files(files)));
        }
        if settings.store.root.is_none() {
            return Err(Error::invalid(format!(
                "listing {}: references are made for s3:// and file:// only",
                settings.store.shown
            )));
        }
        let filter = Filter::new(&selection)?;
        Ok(Listing(Kind::Store { settings, filter, threads: Arc::default() }))
    }
}

impl Source for Listing {
    fn describe(&self) -> String {
        match &self.0 {
            Kind::Files(files) => files.describe(),
            Kind::Store { settings, filter, .. } => {
                format!("references to objects of {}{filter}", settings.store.shown)
            }
        }
    }

    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn splits(&self) -> Result<Vec<Split>> {
        let (settings, filter, threads) = match &self.0 {
            Kind::Files(files) => return files.splits(),
            Kind::Store { settings, filter, threads } => (settings, filter, threads),
        };
        let store = settings.store.clone();
        let listed = threads.wait(async move {
            let all = store.store.list(Some(&store.folder)).try_collect::<Vec<ObjectMeta>>().await;
            all.map_err(|e| failed("listing", &store.folder, &e))
        });
        let listed = listed.map_err(|e| e.context(self.describe()))?;
        let below = settings.store.folder.as_ref();
        let mut splits: Vec<Split> = listed.into_iter().filter_map(|o| split(below, filter, o)).collect();
        splits.sort_by(|a, b| a.uri.cmp(&b.uri));
        let uris: Vec<String> = splits.iter().map(|s| s.uri.clone()).collect();
        // What stands for a folder in a store without folders: nothing, named like what is before its objects.
        splits.retain(|s| {
            let inside = format!("{}/", s.uri);
            let next = uris.partition_point(|uri| *uri < inside);
            s.bytes > 0 || !uris.get(next).is_some_and(|uri| uri.starts_with(&inside))
        });
        if splits.is_empty() {
            return Err(Error::invalid(format!("no object{filter} in {}", settings.store.shown)));
        }
        Ok(splits)
    }

    fn open(&self, split: &Split, position: u64) -> Result<Box<dyn Reader>> {
        let store = match &self.0 {
            Kind::Files(files) => return files.open(split, position),
            Kind::Store { settings, .. } => &settings.store,
        };
        let key = match store.folder.as_ref() {
            "" => split.uri.clone(),
            folder => format!("{folder}/{}", split.uri),
        };
        let root = store.root.as_deref().unwrap_or_default();
        let object = ObjectRef::new(format!("{root}/{}", uri::encode(key.as_bytes())));
        let object = object.and_then(|o| match split.version.as_str() {
            "" => Ok(o),
            version => o.with_version(version),
        });
        Ok(reader(split, position, object.and_then(|o| typed(o, &split.uri))))
    }
}

/// An object as a split; None if it is left out.
fn split(folder: &str, filter: &Filter, object: ObjectMeta) -> Option<Split> {
    let key = object.location.as_ref();
    let uri = key.strip_prefix(folder)?.trim_start_matches('/');
    let hidden = uri.split('/').any(|name| name.starts_with('.') || name == STAGING);
    if uri.is_empty() || hidden || !filter.takes(FilePath::new(uri), uri) {
        return None;
    }
    let version = object.e_tag.unwrap_or_default();
    Some(Split { id: stable_hash(uri), uri: uri.to_owned(), bytes: object.size, version })
}
