//! Reads lines, has a service shout them, writes JSON.
use std::sync::Arc;

use arrow_array::StringArray;
use arrow_array::cast::AsArray;
use pelton::prelude::*;

struct Shout {
    suffix: String,
}

impl Service for Shout {
    fn open(ctx: &Context) -> Result<Self> {
        let suffix = ctx.options.get("suffix").and_then(|s| s.as_str()).unwrap_or("!");
        Ok(Shout { suffix: suffix.to_owned() })
    }

    fn methods() -> Methods<Self> {
        let text = vec![Field::new("text", DataType::Utf8, false)];
        let loud = vec![Field::new("loud", DataType::Utf8, false)];
        Methods::<Self>::new().serial("shout", text, loud, |service, batch, _| {
            let texts = batch.column(0).as_string::<i32>().iter().flatten();
            let shouted = StringArray::from_iter_values(texts.map(|t| t.to_uppercase() + &service.suffix));
            Ok(RecordBatch::try_from_iter([("loud", Arc::new(shouted) as _)])?)
        })
    }
}

fn main() -> Result<()> {
    let mut job = Job::new("shouting");
    let shout = job.service::<Shout>(Declaration::new("shout").instances(2).option("suffix", "!!"))?;
    let args: Vec<String> = std::env::args().collect();
    let (input, output) =
        (args.get(1).map_or("README.md", String::as_str), args.get(2).map_or("shouted", String::as_str));
    job.read("lines", read_lines(input)?)
        .filter("not blank", |rows| {
            let texts = rows.column(1).as_string::<i32>().iter();
            Ok(texts.map(|t| Some(t.is_some_and(|t| !t.trim().is_empty()))).collect())
        })
        .call(&shout.method("shout"), &["text"])
        .write("shouted", json_lines(output)?);
    let summary = job.run()?;
    println!("{:?} in {:?}", summary.end, summary.elapsed);
    Ok(())
}
