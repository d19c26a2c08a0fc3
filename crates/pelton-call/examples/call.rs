//! Calls `shout` of a job on this machine: `cargo run -p pelton-call --example call -- JOB SERVICE hello world`.
use std::sync::Arc;

use arrow_array::StringArray;
use arrow_array::cast::AsArray;
use pelton_call::{Error, RecordBatch, Result, ServiceClient, Target};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(job), Some(service)) = (arguments.next(), arguments.next()) else {
        return Err(Error::invalid("say which job and which service"));
    };
    let service = ServiceClient::connect_blocking(Target::job(job, service))?;
    let text = StringArray::from_iter_values(arguments);
    let loud =
        service.call_blocking("shout", RecordBatch::try_from_iter([("text", Arc::new(text) as _)])?)?;
    for word in loud.column(0).as_string::<i32>().iter().flatten() {
        println!("{word}");
    }
    Ok(())
}
