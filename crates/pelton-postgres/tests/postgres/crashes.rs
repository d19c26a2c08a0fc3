//! The server dies in the middle of commits, again and again.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use pelton_dataflow::sink::{Sink, Staged};
use pelton_env::Place;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

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
