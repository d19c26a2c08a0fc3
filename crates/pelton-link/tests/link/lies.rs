//! Ends that say what is not so: each costs itself its connection.

use std::os::fd::OwnedFd;

use pelton_env::segment::Segment;
use pelton_link::{Link, Sharing};
use pelton_wire::{Frame, Place};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::support::*;

const SIZE: u64 = 1 << 20;

/// What the real end says of a peer that does this.
fn check(how: Sharing, what: impl AsyncFnOnce(&mut Liar, &mut Link), expected: &str) {
    let world = World::new();
    world.host.block_on(async {
        let (mut liar, mut real) = world.with_a_liar(how).await;
        what(&mut liar, &mut real).await;
        let error = refusal(&mut real.receiver).await;
        assert!(error.message().contains(expected), "{error}, not {expected}");
    });
}

fn memory(bytes: u64, seals: SealFlags) -> OwnedFd {
    let file = memfd_create("lie", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, bytes).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

/// A peer that gives this in place of a segment.
fn check_segment(descriptor: Option<OwnedFd>, bytes: u64, expected: &str) {
    let lie = async |liar: &mut Liar, _: &mut Link| {
        if let Some(descriptor) = descriptor {
            liar.attach(descriptor);
        }
        liar.say(&Frame::Segment { bytes }).await;
    };
    check(sharing(SIZE), lie, expected);
}

#[test]
fn segments_that_are_none() {
    let sealed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    check_segment(None, SIZE, "its descriptor is missing");
    check_segment(Some(memory(SIZE, SealFlags::empty())), SIZE, "its size is not sealed");
    check_segment(Some(memory(SIZE, SealFlags::GROW)), SIZE, "its size is not sealed");
    check_segment(Some(memory(SIZE / 2, sealed)), SIZE, "it has 524288 bytes, not 1048576");
    check_segment(Some(memory(0, sealed)), 0, "it has 0 bytes");
    check_segment(Some(memory(SIZE, sealed)), u64::MAX, "over the limit");
    check_segment(Some(std::fs::File::open("/dev/zero").unwrap().into()), SIZE, "no sealed memory");
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    check_segment(Some(socket.into()), SIZE, "no sealed memory");
}

async fn segment(liar: &mut Liar) -> Segment {
    let segment = Segment::create(SIZE).unwrap();
    liar.attach(segment.descriptor().unwrap());
    liar.say(&Frame::Segment { bytes: SIZE }).await;
    segment
}

#[test]
fn more_than_one_segment_and_segments_that_nobody_wants() {
    let twice = async |liar: &mut Liar, _: &mut Link| {
        segment(liar).await;
        segment(liar).await;
    };
    check(sharing(SIZE), twice, "it has one already");
    let unwanted = async |liar: &mut Liar, _: &mut Link| {
        segment(liar).await;
    };
    check(Sharing::NONE, unwanted, "nobody asked for it");
}

/// A body of so many bytes at this offset of a segment of 1 MiB.
fn check_place(offset: u64, length: u32, expected: &str) {
    let lie = async |liar: &mut Liar, _: &mut Link| {
        segment(liar).await;
        liar.say_shared(offset, length).await;
    };
    check(sharing(SIZE), lie, expected);
}

#[test]
fn bodies_that_are_not_in_the_segment() {
    check_place(SIZE - 4096, 4097, "is not within its 1048576 bytes");
    check_place(u64::MAX - 4095, 4096, "is not within its 1048576 bytes");
    check_place(u64::MAX, u32::MAX >> 8, "is not within its 1048576 bytes");
    check_place(1, 4096, "does not begin with a page");
    check_place(0, 8192, "is not a record batch");
    check_place(0, u32::MAX, "max_message");
    let nowhere = async |liar: &mut Liar, _: &mut Link| liar.say_shared(0, 4096).await;
    check(sharing(SIZE), nowhere, "is nowhere");
    check(Sharing::NONE, nowhere, "is nowhere");
}

#[test]
fn a_body_where_another_one_is() {
    let over = async |liar: &mut Liar, real: &mut Link| {
        let mut segment = segment(liar).await;
        let bytes = body(&rows(100 << 10, 1));
        segment.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
        liar.say_shared(0, bytes.len() as u32).await;
        let kept = received(&mut real.receiver).await;
        assert!(is_shared(&kept));
        liar.say_shared(4096, 4096).await;
        let error = refusal(&mut real.receiver).await;
        assert!(error.message().contains("was not released"), "{error}");
        drop(kept);
        liar.say_shared(SIZE, 1).await;
    };
    check(sharing(SIZE), over, "is not within");
}

#[test]
fn releases_of_what_was_not_lent() {
    let expected = "released what was not lent";
    let early = async |liar: &mut Liar, _: &mut Link| liar.say(&Frame::Release { offsets: vec![0] }).await;
    check(sharing(SIZE), early, expected);
    check(Sharing::NONE, early, expected);
    // The real end has put something at 0, and the peer releases it twice, or something else.
    for offsets in [vec![0, 0], vec![4096], vec![1]] {
        let wrong = async |liar: &mut Liar, real: &mut Link| {
            real.sender.send(message(results(), &rows(100 << 10, 1)));
            assert_eq!(liar.hear().await.1, Frame::Segment { bytes: SIZE });
            assert_eq!(liar.hear().await.0.place, Place::Segment);
            liar.say(&Frame::Release { offsets }).await;
        };
        check(sharing(SIZE), wrong, expected);
    }
}

/// A peer that says this in the middle of a body of 1000 bytes, of which 400 have come.
fn check_within(frame: &Frame, bytes: usize, expected: &str) {
    let lie = async |liar: &mut Liar, _: &mut Link| {
        liar.say_with(&request(1), Place::Pieces, 1000, &[]).await;
        liar.say_with(&Frame::Piece, Place::Inline, 400, &[0; 400]).await;
        liar.say_with(frame, Place::Inline, bytes as u32, &vec![0; bytes]).await;
    };
    check(Sharing::NONE, lie, expected);
}

#[test]
fn pieces_that_do_not_fit() {
    check_within(&Frame::Piece, 601, "a piece of 601 bytes, where 600 are missing");
    check_within(&Frame::Piece, 0, "a piece of 0 bytes");
    check_within(&Frame::Ping(1), 0, "at byte 400 of a body of 1000");
    check_within(&request(1), 10, "at byte 400 of a body of 1000");
    check_within(&Frame::Piece, 600, "not a record batch");
    let piece = async |liar: &mut Liar, _: &mut Link| {
        liar.say_with(&Frame::Piece, Place::Inline, 4, &[0; 4]).await;
    };
    check(Sharing::NONE, piece, "was not begun");
    let cut = async |liar: &mut Liar, _: &mut Link| {
        liar.say_with(&request(1), Place::Pieces, 1000, &[]).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut liar.connection.write).await;
    };
    check(Sharing::NONE, cut, "in the middle of a frame");
    let long = async |liar: &mut Liar, _: &mut Link| {
        liar.say_with(&request(1), Place::Inline, (1 << 20) + 1, &[]).await;
    };
    check(Sharing::NONE, long, "in one piece is over the limit");
}
