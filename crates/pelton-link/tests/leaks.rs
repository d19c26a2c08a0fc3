//! What is left of connections that have ended: nothing. One test, because it looks at the whole process.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use pelton_link::Sharing;
use pelton_wire::{Frame, Place};
use support::*;

const MIB: usize = 1 << 20;

/// Descriptors of this process, mappings of shared segments, and pages of it in memory, in KiB.
fn used() -> (usize, usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let segments = maps.lines().filter(|line| line.contains("/memfd:pelton")).count();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (descriptors, segments, resident.trim().trim_end_matches(" kB").parse().unwrap())
}

/// Waits until as many descriptors and mappings are left as there were.
async fn settles(world: &World, before: (usize, usize, usize)) {
    for _ in 0..500 {
        if used().0 <= before.0 && used().1 <= before.1 {
            return;
        }
        world.host.env().sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?} is left, {before:?} was there before", used());
}

#[test]
fn nothing_is_left_of_connections_that_ended() {
    let world = World::new();
    world.host.block_on(async {
        let how = [sharing(64 << 20); 2];
        drop(world.pair(false, how).await);
        world.host.env().sleep(Duration::from_millis(50)).await;
        let before = used();

        for round in 0..20 {
            let (mut near, mut far) = world.pair(false, how).await;
            near.sender.send(message(request(1), &rows(2 * MIB, round)));
            let there = received(&mut far.receiver).await;
            far.sender.send(message(results(), &there));
            let back = received(&mut near.receiver).await;
            assert_eq!(used().1, before.1 + 4, "two segments, each mapped by both ends");
            // Either end goes first, and what came from it is still there.
            if round % 2 == 0 {
                drop(near);
                assert!(matches!(far.receiver.next().await, Ok(None) | Err(_)));
                drop(far);
            } else {
                drop(far);
                assert!(matches!(near.receiver.next().await, Ok(None) | Err(_)));
                drop(near);
            }
            assert_eq!([&there, &back], [&rows(2 * MIB, round); 2]);
            drop((there, back));
            settles(&world, before).await;
        }

        // One row that is kept keeps its own memory, not all that was ever in the segment.
        let (near, mut far) = world.pair(false, how).await;
        let big: Vec<_> = (0..6).map(|seed| rows(8 * MIB, seed)).collect();
        for rows in &big {
            near.sender.send(message(request(1), rows));
        }
        let mut bodies = Vec::new();
        for _ in &big {
            bodies.push(received(&mut far.receiver).await);
        }
        let kept = bodies.remove(0);
        assert!(is_shared(&kept));
        assert!(shared_memory() > 32 * MIB as u64);
        drop((bodies, near, far));
        shrinks(&world, 9 * MIB as u64).await;
        assert!(shared_memory() > 8 * MIB as u64);
        assert_eq!(kept, big[0]);
        drop(kept);
        settles(&world, before).await;

        // A segment that nobody uses gives most of its memory back.
        let (mut near, mut far) = world.pair(false, how).await;
        for rows in &big[..3] {
            near.sender.send(message(request(1), rows));
            assert_eq!(received(&mut far.receiver).await, *rows);
        }
        released(&mut near, &far).await;
        shrinks(&world, 8 * MIB as u64).await;
        near.sender.send(message(request(1), &big[0]));
        assert!(is_shared(&received(&mut far.receiver).await), "it is still there to be used");
        drop((near, far));
        settles(&world, before).await;

        // A descriptor that nobody waits for, or one too many, is closed.
        let (mut liar, mut real) = world.with_a_liar(Sharing::NONE).await;
        liar.attach(std::fs::File::open("/dev/null").unwrap().into());
        liar.say(&Frame::Return { rows: 1 }).await;
        assert_eq!(real.receiver.next().await, Ok(Some(Frame::Return { rows: 1 }.into())));
        drop((liar, real));
        let (mut liar, mut real) = world.with_a_liar(sharing(1 << 20)).await;
        for _ in 0..5 {
            liar.attach(std::fs::File::open("/dev/null").unwrap().into());
            liar.say(&Frame::Return { rows: 1 }).await;
            assert_eq!(real.receiver.next().await, Ok(Some(Frame::Return { rows: 1 }.into())));
        }
        // The liar's own copy of the last one is closed a moment after it was sent.
        for _ in 0..200 {
            if used().0 == before.0 + 2 + 1 {
                break;
            }
            world.host.env().sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(used().0, before.0 + 2 + 1, "two sockets, and one of five descriptors");
        drop((liar, real));
        settles(&world, before).await;

        // Who announces much and sends nothing costs nothing.
        let (mut liar, mut real) = world.with_a_liar(Sharing::NONE).await;
        let resident = used().2;
        liar.say_with(&request(1), Place::Pieces, 130 << 20, &[]).await;
        liar.say_with(&Frame::Piece, Place::Inline, 1 << 20, &vec![1; 1000]).await;
        liar.say(&Frame::Return { rows: 1 }).await;
        let next = world.host.env().within(Duration::from_millis(300), real.receiver.next()).await;
        assert!(next.is_none());
        assert!(used().2 < resident + 8 * 1024, "{} KiB, {resident} before", used().2);
    });
}

/// Bytes of shared segments that are in memory.
fn shared_memory() -> u64 {
    let mut segments = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let is_segment = std::fs::read_link(&path).is_ok_and(|to| to.starts_with("/memfd:pelton (deleted)"));
        if let Some(file) = std::fs::metadata(&path).ok().filter(|_| is_segment) {
            segments.insert(file.ino(), file.blocks() * 512);
        }
    }
    segments.values().sum()
}

/// Waits until so few bytes of segments are in memory.
async fn shrinks(world: &World, to: u64) {
    for _ in 0..1000 {
        if shared_memory() <= to {
            return;
        }
        world.host.env().sleep(Duration::from_millis(10)).await;
    }
    panic!("{} bytes are in segments, not {to}", shared_memory());
}
