//! What a scripted method answers: made of the input row and nothing else.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type, UInt8Type, UInt32Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, BinaryArray, FixedSizeListArray, Float32Array, Int32Array, Int64Array, RecordBatch,
    StringArray, UInt8Array, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field, SchemaRef};
use pelton_core::service::MethodSpec;
use pelton_core::{Error, Result};

/// Refuses methods that cannot be scripted.
pub(crate) fn check(method: &MethodSpec) -> Result<()> {
    for field in method.output.fields() {
        let echoed = method
            .input
            .fields()
            .iter()
            .any(|f| f.name() == field.name() && f.data_type() == field.data_type());
        if !echoed && !can_make(field.data_type()) {
            let (name, data_type) = (field.name(), field.data_type());
            return Err(Error::invalid(format!(
                "method `{}`: column `{name}` of type {data_type} cannot be scripted",
                method.name
            )));
        }
    }
    Ok(())
}

fn can_make(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8
        | DataType::Binary
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32 => true,
        DataType::FixedSizeList(item, _) => *item.data_type() == DataType::Float32,
        _ => false,
    }
}

/// A column of the input comes back under its name; the others are made of a hash of the row.
pub(crate) fn answer(batch: &RecordBatch, output: &SchemaRef) -> Result<RecordBatch> {
    let hashes = hashes(batch);
    let columns = output.fields().iter().map(|field| {
        let same = batch.column_by_name(field.name()).filter(|c| c.data_type() == field.data_type());
        same.cloned().map_or_else(|| make(field, &hashes), Ok)
    });
    let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
    Ok(RecordBatch::try_new(output.clone(), columns)?)
}

/// A part of a streamed answer, made of the request's row, of its number and of nothing else. A column `part` of 64-bit integers holds
/// that number. `bytes`: what the columns of text and bytes take together.
pub(crate) fn part(
    request: &RecordBatch,
    number: u64,
    rows: u32,
    bytes: Option<u64>,
    output: &SchemaRef,
) -> Result<RecordBatch> {
    let row = hashes(request).first().copied().unwrap_or_default();
    let first = number * u64::from(rows);
    let hashes: Vec<u64> = (first..first + u64::from(rows)).map(|n| mix(row ^ mix(n + 1))).collect();
    let is_sized = |t: &DataType| matches!(t, DataType::Utf8 | DataType::Binary);
    let echo =
        |field: &Field| request.column_by_name(field.name()).filter(|c| c.data_type() == field.data_type());
    let sized =
        output.fields().iter().filter(|f| is_sized(f.data_type()) && echo(f).is_none()).count() as u64;
    let each = bytes.map(|bytes| (bytes / (u64::from(rows) * sized.max(1))) as usize);
    let columns = output.fields().iter().map(|field| {
        if let Some(column) = echo(field) {
            return Ok(arrow_select::take::take(column, &UInt32Array::from(vec![0; rows as usize]), None)?);
        }
        Ok(match (field.data_type(), field.name().as_str()) {
            (DataType::UInt64, "part") => {
                Arc::new(UInt64Array::from(vec![number; rows as usize])) as ArrayRef
            }
            (DataType::Int64, "part") => Arc::new(Int64Array::from(vec![number as i64; rows as usize])),
            (DataType::Utf8, _) if each.is_some() => {
                let text = |h: &u64| filled(format!("{h:016x}").into_bytes(), each.unwrap_or_default());
                let texts = hashes.iter().map(|h| String::from_utf8_lossy(&text(h)).into_owned());
                Arc::new(StringArray::from_iter_values(texts))
            }
            (DataType::Binary, _) if each.is_some() => {
                let cell = |h: &u64| filled(h.to_le_bytes().to_vec(), each.unwrap_or_default());
                Arc::new(BinaryArray::from_iter_values(hashes.iter().map(cell)))
            }
            _ => make(field, &hashes)?,
        })
    });
    let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
    Ok(RecordBatch::try_new(output.clone(), columns)?)
}

