//! What the sink promises, one promise a test, in each kind of store.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use arrow_schema::Schema;
use pelton_dataflow::sink::{Guarantee, Sink, Staged};
use pelton_env::Place;
use pelton_objects::{Format, Objects, Settings, Store};
use serde_json::json;

use crate::server::{SECRET, Server};
use crate::{World, options, rows, says, schema, stage};

const FORMATS: [Format; 2] = [Format::Parquet, Format::JsonLines];

/// One behaviour, whatever the store and the format.
fn all(check: impl Fn(&World, Format)) {
    let server = Server::start();
    for format in FORMATS {
        check(&World::folder(), format);
        if let Some(server) = &server {
            check(&World::s3(server, &format!("some/{format:?}")), format);
        }
    }
}

#[test]
fn rows_appear_at_commit_and_once() {
    all(|world, format| {
        let sink = world.sink(format);
        assert_eq!(sink.guarantee(), Guarantee::ExactlyOnce);
        sink.start(1, &[]).unwrap();
        let mut writer = sink.writer(3, 1, schema()).unwrap();
        writer.write(rows(0..0)).unwrap();
        assert!(writer.prepare(1).unwrap().is_empty(), "nothing written, nothing staged");
        writer.write(rows(0..10)).unwrap();
        writer.write(rows(10..20)).unwrap();
        let first = writer.prepare(2).unwrap();
        writer.write(rows(20..30)).unwrap();
        let second = writer.prepare(3).unwrap();
        let (visible, waiting) = world.names();
        assert_eq!((visible.len(), waiting.len()), (0, 2));
        sink.commit(&first).unwrap();
        world.holds(0..20);
        for _ in 0..3 {
            sink.commit(&[first.clone(), second.clone()].concat()).unwrap();
        }
        sink.commit(&[]).unwrap();
        world.holds(0..30);
        let (visible, waiting) = world.names();
        assert!(visible[0].starts_with("part-00001-0003-000002-"), "{visible:?}");
        assert!(waiting.is_empty(), "{waiting:?}");
    });
}

#[test]
fn a_killed_run_leaves_what_a_checkpoint_recorded_and_nothing_else() {
    all(|world, format| {
        let recorded = {
            let sink = world.sink(format);
            sink.start(1, &[]).unwrap();
            let recorded = stage(&sink, 1, 0, 1, 0..10);
            stage(&sink, 1, 0, 2, 10..20);
            stage(&sink, 1, 1, 2, 20..30);
            recorded
        };
        let other =
            Settings::new(world.store(Duration::from_secs(30))).with_format(format).with_prefix("errors");
        let other = Objects::new(other).unwrap();
        other.start(1, &[]).unwrap();
        stage(&other, 1, 0, 1, 0..1);

        let sink = world.sink(format);
        sink.start(2, &recorded).unwrap();
        sink.start(2, &recorded).unwrap();
        assert_eq!(world.names().1.len(), 2, "recorded, and another sink's");
        sink.commit(&recorded).unwrap();
        sink.commit(&stage(&sink, 2, 0, 3, 10..100)).unwrap();
        world.holds(0..100);
        let sink = world.sink(format);
        sink.start(3, &recorded).unwrap();
        sink.commit(&recorded).unwrap();
        world.holds(0..100);
        says(world.sink(format).start(2, &[]), &["another run wrote", "choose another folder or prefix"]);
    });
}

#[test]
fn going_back_withdraws_later_parts() {
    all(|world, format| {
        let sink = world.sink(format);
        sink.rewind(1).unwrap();
        sink.start(1, &[]).unwrap();
        let first = stage(&sink, 1, 0, 1, 0..10);
        sink.commit(&first).unwrap();
        sink.commit(&stage(&sink, 1, 0, 2, 10..30)).unwrap();
        sink.rewind(1).unwrap();
        sink.start(2, &first).unwrap();
        sink.commit(&first).unwrap();
        world.holds(0..10);
        sink.commit(&stage(&sink, 2, 0, 2, 10..30)).unwrap();
        world.holds(0..30);
    });
}

