//! One object on its way into the store: encoded, and sent in pieces of bounded size.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowWriter;
use pelton_core::{Error, Result};
use pelton_env::Place;
use pelton_files::{json_lines, parquet as parquet_file};

use crate::settings::Format;
use crate::store::{Store, Threads, failed};

/// What is sent at once. S3 takes 10,000 pieces of 5 MiB at least.
const PIECE: usize = 8 << 20;

enum Encoder {
    Parquet(Box<ArrowWriter<Vec<u8>>>),
    JsonLines(json_lines::Lines<Vec<u8>>),
}

impl Encoder {
    fn new(format: Format, schema: SchemaRef) -> Result<Encoder> {
        Ok(match format {
            Format::Parquet => Encoder::Parquet(Box::new(parquet_file::writer(Vec::new(), schema, &[])?)),
            Format::JsonLines => Encoder::JsonLines(json_lines::writer(Vec::new())),
        })
    }

    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        match self {
            Encoder::Parquet(file) => file.write(rows).map_err(|e| Error::internal(e.to_string())),
            Encoder::JsonLines(lines) => lines.write(rows).map_err(|e| Error::internal(e.to_string())),
        }
    }

    fn finish(&mut self) -> Result<()> {
        match self {
            Encoder::Parquet(file) => file.finish().map(drop).map_err(|e| Error::internal(e.to_string())),
            Encoder::JsonLines(lines) => lines.finish().map_err(|e| Error::internal(e.to_string())),
        }
    }

    /// What was encoded and is not taken yet. The encoders count what they have written by themselves.
    fn buffer(&mut self) -> &mut Vec<u8> {
        match self {
            Encoder::Parquet(file) => file.inner_mut(),
            Encoder::JsonLines(lines) => lines.get_mut(),
        }
    }
}

/// An object that is being written. Taken back when dropped before it is sealed: nobody would commit it.
pub(crate) struct Upload {
    store: Store,
    threads: Arc<Threads>,
    path: Path,
    encoder: Encoder,
    /// From the first piece on; small objects are sent whole.
    pieces: Option<Box<dyn MultipartUpload>>,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
}

impl Upload {
    pub(crate) fn new(
        store: &Store,
        threads: &Arc<Threads>,
        path: Path,
        format: Format,
        schema: SchemaRef,
    ) -> Result<Upload> {
        let encoder = Encoder::new(format, schema)?;
        let (store, threads) = (store.clone(), threads.clone());
        Ok(Upload { store, threads, path, encoder, pieces: None, bytes: 0, rows: 0 })
    }

    pub(crate) fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.encoder.write(rows)?;
        self.rows += rows.num_rows() as u64;
        while self.encoder.buffer().len() >= PIECE {
            // Some stores want all pieces but the last of one size.
            let rest = self.encoder.buffer().split_off(PIECE);
            let piece = std::mem::replace(self.encoder.buffer(), rest);
            self.send(piece)?;
        }
        Ok(())
    }

    fn send(&mut self, piece: Vec<u8>) -> Result<()> {
        self.bytes += piece.len() as u64;
        let (store, path, pieces) = (self.store.clone(), self.path.clone(), self.pieces.take());
        let (pieces, sent) = self.threads.wait(async move {
            let mut pieces = match pieces {
                Some(pieces) => pieces,
                None => store
                    .store
                    .put_multipart(&path)
                    .await
                    .map_err(|e| failed("beginning to write", &path, &e))?,
            };
            let sent = pieces.put_part(PutPayload::from(piece)).await;
            Ok((pieces, sent.map_err(|e| failed("writing", &path, &e))))
        })?;
        self.pieces = Some(pieces);
        sent
    }

    /// Ends it: durable, as far as the store promises.
    pub(crate) fn seal(&mut self) -> Result<()> {
        self.encoder.finish()?;
        if self.pieces.is_some() && !self.encoder.buffer().is_empty() {
            let rest = std::mem::take(self.encoder.buffer());
            self.send(rest)?;
        }
        let (store, path) = (self.store.clone(), self.path.clone());
        match self.pieces.take() {
            Some(mut pieces) => {
                let (pieces, done) = self.threads.wait(async move {
                    let done = pieces.complete().await.map(drop);
                    Ok((pieces, done.map_err(|e| failed("ending", &path, &e))))
                })?;
                if done.is_err() {
                    self.pieces = Some(pieces);
                }
                done
            }
            None => {
                let whole = std::mem::take(self.encoder.buffer());
                self.bytes = whole.len() as u64;
                self.threads.wait(async move {
                    let put = store.store.put(&path, PutPayload::from(whole)).await;
                    put.map(drop).map_err(|e| failed("writing", &path, &e))
                })
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let (Some(mut pieces), Ok(env)) = (self.pieces.take(), self.threads.env()) {
            let abort = async move {
                if let Err(e) = pieces.abort().await {
                    tracing::warn!("an upload that was begun could not be taken back: {e}");
                }
            };
            env.spawn(Place::Network, abort).detach();
        }
    }
}
