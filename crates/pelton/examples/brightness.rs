//! Pictures that stay where they are: the job passes references, and the service reads what they refer to.
//!
//! `brightness s3://bucket/pictures out` tells of each picture (PGM, P5) below a url, or in a folder, whether it is light or dark. With a
//! file of JSON lines in place of the url the references come from there: `{"uri": "https://..", "version": "\"etag\""}`.

use std::sync::Arc;

use pelton::object::{self, ObjectRef, Objects};
use pelton::objects::{ObjectReader, ReaderSettings};
use pelton::prelude::*;
use pelton::{object_reader, read_objects};

use arrow_array::cast::AsArray;
use arrow_array::{Float32Array, StringArray};

struct Brightness {
    reader: ObjectReader,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    objects: ReaderSettings,
}

impl Service for Brightness {
    fn open(ctx: &Context) -> Result<Self> {
        let Options { objects } = ctx.options()?;
        Ok(Brightness { reader: object_reader(ctx, &objects)? })
    }

    fn methods() -> Methods<Self> {
        let output =
            vec![Field::new("looks", DataType::Utf8, false), Field::new("mean", DataType::Float32, false)];
        Methods::<Self>::new().serial(
            "judge",
            vec![object::field("object", false)],
            output,
            |service, rows, _| {
                let objects = Objects::of(&rows, "object")?.all()?;
                let pictures = service.reader.read_all(&objects)?;
                let means = pictures.iter().zip(&objects).map(|(bytes, object)| {
                    mean(bytes).ok_or_else(|| Error::user(format!("object {object}: it is no PGM picture")))
                });
                let means = means.collect::<Result<Vec<f32>>>()?;
                let looks = means.iter().map(|mean| if *mean < 0.5 { "dark" } else { "light" });
                let looks = StringArray::from_iter_values(looks);
                let means = Float32Array::from(means);
                Ok(RecordBatch::try_from_iter([
                    ("looks", Arc::new(looks) as _),
                    ("mean", Arc::new(means) as _),
                ])?)
            },
        )
    }
}

/// Of a picture's values, from 0 (black) to 1 (white).
fn mean(pgm: &[u8]) -> Option<f32> {
    let mut rest = pgm.strip_prefix(b"P5")?;
    let mut numbers = [0u32; 3];
    for number in &mut numbers {
        rest = rest.trim_ascii_start();
        let digits = rest.iter().position(|b| !b.is_ascii_digit())?;
        *number = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        rest = &rest[digits..];
    }
    let [width, height, white] = numbers;
    let values = rest.get(1..)?;
    let wanted = u64::from(width) * u64::from(height);
    if wanted == 0 || values.len() as u64 != wanted || !(1..=255).contains(&white) {
        return None;
    }
    let sum: u64 = values.iter().map(|v| u64::from(*v)).sum();
    Some((sum as f64 / wanted as f64 / f64::from(white)) as f32)
}

/// References out of the column `text`, a line of JSON each.
fn parse(rows: RecordBatch) -> Result<RecordBatch> {
    let read = |line: &str| -> Result<ObjectRef> {
        serde_json::from_str(line).map_err(|e| Error::user(format!("line `{line}` is no reference: {e}")))
    };
    let objects = rows.column(1).as_string::<i32>().iter().flatten().map(read).collect::<Result<Vec<_>>>()?;
    let schema = Arc::new(arrow_schema::Schema::new(vec![object::field("object", false)]));
    Ok(RecordBatch::try_new(schema, vec![object::column(objects.iter().map(Some))])?)
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, roots @ ..] = args.as_slice() else {
        return Err(Error::invalid("brightness URL|FOLDER|LINES.jsonl OUTPUT [ROOT..]"));
    };
    let mut job = Job::new("brightness");
    let mut declaration = Declaration::new("brightness").instances(2).max_rows(8);
    declaration.on_error = ErrorPolicy::ErrorOutput;
    let objects = ReaderSettings::new(roots.iter().cloned().chain(root(input)));
    let objects = serde_json::to_value(objects).map_err(|e| Error::invalid(e.to_string()))?;
    let service = job.service::<Brightness>(declaration.option("objects", objects))?;
    let references = match input.ends_with(".jsonl") {
        true => job.read("references", read_lines(input)?).map(
            "parse",
            vec![object::field("object", false)],
            parse,
        ),
        false => job.read("references", read_objects(input, &[])?),
    };
    let judged = references.call(&service.method("judge").unordered(), &["object"]);
    judged.write("judged", json_lines(output)?);
    judged.errors().write("errors", json_lines(format!("{output}/errors"))?);
    let summary = job.run()?;
    for node in &summary.nodes {
        println!("{}: {} rows in, {} rows out, {} bytes", node.name, node.rows_in, node.rows_out, node.bytes);
    }
    Ok(())
}

/// The place that a url or a folder is in; a file of references says nothing of places.
fn root(input: &str) -> Option<String> {
    match (input.contains("://"), input.ends_with(".jsonl")) {
        (true, _) => Some(input.to_owned()),
        (false, true) => None,
        (false, false) => {
            let path = std::path::absolute(input).ok()?;
            Some(format!("file://{}", object::uri::encode(path.as_os_str().as_encoded_bytes())))
        }
    }
}