#[test]
fn many_commit_the_same_at_the_same_time() {
    all(|world, format| {
        let sinks: Vec<Arc<Objects>> = (0..4).map(|_| Arc::new(world.sink(format))).collect();
        sinks[0].start(1, &[]).unwrap();
        let staged: Vec<Staged> = (0..5)
            .flat_map(|s| stage(&sinks[0], 1, s, 1, i64::from(s) * 10..i64::from(s) * 10 + 10))
            .collect();
        let host = pelton_env::real::Host::new(1, 1).unwrap();
        let (tell, told) = mpsc::channel();
        for sink in &sinks {
            let (sink, staged, tell) = (sink.clone(), staged.clone(), tell.clone());
            host.env()
                .spawn(Place::Dedicated, async move { tell.send(sink.commit(&staged)).unwrap() })
                .detach();
        }
        drop(tell);
        assert_eq!(told.into_iter().map(Result::unwrap).count(), 4);
        world.holds(0..50);
    });
}

#[test]
fn a_large_part_is_sent_in_pieces_and_taken_back_if_nobody_prepares_it() {
    all(|world, format| {
        let sink = world.sink(format);
        sink.start(1, &[]).unwrap();
        let mut writer = sink.writer(0, 1, schema()).unwrap();
        // About 20 MB of lines.
        for i in 0..10 {
            writer.write(rows(i * 50_000..(i + 1) * 50_000)).unwrap();
        }
        sink.commit(&writer.prepare(1).unwrap()).unwrap();
        world.holds(0..500_000);
        let mut writer = sink.writer(0, 1, schema()).unwrap();
        for i in 0..10 {
            writer.write(rows(i * 50_000..(i + 1) * 50_000)).unwrap();
        }
        drop(writer);
        assert!(world.names().1.is_empty(), "what was begun shows nowhere");
        world.holds(0..500_000);
    });
}

#[test]
fn lost_and_changed_objects_are_noticed() {
    let world = World::folder();
    let sink = world.sink(Format::JsonLines);
    sink.start(1, &[]).unwrap();
    let staged = stage(&sink, 1, 0, 1, 0..10);
    sink.commit(&staged).unwrap();
    let part = world.url.trim_start_matches("file://").to_owned() + "/" + &world.names().0[0];
    std::fs::write(&part, "{}").unwrap();
    says(sink.commit(&staged), &["has 2 bytes and was written with", "somebody changed it"]);
    std::fs::remove_file(&part).unwrap();
    says(sink.commit(&staged), &["is not there, and neither is", "its rows are lost"]);
    says(sink.commit(&[Staged(json!({ "table": 1 }))]), &["not of an object store's sink"]);
    says(sink.check(&Schema::empty()), &["no columns"]);
}

#[test]
fn stores_that_cannot_be_written_are_named_and_keys_are_not() {
    let Some(mut server) = Server::start() else { return };
    let options = options(server.port);
    let open = |url: &str| {
        let options = options.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let store = Store::patient(url, options, Duration::from_millis(500)).unwrap();
        Objects::new(Settings::new(store)).unwrap()
    };
    says(
        open("s3://absent/x").start(1, &[]),
        &["Parquet objects s3://absent/x/part-*.parquet", "does the bucket exist?"],
    );
    let sink = open("s3://bucket/x");
    assert!(!sink.describe().contains(SECRET));
    server.kill();
    says(sink.start(1, &[]), &["s3://bucket/x", "writing x/_staging/probe-part-parquet"]);
}

#[test]
fn a_server_that_hangs_or_dies_between_prepare_and_commit() {
    let Some(mut server) = Server::start() else { return };
    let world = World::s3(&server, "x");
    let sink = Arc::new(world.sink(Format::Parquet));
    sink.start(1, &[]).unwrap();
    let staged = stage(&sink, 1, 0, 1, 0..1000);
    // It hangs for a while: the commit waits.
    server.signal("STOP");
    let (tell, told) = mpsc::channel();
    let commit = {
        let (sink, staged) = (sink.clone(), staged.clone());
        move || sink.commit(&staged)
    };
    server.host.env().spawn(Place::Dedicated, async move { _ = tell.send(commit()) }).detach();
    assert!(told.recv_timeout(Duration::from_millis(500)).is_err(), "nobody answers");
    server.signal("CONT");
    told.recv_timeout(Duration::from_secs(60)).expect("a commit ends").unwrap();
    world.holds(0..1000);
    // It dies, and with it what was staged, for it keeps all in memory: that is said, and nothing is made up.
    let staged = stage(&sink, 1, 0, 2, 1000..2000);
    server.kill();
    let impatient = Objects::new(Settings::new(world.store(Duration::from_millis(500)))).unwrap();
    says(impatient.commit(&staged), &["s3://bucket/x"]);
    server.run();
    assert!(server.ask("PUT /bucket").starts_with("HTTP/1.1 200"));
    says(impatient.commit(&staged), &["is not there, and neither is", "its rows are lost"]);
}
