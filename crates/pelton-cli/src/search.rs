//! `pelton search`: the chunks of an index that are closest to a question.

use std::cmp::Ordering;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt32Type};
use arrow_array::{Array, RecordBatch, StringArray};
use clap::Args;
use pelton::Local;
use pelton::env::real::Host;
use pelton_models::Embedder;

use crate::index::{embedder, model_folder};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Folder that `pelton index` wrote
    index: PathBuf,
    /// What to look for
    question: String,
    /// Folder of the embedding model, the same that made the index [default: as for `pelton index`]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// How many chunks to show
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// A chunk and how close it is: the cosine of the angle between its embedding and the question's, at most 1.
#[derive(Clone, Debug)]
struct Hit {
    score: f32,
    uri: String,
    chunk: u32,
    text: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    crate::log();
    let parts = pelton::files::read_parquet(&arguments.index, "part")?;
    let (question, version) = embed(arguments)?;
    let mut hits: Vec<Hit> = Vec::new();
    for rows in parts {
        collect(&rows?, &question, &version, arguments.top, &mut hits)?;
    }
    if hits.is_empty() {
        eprintln!("the index {} is empty", arguments.index.display());
    }
    for hit in hits {
        show(&hit, arguments.json);
    }
    Ok(ExitCode::SUCCESS)
}

/// The question's embedding and the version of the model that made it, by the same service that made the index.
fn embed(arguments: &Arguments) -> Result<(Vec<f32>, String)> {
    let host = Host::new(1, 1)?;
    let declaration = embedder(&model_folder(arguments.model.as_ref()))?;
    let mut service = Local::open::<Embedder>(host.env(), declaration)?;
    let text: Arc<dyn Array> = Arc::new(StringArray::from(vec![arguments.question.as_str()]));
    let schema = Arc::new(arrow_schema::Schema::new(vec![arrow_schema::Field::new(
        "text",
        arrow_schema::DataType::Utf8,
        false,
    )]));
    let answer = service.call("embed", RecordBatch::try_new(schema, vec![text])?)?;
    let vector = answer.column(0).as_fixed_size_list().value(0);
    let vector = vector.as_primitive::<Float32Type>().values().to_vec();
    Ok((vector, answer.column(1).as_string::<i32>().value(0).to_owned()))
}

/// Keeps the best `top` of what there is and these rows.
fn collect(
    rows: &RecordBatch,
    question: &[f32],
    version: &str,
    top: usize,
    hits: &mut Vec<Hit>,
) -> Result<()> {
    let column = |name: &str| {
        rows.column_by_name(name)
            .with_context(|| format!("the index has no column `{name}`; was it made by `pelton index`?"))
    };
    let (uris, texts, models) = (column("uri")?, column("text")?, column("model")?);
    let uris = uris.as_string_opt::<i32>().context("column `uri` is not text")?;
    let texts = texts.as_string_opt::<i32>().context("column `text` is not text")?;
    let models = models.as_string_opt::<i32>().context("column `model` is not text")?;
    let chunks =
        column("chunk")?.as_primitive_opt::<UInt32Type>().context("column `chunk` is not a number")?;
    let embeddings =
        column("embedding")?.as_fixed_size_list_opt().context("column `embedding` is not a vector")?;
    let dimension = usize::try_from(embeddings.value_length())?;
    if dimension != question.len() {
        bail!("the index holds embeddings of {dimension} dimensions, the model gives {}", question.len());
    }
    let values = embeddings
        .values()
        .as_primitive_opt::<Float32Type>()
        .context("column `embedding` is not of float32")?;
    for row in 0..rows.num_rows() {
        if models.value(row) != version {
            bail!(
                "the index was made by model {}, and this is {version}; name the same with --model, or index anew",
                models.value(row)
            );
        }
        let start = embeddings.value_offset(row) as usize;
        let vector = &values.values()[start..start + dimension];
        let score: f32 = vector.iter().zip(question).map(|(a, b)| a * b).sum();
        if hits.len() < top || hits.last().is_some_and(|worst| score > worst.score) {
            hits.push(Hit {
                score,
                uri: uris.value(row).to_owned(),
                chunk: chunks.value(row),
                text: texts.value(row).to_owned(),
            });
            hits.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));
            hits.truncate(top);
        }
    }
    Ok(())
}

fn show(hit: &Hit, json: bool) {
    if json {
        let line =
            serde_json::json!({ "score": hit.score, "uri": hit.uri, "chunk": hit.chunk, "text": hit.text });
        println!("{line}");
        return;
    }
    let words: Vec<&str> = hit.text.split_whitespace().collect();
    let mut text = words.join(" ");
    if let Some((end, _)) = text.char_indices().nth(240) {
        text.truncate(end);
        text.push_str(" ...");
    }
    println!("{:.3}  {} (chunk {})\n       {text}", hit.score, hit.uri, hit.chunk);
}