/// The pattern as often as it takes to fill so many bytes.
fn filled(pattern: Vec<u8>, bytes: usize) -> Vec<u8> {
    let mut filled = pattern.repeat(bytes.div_ceil(pattern.len()));
    filled.truncate(bytes);
    filled
}

fn make(field: &Field, hashes: &[u64]) -> Result<ArrayRef> {
    let each = || hashes.iter().copied();
    Ok(match field.data_type() {
        DataType::Utf8 => Arc::new(StringArray::from_iter_values(each().map(|h| format!("{h:016x}")))),
        DataType::Binary => Arc::new(BinaryArray::from_iter_values(each().map(u64::to_le_bytes))),
        DataType::Int32 => Arc::new(Int32Array::from_iter_values(each().map(|h| (h >> 33) as i32))),
        DataType::Int64 => Arc::new(Int64Array::from_iter_values(each().map(|h| (h >> 1) as i64))),
        DataType::UInt8 => Arc::new(UInt8Array::from_iter_values(each().map(|h| (h % 10) as u8))),
        DataType::UInt32 => Arc::new(UInt32Array::from_iter_values(each().map(|h| h as u32))),
        DataType::UInt64 => Arc::new(UInt64Array::from_iter_values(each())),
        DataType::Float32 => Arc::new(Float32Array::from_iter_values(each().map(unit))),
        DataType::FixedSizeList(item, size) => {
            let values = each().flat_map(|h| (0..*size as u64).map(move |i| unit(mix(h ^ i))));
            let values = Arc::new(Float32Array::from_iter_values(values));
            Arc::new(FixedSizeListArray::try_new(item.clone(), *size, values, None)?)
        }
        other => return Err(Error::invalid(format!("a column of type {other} cannot be scripted"))),
    })
}

/// The first row of the batch that is one of the poisoned.
pub(crate) fn poisoned(batch: &RecordBatch, rate: f64) -> Option<usize> {
    if rate <= 0.0 {
        return None;
    }
    hashes(batch).iter().position(|h| f64::from(unit(mix(*h))) < rate)
}

/// 0 to 1, evenly.
fn unit(hash: u64) -> f32 {
    (hash >> 40) as f32 / (1u64 << 24) as f32
}

/// The finaliser of splitmix64 (Vigna, 2015).
fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

/// A hash of each row's contents, as far as its columns are of the usual types.
fn hashes(batch: &RecordBatch) -> Vec<u64> {
    (0..batch.num_rows())
        .map(|row| {
            mix(batch.columns().iter().fold(0xcbf2_9ce4_8422_2325, |h, column| add_cell(h, column, row)))
        })
        .collect()
}

