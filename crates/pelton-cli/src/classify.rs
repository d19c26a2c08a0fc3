//! `pelton classify`: PNG images -> pixels -> label and score -> JSON lines.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use arrow_schema::{DataType, Field};
use clap::Args;
use pelton::files::{Folder, JsonLines, Selection, folder, sink};
use pelton::{Declaration, Job};
use pelton_models::{Classifier, Pixels};

use crate::pipeline::{OnError, Options};

/// The model in the source tree.
pub(crate) const MODEL: &str = "models/digits/digits.onnx";

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: Options,
    /// ONNX model: 64 pixels to the probability of each digit
    #[arg(long, value_name = "FILE", default_value = MODEL)]
    model: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = &arguments.options;
    let job = graph(arguments)?;
    options.run(job, "digits", &[])
}

/// The service as it is declared where no file says otherwise.
pub(crate) fn classifier(model: &Path) -> Result<Declaration> {
    let path = std::path::absolute(model).context("the current folder")?;
    let text = path.to_str().with_context(|| format!("{} is not a UTF-8 path", path.display()))?;
    Ok(Declaration::new("classifier").max_rows(64).option("model", text))
}

fn graph(arguments: &Arguments) -> Result<Job> {
    let options = &arguments.options;
    let mut job = options.job("classify");
    let built_in = classifier(&arguments.model)?;
    let mut declaration = options.declaration(built_in.clone())?;
    if options.has_own_declaration()
        && declaration.kind.is_none()
        && !declaration.has_endpoints()
        && !declaration.options.contains_key("model")
    {
        declaration.options.extend(built_in.options);
    }
    let classifier = job.service::<Classifier>(declaration)?;

    let files = Selection {
        extensions: vec!["png".into()],
        skip: vec![options.output.clone()],
        ..Selection::all(options.input.iter().cloned())
    };
    let files = folder::Settings { max_bytes: options.max_file_size, ..folder::Settings::new(files) };

    let source = Folder::new(&files)?;
    let images = match options.on_error {
        OnError::Output => job.read_with_errors("images", source),
        OnError::Fail => job.read("images", source),
    };
    let pixels = images.apply("decode", Pixels);
    let labels = pixels.call(&classifier.method("classify").unordered(), &["pixels"]);
    let written = vec![
        Field::new("uri", DataType::Utf8, false),
        Field::new("label", DataType::Int32, false),
        Field::new("score", DataType::Float32, false),
    ];
    let columns: Vec<String> = written.iter().map(|f| f.name().clone()).collect();
    let results = labels.map("select", written, move |rows| {
        let wanted =
            columns.iter().map(|name| rows.schema().index_of(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(rows.project(&wanted)?)
    });
    results.write("digits", JsonLines::new(&sink::Settings::new(&options.output))?);
    if options.on_error == OnError::Output {
        let errors = JsonLines::new(&sink::Settings::new(&options.output).with_prefix("errors"))?;
        images.errors().write_with("errors", &[pixels.errors(), labels.errors()], errors);
    }
    Ok(job)
}
