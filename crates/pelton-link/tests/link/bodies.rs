//! How bodies of all sizes travel.

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use pelton_env::segment::Segment;
use pelton_link::Sharing;
use pelton_wire::{Frame, Place};

use crate::support::*;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Sends a row of each size there and back between ends that share so: all arrive as they were, and those of 64 KiB and more in memory
/// that is shared, if `shared`.
fn check(tcp: bool, how: [Sharing; 2], shared: [bool; 2]) {
    let world = World::new();
    world.host.block_on(async {
        let (mut near, mut far) = world.pair(tcp, how).await;
        for (seed, bytes) in
            [0, 100, 5 * KIB, 64 * KIB, 250 * KIB, 270 * KIB, MIB, 10 * MIB].into_iter().enumerate()
        {
            let sent = rows(bytes, seed as u64);
            near.sender.send(message(request(1), &sent));
            let there = received(&mut far.receiver).await;
            assert_eq!(there, sent, "{bytes} bytes");
            far.sender.send(message(results(), &there));
            let back = received(&mut near.receiver).await;
            assert_eq!(back, sent, "{bytes} bytes, back");
            let large = bytes >= 64 * KIB;
            assert_eq!([is_shared(&there), is_shared(&back)], shared.map(|s| s && large), "{bytes} bytes");
        }
    });
}

#[test]
fn bodies_of_every_size_arrive() {
    let (yes, no) = (sharing(64 << 20), Sharing::NONE);
    check(false, [yes, yes], [true, true]);
    check(false, [yes, no], [false, false]);
    check(false, [no, yes], [false, false]);
    check(false, [no, no], [false, false]);
    check(true, [yes, yes], [false, false]);
    check(true, [no, no], [false, false]);
}

/// Bodies as they came: how many of them are in shared memory.
fn shared(bodies: &[RecordBatch]) -> usize {
    bodies.iter().filter(|rows| is_shared(rows)).count()
}

#[test]
fn a_segment_that_is_full_of_what_is_kept_stops_nobody() {
    let world = World::new();
    world.host.block_on(async {
        let (mut near, mut far) = world.pair(false, [sharing(4 << 20); 2]).await;
        let mut kept = Vec::new();
        for seed in 0..64 {
            let sent = rows(300 * KIB, seed);
            near.sender.send(message(request(1), &sent));
            kept.push(received(&mut far.receiver).await);
            assert_eq!(kept.last(), Some(&sent));
        }
        let lent = shared(&kept);
        assert!(
            (4..=6).contains(&lent),
            "half of 4 MiB is lent for as long as one likes, not {lent} times 300 KiB"
        );
        for (seed, rows) in kept.iter().enumerate() {
            assert_eq!(*rows, crate::support::rows(300 * KIB, seed as u64), "still what was sent");
        }
        // What is not kept any more makes room again; the word of it goes out with the next frame.
        drop(kept);
        released(&mut near, &far).await;
        let mut again = Vec::new();
        for seed in 0..4 {
            near.sender.send(message(request(1), &rows(300 * KIB, seed)));
            again.push(received(&mut far.receiver).await);
        }
        assert_eq!(shared(&again), 4);
    });
}

#[test]
fn many_bodies_at_once_go_the_way_that_there_is_room_for() {
    let world = World::new();
    world.host.block_on(async {
        let (near, mut far) = world.pair(false, [sharing(2 << 20); 2]).await;
        let all: Vec<RecordBatch> = (0..40).map(|seed| rows(400 * KIB, seed)).collect();
        for rows in &all {
            near.sender.send(message(request(1), rows));
        }
        let mut bodies = Vec::new();
        for _ in &all {
            bodies.push(received(&mut far.receiver).await);
        }
        assert_eq!(bodies, all, "all of them, in their order");
        assert!((1..=3).contains(&shared(&bodies)), "{}", shared(&bodies));
    });
}

