//! `pelton index`: documents -> text -> chunks -> embeddings -> Parquet.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use pelton::files::{Folder, JsonLines, Parquet, Selection, folder, sink};
use pelton::{Declaration, Job};
use pelton_models::Embedder;
use pelton_text::{Chunk, Chunker, Extract, chunk};

use crate::pipeline::{OnError, Options};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Folder of the embedding model [default: $PELTON_MODEL, else .cache/models/all-minilm-l6-v2]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Kinds of documents to read, by extension
    #[arg(long, value_name = "EXTENSION", value_delimiter = ',', default_value = "md,markdown,txt,html,htm")]
    extensions: Vec<String>,
    /// Names of files to leave out; by default the one-page editions that book makers write beside the chapters
    #[arg(long, value_name = "GLOB", value_delimiter = ',', default_value = "print.html")]
    exclude: Vec<String>,
    /// Most tokens in a chunk
    #[arg(long, value_name = "N", default_value_t = chunk::Size::default().tokens)]
    chunk_tokens: usize,
    /// Most tokens that a chunk repeats of the one before
    #[arg(long, value_name = "N", default_value_t = chunk::Size::default().overlap)]
    chunk_overlap: usize,
}

/// The service as it is declared where no file says otherwise.
pub(crate) fn embedder(model: &std::path::Path) -> Result<Declaration> {
    let path = std::path::absolute(model).context("the current folder")?;
    let text = path.to_str().with_context(|| format!("{} is not a UTF-8 path", path.display()))?;
    Ok(Declaration::new("embedder").max_rows(8).option("model", text))
}

/// Where the embedding model is.
pub(crate) fn model_folder(given: Option<&PathBuf>) -> PathBuf {
    given
        .cloned()
        .or_else(|| std::env::var_os("PELTON_MODEL").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(".cache/models/all-minilm-l6-v2"))
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = &arguments.options;
    let job = graph(arguments)?;
    let shape = [
        ("--chunk-tokens", arguments.chunk_tokens.to_string()),
        ("--chunk-overlap", arguments.chunk_overlap.to_string()),
    ];
    options.run(job, "chunks", &shape)
}

fn graph(arguments: &Arguments) -> Result<Job> {
    let options = &arguments.options;
    let model = model_folder(arguments.model.as_ref());
    let mut job = options.job("index");
    let mut declaration = options.declaration(embedder(&model)?)?;
    // A declaration of one's own may leave the model to the command line; a scripted one has none.
    if options.has_own_declaration()
        && declaration.kind.is_none()
        && !declaration.has_endpoints()
        && !declaration.options.contains_key("model")
    {
        declaration.options.extend(embedder(&model)?.options);
    }
    let embedder = job.service::<Embedder>(declaration)?;

    let size = chunk::Size { tokens: arguments.chunk_tokens, overlap: arguments.chunk_overlap };
    let chunker = Chunker::new(&model.join("tokenizer.json"), size)?;
    let files = Selection {
        extensions: arguments.extensions.clone(),
        exclude: arguments.exclude.clone(),
        skip: vec![options.output.clone()],
        ..Selection::all(options.input.iter().cloned())
    };
    let files = folder::Settings { max_bytes: options.max_file_size, ..folder::Settings::new(files) };

    let read = |job: &mut Job, source| match options.on_error {
        OnError::Output => job.read_with_errors("documents", source),
        OnError::Fail => job.read("documents", source),
    };
    let documents = read(&mut job, Folder::new(&files)?);
    let texts = documents.apply("extract", Extract);
    let chunks = texts.apply("chunk", Chunk::new(chunker));
    let embedded = chunks.call(&embedder.method("embed").unordered(), &["text"]);
    embedded.write("chunks", Parquet::new(&sink::Settings::new(&options.output))?);
    if options.on_error == OnError::Output {
        let errors = JsonLines::new(&sink::Settings::new(&options.output).with_prefix("errors"))?;
        documents.errors().write_with(
            "errors",
            &[texts.errors(), chunks.errors(), embedded.errors()],
            errors,
        );
    }
    Ok(job)
}
