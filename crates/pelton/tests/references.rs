//! References cross the call, and instances read what they refer to: real processes, real servers.
//!
//! This test has its own `main`, because the program is started again as the instances of its services.

#[path = "../../pelton-objects/tests/objects/web.rs"]
#[allow(dead_code, reason = "the tests of the reader use more of it")]
mod web;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, UInt64Array};
use pelton::env::INSTANCE_VARIABLE;
use pelton::object::{self, ObjectRef, Objects};
use pelton::objects::{ObjectReader, ReaderSettings};
use pelton::prelude::*;
use pelton::{Bytes, Kind, Services, Settings, object_reader};
use web::{Fault, Web};

/// Adds up the bytes of objects.
struct Eyes {
    reader: ObjectReader,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    objects: ReaderSettings,
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|b| u64::from(*b)).sum()
}

fn sums(values: Vec<u64>) -> Result<RecordBatch> {
    Ok(RecordBatch::try_from_iter([("sum", Arc::new(UInt64Array::from(values)) as ArrayRef)])?)
}

impl Service for Eyes {
    fn open(ctx: &Context) -> Result<Self> {
        let Options { objects } = ctx.options()?;
        let reader = object_reader(ctx, &objects)?;
        // A model may be read in `open`.
        if let Some(root) = objects.roots.first() {
            let model = ObjectRef::new(format!("{root}/model"))?;
            assert_eq!(&reader.read(&model)?[..], b"weights");
        }
        Ok(Eyes { reader })
    }

    fn methods() -> Methods<Self> {
        let input = || vec![object::field("object", false)];
        let output = || vec![Field::new("sum", DataType::UInt64, false)];
        Methods::<Self>::new()
            .serial("sum", input(), output(), |eyes, rows, _| {
                let schema = rows.schema();
                if !object::is_object(schema.field(0)) {
                    return Err(Error::user(format!("the column lost what it is: {:?}", schema.field(0))));
                }
                let read = eyes.reader.read_all(&Objects::of(&rows, "object")?.all()?)?;
                sums(read.iter().map(|bytes| sum(bytes)).collect())
            })
            .serial("stream", input(), output(), |eyes, rows, _| {
                let each = |object: &ObjectRef| -> Result<u64> {
                    let mut bytes = Vec::new();
                    eyes.reader.stream(object).read_to_end(&mut bytes)?;
                    Ok(sum(&bytes))
                };
                let objects = Objects::of(&rows, "object")?.all()?;
                sums(objects.iter().map(each).collect::<Result<_>>()?)
            })
            .concurrent("side by side", 8, input(), output(), |eyes, rows, _| {
                let reader = eyes.reader.clone();
                Box::pin(async move {
                    let mut all = Vec::new();
                    for object in Objects::of(&rows, "object")?.all()? {
                        all.push(sum(&reader.fetch_range(&object, 1, 1000).await?));
                    }
                    sums(all)
                })
            })
            .serial("half", input(), input(), |_, rows, _| {
                let objects = Objects::of(&rows, "object")?.all()?;
                let halves: Vec<ObjectRef> =
                    objects.into_iter().map(|o| o.with_range(0, 100_000)).collect::<Result<_>>()?;
                let schema = Arc::new(arrow_schema::Schema::new(vec![object::field("object", false)]));
                Ok(RecordBatch::try_new(schema, vec![object::column(halves.iter().map(Some))])?)
            })
    }
}

const PAGES: usize = 40;

fn content(page: usize) -> Vec<u8> {
    (0..200_000).map(|i| ((i * 7 + page) % 251) as u8).collect()
}

fn reference(web: &Web, page: usize) -> ObjectRef {
    ObjectRef::new(web.url(&format!("/pages/{page}"))).unwrap().with_version(format!("\"v{page}\"")).unwrap()
}

fn batch(objects: &[ObjectRef]) -> RecordBatch {
    let schema = Arc::new(arrow_schema::Schema::new(vec![object::field("object", false)]));
    RecordBatch::try_new(schema, vec![object::column(objects.iter().map(Some))]).unwrap()
}

fn values(rows: &RecordBatch) -> Vec<u64> {
    rows.column(0).as_primitive::<UInt64Type>().values().to_vec()
}