/// Whoever takes all that is there finds the ends of frames wherever reads happened to end: small bodies, and pieces of large ones.
#[test]
fn what_came_together_is_taken_together() {
    for shares in [0, 4 << 20] {
        let world = World::new();
        world.host.block_on(async {
            let (near, mut far) = world.pair(shares == 0, [sharing(shares); 2]).await;
            let sizes = [10, 270 * KIB, 5 * KIB, 100, 700 * KIB, 20 * KIB, 300, 300];
            let sizes: Vec<usize> = sizes.into_iter().cycle().take(400).collect();
            let all: Vec<RecordBatch> = (0..).zip(sizes).map(|(seed, bytes)| rows(bytes, seed)).collect();
            let sending = async {
                for (i, rows) in all.iter().enumerate() {
                    near.sender.send(message(request(1), rows));
                    if i % 16 == 15 {
                        tokio::task::yield_now().await;
                    }
                }
            };
            let receiving = async {
                let (mut bodies, mut together) = (Vec::new(), 0);
                while bodies.len() < all.len() {
                    bodies.push(received(&mut far.receiver).await);
                    let more = far.receiver.next_now();
                    together += more.len();
                    bodies.extend(more.into_iter().filter_map(|message| message.rows));
                }
                (bodies, together)
            };
            let (_, (bodies, together)) = tokio::join!(sending, receiving);
            assert!(bodies == all, "not all of them, or not in their order");
            assert!(together > 0, "nothing ever came together");
        });
    }
}

/// What overtakes goes out between the pieces of a body that is under way.
#[test]
fn control_overtakes_within_a_body() {
    let world = World::new();
    world.host.block_on(async {
        let (mut raw, real) = world.with_a_liar(Sharing::NONE).await;
        let sent = rows(20 * MIB, 1);
        real.sender.send(message(results(), &sent));
        let (header, frame, _) = raw.hear().await;
        assert_eq!((header.place, frame), (Place::Pieces, results()));
        let mut bytes = raw.hear().await.2;
        real.sender.send(Frame::Permit { rows: 1, held: 2 });
        real.sender.send(Frame::Draining);
        real.sender.send(Frame::Ping(7));
        let mut between = Vec::new();
        while bytes.len() < header.body as usize {
            match raw.hear().await {
                (_, Frame::Piece, piece) => {
                    assert!(piece.len() <= 256 * KIB);
                    bytes.extend(piece);
                }
                (_, other, _) => between.push(other),
            }
        }
        assert_eq!(between, [Frame::Permit { rows: 1, held: 2 }, Frame::Draining]);
        assert_eq!(raw.hear().await.1, Frame::Ping(7), "what keeps its order comes behind it");
        assert_eq!(bytes, body(&sent));
    });
}

#[test]
fn what_overtakes_is_heard_before_the_body_is_there() {
    let world = World::new();
    world.host.block_on(async {
        let (mut raw, mut real) = world.with_a_liar(Sharing::NONE).await;
        let sent = rows(MIB, 1);
        let bytes = body(&sent);
        let say = async {
            raw.say_with(&request(1), Place::Pieces, bytes.len() as u32, &[]).await;
            for piece in bytes.chunks(200 * KIB) {
                raw.say(&Frame::Return { rows: 3 }).await;
                raw.say_with(&Frame::Piece, Place::Inline, piece.len() as u32, piece).await;
            }
        };
        let hear = async {
            for _ in bytes.chunks(200 * KIB) {
                assert_eq!(real.receiver.next().await, Ok(Some(Frame::Return { rows: 3 }.into())));
            }
            assert_eq!(received(&mut real.receiver).await, sent);
        };
        tokio::join!(say, hear);
    });
}

/// A peer that writes over what it has sent: what Arrow relies on does not change.
#[test]
fn what_was_checked_stays_as_it_was() {
    let world = World::new();
    world.host.block_on(async {
        let (mut raw, mut real) = world.with_a_liar(sharing(1 << 20)).await;
        let mut segment = Segment::create(1 << 20).unwrap();
        raw.attach(segment.descriptor().unwrap());
        raw.say(&Frame::Segment { bytes: 1 << 20 }).await;
        let sent = rows(100 * KIB, 5);
        let bytes = body(&sent);
        segment.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
        raw.say_shared(0, bytes.len() as u32).await;
        let there = received(&mut real.receiver).await;
        assert_eq!(there, sent);
        assert!(is_shared(&there));
        segment.bytes_mut().fill(0xff);
        assert!(std::str::from_utf8(there.column(1).as_string::<i32>().value(0).as_bytes()).is_ok());
        assert_eq!(there.columns()[1..], sent.columns()[1..]);
        let payload = there.column(0).as_binary::<i32>().value(0);
        assert_eq!(payload.len(), 100 * KIB);
        assert!(payload.iter().all(|b| *b == 0xff), "bytes are the peer's to change");
    });
}
