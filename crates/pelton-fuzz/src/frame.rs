//! A header and a meta part.

use pelton_wire::{Frame, HEADER, Header};

use crate::frames;
use crate::input::Input;

/// The first byte says what the rest is: a header, a kind and its meta part, or choices that make a frame.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(4) {
        0 => header(input.rest()),
        1 => comes_back(&frames::any(&mut input)),
        _ => {
            let kind = input.u8();
            meta(kind, input.rest());
        }
    }
}

fn header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<HEADER>() else { return };
    let (max_meta, max_body) = (1000, 1_000_000);
    match Header::decode(bytes, max_meta, max_body) {
        Ok(header) => {
            assert!(header.meta <= max_meta && u64::from(header.body) <= max_body);
            assert_eq!(header.encode(), *bytes, "a header has one form");
        }
        Err(e) => says_what_is_wrong(e.message()),
    }
}

fn meta(kind: u8, meta: &[u8]) {
    match Frame::decode_meta(kind, meta) {
        Ok(frame) => {
            assert_eq!(frame.kind(), kind);
            comes_back(&frame);
            looked_at(&frame);
        }
        Err(e) => says_what_is_wrong(e.message()),
    }
}

fn comes_back(frame: &Frame) {
    let meta = frame.encode_meta();
    match Frame::decode_meta(frame.kind(), &meta) {
        Ok(again) => assert_eq!(again, *frame, "what is written is read again"),
        Err(e) => panic!("{frame:?} is written as what cannot be read: {e}"),
    }
}

/// What whoever gets it computes of it.
fn looked_at(frame: &Frame) {
    let status = match frame {
        Frame::Welcome(welcome) => &welcome.status,
        Frame::Status(status) => status,
        _ => return,
    };
    let meter = &status.meter;
    for histogram in [&meter.queue, &meter.batch_wait, &meter.run, &meter.batch_rows] {
        let mut sum = histogram.clone();
        sum.merge(histogram);
        let _ = (sum.quantile(0.5), sum.quantile(1.0), sum.mean(), sum.since(histogram));
    }
}

/// An error is a sentence, and not as long as a peer wants it to be.
pub(crate) fn says_what_is_wrong(message: &str) {
    assert!(message.split_whitespace().count() >= 4, "`{message}` says too little");
    assert!(message.len() < 600, "an error of {} bytes: {}...", message.len(), &message[..100]);
}
