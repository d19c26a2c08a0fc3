//! The server dies in the middle of commits, again and again.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use pelton_dataflow::sink::{Sink, Staged};
use pelton_env::Place;
use pelton_postgres::{Connection, Settings};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::proxy::Proxy;
use crate::server::Server;
use crate::{checked, holds, settings, stage};

/// How often. Each time the sink goes on by itself, by the retries within its patience.
const CRASHES: u32 = 10;

#[test]
fn a_commit_whose_server_dies_is_made_once() {
    let Some(mut server) = Server::start() else { return };
    let mut rng = StdRng::seed_from_u64(1);
    let mut generation = 1;
    let mut sink = Arc::new(checked(settings(&server, "t")));
    sink.start(generation, &[]).unwrap();
    let mut next = 0;
    for crash in 0..CRASHES {
        let staged: Vec<Staged> = (0..3)
            .flat_map(|subtask| {
                let first = next;
                next += rng.random_range(1..4000);
                stage(&sink, generation, subtask, u64::from(crash) + 1, first..next)
            })
            .collect();
        let (tell, told) = mpsc::channel();
        let commit = {
            let (sink, staged) = (sink.clone(), staged.clone());
            move || sink.commit(&staged)
        };
        server.host.env().spawn(Place::Dedicated, async move { _ = tell.send(commit()) }).detach();
        server.sleep(Duration::from_micros(rng.random_range(0..15_000)));
        if rng.random() {
            server.kill();
            server.run();
        } else {
            server.kill_backends();
        }
        let outcome = told.recv_timeout(Duration::from_secs(60)).expect("a commit ends");
        outcome.expect("the server came back within the patience");
        holds(&server, "t", 0..next);
        if crash % 3 == 2 {
            // Another process goes on, and does not know that all is done.
            generation += 1;
            sink = Arc::new(checked(settings(&server, "t")));
            sink.start(generation, &staged).unwrap();
        }
        sink.commit(&staged).unwrap();
        holds(&server, "t", 0..next);
    }
}

#[test]
fn what_was_prepared_survives_the_server_and_what_was_not_is_gone() {
    let Some(mut server) = Server::start() else { return };
    let sink = checked(settings(&server, "t"));
    sink.start(1, &[]).unwrap();
    let staged = stage(&sink, 1, 0, 1, 0..5000);
    let mut writer = sink.writer(1, 1, crate::schema()).unwrap();
    writer.write(crate::rows(5000..60_000)).unwrap();
    server.kill();
    assert!(writer.prepare(1).is_err(), "its transaction is gone");
    drop(writer);
    server.run();
    assert_eq!(server.count("pelton_staged_t"), 5000);
    sink.commit(&staged).unwrap();
    holds(&server, "t", 0..5000);
    // An idle writer finds another connection.
    let mut writer = sink.writer(1, 1, crate::schema()).unwrap();
    server.kill();
    server.run();
    writer.write(crate::rows(5000..6000)).unwrap();
    sink.commit(&writer.prepare(2).unwrap()).unwrap();
    holds(&server, "t", 0..6000);
}

#[test]
fn a_commit_whose_answer_is_lost_is_not_made_again() {
    let Some(server) = Server::start() else { return };
    let proxy = server.host.block_on(Proxy::start(server.host.env(), server.port));
    let through = server.url().replace(&format!("port={}", server.port), &format!("port={}", proxy.port));
    let through = Settings::new(Connection::new(&through).unwrap(), "t").create();
    let sink = checked(through.clone());
    sink.start(1, &[]).unwrap();
    let staged = stage(&sink, 1, 0, 1, 0..1000);
    proxy.lose(3);
    sink.commit(&staged).unwrap();
    assert_eq!(proxy.still_to_lose(), 0, "they were lost");
    holds(&server, "t", 0..1000);

    // Without patience it is the next commit that finds out, in this process or another.
    let sink = checked(Settings { patience: Duration::ZERO, ..through });
    let staged = stage(&sink, 1, 0, 2, 1000..2000);
    proxy.lose(1);
    assert!(sink.commit(&staged).is_err());
    holds(&server, "t", 0..2000);
    sink.commit(&staged).unwrap();
    checked(settings(&server, "t")).commit(&staged).unwrap();
    holds(&server, "t", 0..2000);

    // A prepare whose answer is lost fails; what it left is discarded by the next generation.
    let mut writer = sink.writer(0, 1, crate::schema()).unwrap();
    writer.write(crate::rows(2000..3000)).unwrap();
    proxy.lose(1);
    assert!(writer.prepare(3).is_err());
    assert_eq!(server.count("pelton_staged_t"), 1000);
    let sink = checked(settings(&server, "t"));
    sink.start(2, &staged).unwrap();
    assert_eq!(server.count("pelton_staged_t"), 0);
    sink.commit(&staged).unwrap();
    sink.commit(&stage(&sink, 2, 0, 3, 2000..3000)).unwrap();
    holds(&server, "t", 0..3000);
}

#[test]
fn a_server_that_dies_before_the_end_of_a_commit_has_made_nothing_of_it() {
    let Some(mut server) = Server::start() else { return };
    let sink = Arc::new(checked(settings(&server, "t")));
    sink.start(1, &[]).unwrap();
    for round in 0..3 {
        let staged = stage(&sink, 1, 0, 1, round * 100..round * 100 + 100);
        // Somebody holds the table: the commit waits in the middle of its transaction.
        let lock = server.hold("begin; lock table t");
        let (tell, told) = mpsc::channel();
        let commit = {
            let (sink, staged) = (sink.clone(), staged.clone());
            move || sink.commit(&staged)
        };
        server.host.env().spawn(Place::Dedicated, async move { _ = tell.send(commit()) }).detach();
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
        for _ in 0..200 {
            if server.query(waiting) == ["1"] {
                break;
            }
            server.sleep(Duration::from_millis(20));
        }
        assert_eq!(server.query(waiting), ["1"], "it waits");
        assert_eq!(server.count("pelton_commits"), round as u64, "nothing of it shows");
        server.kill();
        drop(lock);
        server.run();
        told.recv_timeout(Duration::from_secs(60)).expect("a commit ends").unwrap();
        holds(&server, "t", 0..round * 100 + 100);
    }
}