async fn check(services: &Services, web: &Web) -> Result<()> {
    let call = |method: &'static str, objects: &[ObjectRef]| services.call("eyes", method, batch(objects));
    services.ready().await?;
    let all: Vec<ObjectRef> = (0..PAGES).map(|page| reference(web, page)).collect();
    let expected: Vec<u64> = (0..PAGES).map(|page| sum(&content(page))).collect();
    web.requests();
    web.fail((0..6).map(|i| if i % 2 == 0 { Fault::Status(503) } else { Fault::Cut(5_000) }));
    assert_eq!(values(&call("sum", &all).await?), expected);
    assert_eq!(web.requests().len(), PAGES + 6);
    done("objects are read by the instance, also from a server that fails now and then");

    assert_eq!(values(&call("sum", &all).await?), expected);
    assert!(web.requests().is_empty());
    let counted = counted(services, "object-cache-hits", PAGES as u64).await;
    assert_eq!(counted["object-bytes"], (PAGES * 200_000) as u64 + 7);
    assert_eq!((counted["object-reads"], counted["object-retries"]), (PAGES as u64 + 1, 6));
    done("what was read is not read again, and is counted");

    web.fail([Fault::Cut(60_000), Fault::Status(500)]);
    assert_eq!(values(&call("stream", &all[..2]).await?), expected[..2]);
    let parts: Vec<u64> = (0..PAGES).map(|page| sum(&content(page)[1..1001])).collect();
    assert_eq!(values(&call("side by side", &all).await?), parts);
    let half = call("half", &all[..1]).await?;
    assert!(object::is_object(half.schema().field(0)));
    let halves = Objects::of(&half, "object")?.all()?;
    assert_eq!((halves[0].length(), halves[0].version()), (Some(100_000), Some("\"v0\"")));
    assert_eq!(values(&call("sum", &halves).await?), [sum(&content(0)[..100_000])]);
    done("streams, ranges, methods side by side, and references as answers");

    web.put("/pages/3", "another", "v3b");
    web.state().pages.remove("/pages/4");
    web.put("/pages/large", vec![0; 2 << 20], "large");
    let part = |page: usize| reference(web, page).with_range(10, 10).unwrap();
    for (object, kind, parts) in [
        (part(3), Kind::User, &["/pages/3", "was \"v3\" and is \"v3b\"", "list it again"][..]),
        (part(4), Kind::User, &["/pages/4", "it is not there", "\"v4\""]),
        (
            ObjectRef::new(web.url("/pages/large"))?,
            Kind::User,
            &["2 MiB", "limit of 1 MiB", "`eyes`", "`max_bytes`"],
        ),
        (
            ObjectRef::new("file:///etc/hostname")?,
            Kind::User,
            &["/etc/hostname", "none of the places", "`roots`"],
        ),
        (ObjectRef::new("s3://bucket/x")?, Kind::User, &["none of the places"]),
    ] {
        let error = call("sum", &[object]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        parts.iter().for_each(|part| assert!(error.message().contains(part), "`{part}`: {error:?}"));
    }
    // What would answer wrongly fails alone: the others of its batch have their answers.
    let mixed: Vec<_> = (0..8).map(part).map(|object| async move { call("sum", &[object]).await }).collect();
    let answers = futures::future::join_all(mixed).await;
    for (page, answer) in answers.iter().enumerate() {
        match page {
            3 | 4 => assert!(answer.is_err()),
            _ => assert_eq!(values(answer.as_ref().unwrap()), [sum(&content(page)[10..20])]),
        }
    }
    done("changed, deleted, too large and foreign objects are errors of their rows");
    Ok(())
}

/// What the instance says that it counted, once that many hits are among it.
async fn counted(services: &Services, what: &str, wanted: u64) -> BTreeMap<String, u64> {
    for _ in 0..200 {
        let counted = services.report().services[0].instances[0].meter.counted.clone();
        if counted.get(what).is_some_and(|n| *n >= wanted) {
            return counted.into_iter().collect();
        }
        services.env().sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} is not counted: {:?}", services.report());
}

fn done(what: &str) {
    println!("ok: {what}");
}

fn main() -> Result<()> {
    // The instance has its settings from the job.
    let web = std::env::var_os(INSTANCE_VARIABLE).is_none().then(Web::start);
    let root = web.as_ref().map(|web| web.url("/pages"));
    if let Some(web) = &web {
        (0..PAGES).for_each(|page| web.put(&format!("/pages/{page}"), content(page), &format!("v{page}")));
        web.put("/pages/model", "weights", "m");
    }
    let world = std::env::temp_dir().join(format!("pelton-references-{}", std::process::id()));
    let mut job = Job::with("references", Settings::new(&world));
    let objects = ReaderSettings { max_bytes: Bytes::mib(1), ..ReaderSettings::new(root) };
    let objects = serde_json::to_value(objects).map_err(|e| Error::invalid(e.to_string()))?;
    job.service::<Eyes>(Declaration::new("eyes").instances(1).max_rows(16).option("objects", objects))?;
    let web = web.expect("an instance does not get here");
    let result = job.serve(async |services| check(services, &web).await);
    let _ = std::fs::remove_dir_all(&world);
    if let Err(e) = &result {
        println!("FAILED: {e:?}");
    }
    result
}
