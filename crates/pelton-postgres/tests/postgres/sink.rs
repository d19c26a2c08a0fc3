//! What the sink promises, one promise a test.

use std::time::Duration;

use pelton_core::Kind;
use pelton_dataflow::sink::{Guarantee, Sink, Staged};
use pelton_env::Place;
use pelton_postgres::{Connection, Postgres, Settings};
use serde_json::json;
use std::sync::Arc;

use crate::server::{PASSWORD, Server};
use crate::{checked, holds, rows, says, schema, settings, sink, stage};

#[test]
fn rows_appear_at_commit_and_once() {
    let Some(server) = Server::start() else { return };
    let sink = sink(&server, "orders");
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
    holds(&server, "orders", 0..0);
    assert_eq!(server.count("pelton_staged_orders"), 30, "durable, out of sight");
    sink.commit(&first).unwrap();
    holds(&server, "orders", 0..20);
    for _ in 0..3 {
        sink.commit(&[first.clone(), second.clone()].concat()).unwrap();
    }
    sink.commit(&[]).unwrap();
    holds(&server, "orders", 0..30);
    assert_eq!(server.count("pelton_staged_orders"), 0);
    assert_eq!(
        server.query(
            "select generation, subtask, checkpoint, row_count from pelton_commits order by checkpoint"
        ),
        ["1|3|2|20", "1|3|3|10"]
    );
    assert_eq!(server.query("select text from orders where id in (4, 5) order by id"), ["row 4", "null"]);
}

#[test]
fn a_killed_run_leaves_what_a_checkpoint_recorded_and_nothing_else() {
    let Some(server) = Server::start() else { return };
    let recorded = {
        let sink = sink(&server, "t");
        sink.start(1, &[]).unwrap();
        let recorded = stage(&sink, 1, 0, 1, 0..10);
        stage(&sink, 1, 0, 2, 10..20);
        stage(&sink, 1, 1, 2, 20..30);
        // In the middle of a part: nothing of it is left.
        let mut writer = sink.writer(2, 1, schema()).unwrap();
        writer.write(rows(0..50_000)).unwrap();
        recorded
    };
    let other = checked(settings(&server, "t").with_name("other"));
    other.start(1, &[]).unwrap();
    let others = stage(&other, 1, 0, 1, 100..110);

    let sink = sink(&server, "t");
    sink.start(2, &recorded).unwrap();
    sink.start(2, &recorded).unwrap();
    assert_eq!(server.count("pelton_staged_t"), 10, "what was recorded waits");
    sink.commit(&recorded).unwrap();
    sink.commit(&stage(&sink, 2, 0, 3, 10..100)).unwrap();
    holds(&server, "t", 0..100);
    // Recorded and committed before the kill: the next start commits it again.
    let sink = self::sink(&server, "t");
    sink.start(3, &recorded).unwrap();
    sink.commit(&recorded).unwrap();
    other.commit(&others).unwrap();
    holds(&server, "t", 0..110);
}

#[test]
fn an_older_generation_is_fenced_off() {
    let Some(server) = Server::start() else { return };
    let zombie = sink(&server, "t");
    zombie.start(1, &[]).unwrap();
    let recorded = stage(&zombie, 1, 0, 1, 0..10);
    let unrecorded = stage(&zombie, 1, 0, 2, 10..20);
    let mut writer = zombie.writer(1, 1, schema()).unwrap();
    writer.write(rows(20..30)).unwrap();

    let sink = sink(&server, "t");
    sink.start(2, &recorded).unwrap();
    let error = says(writer.prepare(2), &["generation 1", "replaced by generation 2", "writes no more"]);
    assert_eq!(error.kind(), Kind::Denied);
    says(zombie.commit(&unrecorded), &["0 of the 10 rows", "a newer generation discarded them"]);
    says(zombie.start(1, &[]), &["generation 2 has written as sink `t`", "name of its own"]);
    zombie.commit(&recorded).unwrap();
    sink.commit(&recorded).unwrap();
    sink.commit(&stage(&sink, 2, 0, 2, 10..30)).unwrap();
    holds(&server, "t", 0..30);
    says(self::sink(&server, "t").start(2, &[]), &["was committed as sink `t` by another run"]);
}

#[test]
fn many_commit_the_same_at_the_same_time() {
    let Some(server) = Server::start() else { return };
    let sinks: Vec<Arc<Postgres>> = (0..4).map(|_| Arc::new(sink(&server, "t"))).collect();
    sinks[0].start(1, &[]).unwrap();
    let env = server.host.env();
    for round in 0..10 {
        let staged: Vec<Staged> = (0..3)
            .flat_map(|s| {
                stage(&sinks[0], 1, s, 1, round * 30 + i64::from(s) * 10..round * 30 + i64::from(s) * 10 + 10)
            })
            .collect();
        let (tell, told) = std::sync::mpsc::channel();
        for sink in &sinks {
            let (sink, staged, tell) = (sink.clone(), staged.clone(), tell.clone());
            env.spawn(Place::Dedicated, async move { tell.send(sink.commit(&staged)).unwrap() }).detach();
        }
        drop(tell);
        for done in told {
            done.unwrap();
        }
    }
    holds(&server, "t", 0..300);
}