fn add_cell(h: u64, column: &ArrayRef, row: usize) -> u64 {
    let bytes =
        |bytes: &[u8]| bytes.iter().fold(h, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3));
    let number = |n: u64| mix(h ^ n);
    if column.is_null(row) {
        return mix(h);
    }
    match column.data_type() {
        DataType::Utf8 => bytes(column.as_string::<i32>().value(row).as_bytes()),
        DataType::Binary => bytes(column.as_binary::<i32>().value(row)),
        DataType::Int32 => number(column.as_primitive::<Int32Type>().value(row) as u64),
        DataType::Int64 => number(column.as_primitive::<Int64Type>().value(row) as u64),
        DataType::UInt8 => number(u64::from(column.as_primitive::<UInt8Type>().value(row))),
        DataType::UInt32 => number(u64::from(column.as_primitive::<UInt32Type>().value(row))),
        DataType::UInt64 => number(column.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => number(u64::from(column.as_primitive::<Float32Type>().value(row).to_bits())),
        DataType::FixedSizeList(..) => {
            let cells = column.as_fixed_size_list().value(row);
            (0..cells.len()).fold(h, |h, i| add_cell(h, &cells, i))
        }
        _ => mix(h ^ 1),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::Duration;

    use arrow_schema::Schema;
    use futures::FutureExt;
    use pelton_core::BoxFuture;
    use pelton_core::service::{Cardinality, Context, Emitter, Invocation, Started};
    use pelton_core::time::{Clock, Time};

    use super::*;

    /// Time passes when somebody sleeps, and takes none.
    #[derive(Default)]
    struct Leaping(AtomicU64);
    impl Clock for Leaping {
        fn now(&self) -> Time {
            Time::from_origin(Duration::from_nanos(self.0.load(Ordering::Relaxed)))
        }
        fn sleep(&self, d: Duration) -> BoxFuture<()> {
            self.0.fetch_add(d.as_nanos() as u64, Ordering::Relaxed);
            Box::pin(async {})
        }
        fn unix_millis(&self) -> u64 {
            0
        }
    }

    fn context(options: serde_json::Value) -> Context {
        Context {
            service: "s".into(),
            instance: 0,
            options: options.as_object().cloned().unwrap_or_default(),
            resources: Default::default(),
            clock: Arc::new(Leaping::default()),
            seed: 1,
            gauge: Default::default(),
            counters: Default::default(),
            crash: Arc::new(|why| panic!("{why}")),
        }
    }

    fn method() -> MethodSpec {
        let field = |name: &str, t| Field::new(name, t, false);
        let item = Arc::new(field("item", DataType::Float32));
        MethodSpec {
            name: "embed".into(),
            input: Arc::new(Schema::new(vec![field("text", DataType::Utf8)])),
            output: Arc::new(Schema::new(vec![
                field("embedding", DataType::FixedSizeList(item, 4)),
                field("text", DataType::Utf8),
            ])),
            cardinality: Cardinality::One,
            concurrency: None,
        }
    }

    fn texts(texts: &[&str]) -> RecordBatch {
        RecordBatch::try_new(method().input, vec![Arc::new(StringArray::from(texts.to_vec()))]).unwrap()
    }

    fn run(options: serde_json::Value, batch: RecordBatch) -> Result<RecordBatch> {
        let mut service =
            futures::executor::block_on(crate::in_place_of(&[method()])?.open(context(options)))?;
        match service.run(0, batch, &Invocation::default(), &Emitter::none()) {
            Started::Done(result) => result,
            Started::Pending(future) => futures::executor::block_on(future),
        }
    }

    #[test]
    fn an_answer_depends_on_its_row_alone() {
        let both = run(serde_json::json!({}), texts(&["a", "b"])).unwrap();
        assert_eq!(both.schema(), method().output);
        assert_eq!(run(serde_json::json!({}), texts(&["b"])).unwrap(), both.slice(1, 1));
        assert_ne!(both.column(0).slice(0, 1).as_ref(), both.column(0).slice(1, 1).as_ref());
    }

    /// What a stream gives for a request: rows of each part, bytes of its text, and how it ended, with the time in ms.
    fn streamed(options: serde_json::Value, cancel_at: Option<usize>) -> (Vec<(u64, usize, usize)>, String) {
        let field = |name: &str, t| Field::new(name, t, false);
        let output = vec![
            field("text", DataType::Utf8),
            field("part", DataType::UInt64),
            field("rest", DataType::Binary),
        ];
        let method =
            MethodSpec { output: Arc::new(Schema::new(output)), cardinality: Cardinality::Many, ..method() };
        let context = context(options);
        let clock = context.clock.clone();
        let definition = crate::in_place_of(std::slice::from_ref(&method)).unwrap();
        let mut service = futures::executor::block_on(definition.open(context)).unwrap();
        let cancelled = Arc::new(AtomicBool::new(false));
        let parts: Arc<std::sync::Mutex<Vec<_>>> = Arc::default();
        let emitter = Emitter::new(Default::default(), {
            let (parts, cancelled) = (parts.clone(), cancelled.clone());
            move |rows: RecordBatch| {
                let mut parts = parts.lock().unwrap();
                assert_eq!(rows.schema(), method.output);
                assert!(rows.column(0).as_string::<i32>().iter().all(|text| text == Some("a")));
                let number = rows.column(1).as_primitive::<UInt64Type>().value(0);
                let bytes = rows.column(2).as_binary::<i32>().value_data().len();
                parts.push((number, rows.num_rows(), bytes));
                cancelled.store(cancel_at == Some(parts.len()), Ordering::Relaxed);
                Ok(())
            }
        });
        let invocation = Invocation::new(None, cancelled);
        let Started::Pending(future) = service.run(0, texts(&["a"]), &invocation, &emitter) else {
            panic!("scripted methods return futures")
        };
        let ended = futures::executor::block_on(future).map(|_| "ok".to_owned());
        let ended = ended.unwrap_or_else(|e| e.message().to_owned());
        let parts = parts.lock().unwrap().clone();
        (parts, format!("{ended} at {} ms", clock.now().since_origin().as_millis()))
    }

    #[test]
    fn streams_give_parts_as_scripted() {
        let plain = streamed(serde_json::json!({"latency": "10ms", "parts": 3, "pause": "5ms"}), None);
        assert_eq!(plain, (vec![(0, 1, 8), (1, 1, 8), (2, 1, 8)], "ok at 20 ms".into()));
        let large = serde_json::json!({"parts": 2, "part_rows": 10, "part_bytes": "1MiB"});
        assert_eq!(streamed(large, None).0, [(0, 10, 1048570), (1, 10, 1048570)]);
        assert_eq!(streamed(serde_json::json!({"parts": 0}), None), (vec![], "ok at 0 ms".into()));
        let fails = streamed(serde_json::json!({"fail_at_part": 3}), None);
        assert_eq!((fails.0.len(), fails.1.as_str()), (2, "scripted to fail at part 3 of a stream at 0 ms"));
        let stopped = streamed(serde_json::json!({"pause": "1s"}), Some(2));
        assert_eq!(stopped.0.len(), 2);
        assert!(stopped.1.starts_with("stopped: nobody waits"), "{}", stopped.1);
    }

    #[test]
    fn failures_come_as_scripted() {
        let refused = |options| run(options, texts(&["a"; 40])).unwrap_err();
        assert_eq!(refused(serde_json::json!({"failure_rate": 1.0})).message(), "scripted to fail");
        assert!(refused(serde_json::json!({"poison_rate": 1.0})).message().contains("row 0"));
        assert!(refused(serde_json::json!({"jitter": 2.0})).message().contains("`jitter` is 2"));
        assert!(refused(serde_json::json!({"slow_factor": -1.0})).message().contains("`slow_factor` is -1"));
        assert!(refused(serde_json::json!({"hang_for": "1s"})).message().contains("`hang_after`"));
        assert!(refused(serde_json::json!({"part_rows": 0})).message().contains("`part_rows` is 0"));
        assert!(refused(serde_json::json!({"latencie": "1s"})).message().contains("latencie"));
        assert_eq!(refused(serde_json::json!({"open_error": "no model"})).message(), "no model");
        let memory = refused(serde_json::json!({"memory_error_rows": 39}));
        assert!(memory.message().contains("40 rows; 39 fit"), "{memory}");
        assert!(run(serde_json::json!({"memory_error_rows": 40}), texts(&["a"; 40])).is_ok());
        for crashing in [
            serde_json::json!({"memory_rows": 39}),
            serde_json::json!({"poison_rate": 1.0, "crash_on_poison": true}),
            serde_json::json!({"crash_after": 1, "only_instance": 0}),
        ] {
            let crash = catch_unwind(AssertUnwindSafe(|| run(crashing.clone(), texts(&["a"; 40]))));
            assert!(crash.is_err(), "{crashing}");
        }
    }

    /// How long each of so many batches of 10 rows takes, in milliseconds, one after another; None for one that hangs.
    fn times(options: serde_json::Value, batches: usize) -> Vec<Option<u64>> {
        let context = context(options);
        let clock = context.clock.clone();
        let definition = crate::in_place_of(&[method()]).unwrap();
        let mut service = futures::executor::block_on(definition.open(context)).unwrap();
        let time = |_| {
            let begun = clock.now();
            let started = service.run(0, texts(&["a"; 10]), &Invocation::default(), &Emitter::none());
            let Started::Pending(future) = started else { panic!("scripted methods return futures") };
            future.now_or_never().map(|result| {
                result.unwrap();
                clock.now().since(begun).as_millis() as u64
            })
        };
        (0..batches).map(time).collect()
    }

    #[test]
    fn batches_take_the_time_that_is_scripted() {
        let with = |more: serde_json::Value| {
            let mut options = serde_json::json!({"latency": "20ms", "per_row": "500us"});
            options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            times(options, 3)
        };
        assert_eq!(with(serde_json::json!({})), [Some(25); 3]);
        assert_eq!(with(serde_json::json!({"slow_after": 2})), [Some(25), Some(250), Some(250)]);
        assert_eq!(
            with(serde_json::json!({"slow_after": 2, "slow_factor": 2.0})),
            [Some(25), Some(50), Some(50)]
        );
        assert_eq!(with(serde_json::json!({"slow_after": 2, "only_instance": 1})), [Some(25); 3]);
        assert_eq!(with(serde_json::json!({"hang_after": 2})), [Some(25), None, None]);
        assert_eq!(
            with(serde_json::json!({"hang_after": 2, "hang_for": "1s"})),
            [Some(25), Some(1025), Some(25)]
        );
    }

    #[test]
    fn batches_beyond_what_runs_well_take_longer() {
        let context =
            context(serde_json::json!({"latency": "10ms", "overload_beyond": 2, "overload_growth": 3.0}));
        let clock = context.clock.clone();
        let concurrent = MethodSpec { concurrency: Some(8), ..method() };
        let definition = crate::in_place_of(&[concurrent]).unwrap();
        let mut service = futures::executor::block_on(definition.open(context)).unwrap();
        // Each takes its time when it is looked at, and is one of those that run from when it was started.
        let mut started: Vec<_> = (0..4)
            .map(|_| match service.run(0, texts(&["a"]), &Invocation::default(), &Emitter::none()) {
                Started::Pending(future) => future,
                Started::Done(_) => panic!("scripted methods return futures"),
            })
            .collect();
        let took: Vec<u128> = started
            .drain(..)
            .map(|future| {
                let begun = clock.now();
                futures::executor::block_on(future).unwrap();
                clock.now().since(begun).as_millis()
            })
            .collect();
        assert_eq!(took, [10, 10, 40, 70]);
    }

    #[test]
    fn nobody_waiting_ends_a_long_batch_early_unless_it_ignores_that() {
        let ended = |options: serde_json::Value| {
            let context = context(options);
            let clock = context.clock.clone();
            let definition = crate::in_place_of(&[method()]).unwrap();
            let mut service = futures::executor::block_on(definition.open(context)).unwrap();
            let nobody = Invocation::new(None, Arc::new(AtomicBool::new(true)));
            let Started::Pending(future) = service.run(0, texts(&["a"]), &nobody, &Emitter::none()) else {
                panic!("scripted methods return futures")
            };
            let kind = futures::executor::block_on(future).err().map(|e| e.kind());
            (kind, clock.now().since_origin().as_millis())
        };
        assert_eq!(ended(serde_json::json!({"latency": "1s"})), (Some(pelton_core::Kind::Cancelled), 50));
        assert_eq!(ended(serde_json::json!({"latency": "1s", "ignore_cancel": true})), (None, 1000));
    }
}