#[test]
fn going_back_withdraws_rows_where_they_carry_their_part() {
    let Some(server) = Server::start() else { return };
    for (table, part_column, expected) in [("plain", None, 30), ("tagged", Some("part"), 10)] {
        let mut settings = settings(&server, table);
        settings.part_column = part_column.map(str::to_owned);
        let sink = checked(settings);
        sink.rewind(1).unwrap();
        sink.start(1, &[]).unwrap();
        let first = stage(&sink, 1, 0, 1, 0..10);
        sink.commit(&first).unwrap();
        sink.commit(&stage(&sink, 1, 0, 2, 10..30)).unwrap();
        sink.rewind(1).unwrap();
        sink.rewind(1).unwrap();
        assert_eq!(server.count(table), expected);
        sink.start(2, &first).unwrap();
        sink.commit(&first).unwrap();
        sink.commit(&stage(&sink, 2, 0, 2, 10..30)).unwrap();
        assert_eq!(server.count(table), expected + 20);
    }
    holds(&server, "tagged", 0..30);
    assert_eq!(server.query("select count(distinct part) from tagged"), ["2"]);
}

#[test]
fn tables_that_cannot_take_the_rows_are_refused_before_the_first() {
    let Some(server) = Server::start() else { return };
    server.query("create table narrow (id int, text text); create view seen as select * from narrow");
    server.query("create schema shop; create table shop.orders (id int8, text text, at date not null)");
    let plain = |table: &str| Settings { create: false, ..settings(&server, table) };
    for (settings, parts) in [
        (
            plain("absent"),
            &["no such table", r#"create table absent ("id" bigint not null, "text" text)"#][..],
        ),
        (plain("narrow"), &["column `id` is of type integer", "make it bigint"]),
        (plain("seen"), &["not a table"]),
        (plain("shop.orders"), &["`at` must not be null", "default"]),
        (settings(&server, "nowhere.t"), &["nowhere", "SQLSTATE 3F000"]),
        (settings(&server, "narrow").with_part_column("tag"), &["no text column `tag`"]),
    ] {
        let sink = checked(settings);
        says(sink.start(1, &[]), parts);
        says(sink.writer(0, 1, schema()), parts);
    }
    server.query("alter table shop.orders alter at set default '2026-01-01', alter text set not null");
    let sink = checked(plain("shop.orders"));
    sink.start(1, &[]).unwrap();
    sink.commit(&stage(&sink, 1, 0, 1, 2..3)).unwrap();
    assert_eq!(server.query("select * from shop.orders"), ["2|row 2|2026-01-01"]);
    let mut writer = sink.writer(0, 1, schema()).unwrap();
    let failed = writer.write(rows(0..10)).and_then(|()| writer.prepare(2));
    says(failed, &["column \"text\"", "SQLSTATE 23502", "breaks a rule of the table"]);
}

#[test]
fn a_row_that_the_table_refuses_fails_the_commit_and_leaves_nothing_of_it() {
    let Some(server) = Server::start() else { return };
    server.query("create table t (id int8 primary key, text text)");
    let sink = sink(&server, "t");
    sink.start(1, &[]).unwrap();
    sink.commit(&stage(&sink, 1, 0, 1, 0..10)).unwrap();
    let twice = [stage(&sink, 1, 0, 2, 10..20), stage(&sink, 1, 1, 2, 9..12)].concat();
    for _ in 0..2 {
        says(sink.commit(&twice), &["t_pkey", "SQLSTATE 23505", "filter such rows"]);
        holds(&server, "t", 0..10);
    }
    server.query("alter table t drop constraint t_pkey");
    sink.commit(&twice).unwrap();
    assert_eq!(server.count("t"), 23);
}

#[test]
fn servers_that_cannot_be_reached_are_named_and_passwords_are_not() {
    let Some(mut server) = Server::start() else { return };
    let with = |text: &str| Settings {
        patience: Duration::from_millis(300),
        ..Settings::new(Connection::new(text).unwrap(), "t").create()
    };
    let wrong = with(&server.url().replace("wo@rd", "another"));
    says(checked(wrong).start(1, &[]), &["SQLSTATE 28P01", "user and password"]);
    let absent = with(&server.url().replace("dbname=postgres", "dbname=absent"));
    says(checked(absent).start(1, &[]), &["SQLSTATE 3D000", "create the database"]);
    let sink = checked(with(&server.url()));
    assert!(
        !sink.describe().contains(PASSWORD) && sink.describe().contains("127.0.0.1"),
        "{}",
        sink.describe()
    );
    sink.start(1, &[]).unwrap();
    let staged = stage(&sink, 1, 0, 1, 0..10);
    server.kill();
    says(sink.commit(&staged), &["PostgreSQL table t at 127.0.0.1", "refused"]);
    server.run();
    sink.commit(&staged).unwrap();
    holds(&server, "t", 0..10);
    says(sink.commit(&[Staged(json!({ "file": 1 }))]), &["not of a PostgreSQL sink"]);
    let renamed = checked(with(&server.url()).with_name("renamed"));
    says(renamed.commit(&staged), &["rows of sink `t` for table `t`", "give it back its name"]);
}

#[test]
fn a_server_that_hangs_is_given_up_after_the_timeout() {
    let Some(server) = Server::start() else { return };
    let short = Settings {
        timeout: Duration::from_millis(500),
        patience: Duration::from_millis(100),
        ..settings(&server, "t")
    };
    let sink = checked(short);
    sink.start(1, &[]).unwrap();
    let staged = stage(&sink, 1, 0, 1, 0..10);
    let lock = server.hold("begin; lock table t");
    says(sink.commit(&staged), &["within 0.5 s", "pg_locks"]);
    drop(lock);
    sink.commit(&staged).unwrap();
    holds(&server, "t", 0..10);
}

#[test]
fn a_large_part_is_written_through_a_small_buffer() {
    let Some(server) = Server::start() else { return };
    let sink = sink(&server, "t");
    sink.start(1, &[]).unwrap();
    let mut writer = sink.writer(0, 1, schema()).unwrap();
    for i in 0..10 {
        writer.write(rows(i * 20_000..(i + 1) * 20_000)).unwrap();
    }
    sink.commit(&writer.prepare(1).unwrap()).unwrap();
    holds(&server, "t", 0..200_000);
}
