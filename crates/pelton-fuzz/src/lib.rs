//! Hostile input: everything that a peer can send, as fuzz targets.
//!
//! A [`Target`] is a function over bytes that panics where a law is broken: no panic of the code under test (not even one that it
//! catches), memory bounded by what was given, what is read comes back when it is written, requests of others still end. The corpus and every
//! input that ever broke a law lie beside this crate; the tests run all of them, and `cargo xtask fuzz` looks for more.

mod arrays;
mod body;
mod client;
mod frame;
mod frames;
mod handshake;
mod input;
mod instance;
mod link;
mod methods;
pub mod mutate;
mod reader;
pub mod seeds;

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// One thing that is attacked.
pub struct Target {
    pub name: &'static str,
    /// What stands between the bytes and the law.
    pub about: &'static str,
    run: fn(&[u8]),
    /// What an input may take at most: so many bytes, and so many more for each of its own.
    memory: (usize, usize),
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target {
        name: "frame",
        about: "a header and a meta part, decoded and encoded again",
        run: frame::run,
        memory: (64 << 10, 128),
    },
    Target {
        name: "body",
        about: "an Arrow body, decoded for one of many schemas",
        run: body::run,
        memory: (256 << 10, 256),
    },
    Target {
        name: "handshake",
        about: "the first bytes of a stranger, and the answer of whoever we connect to",
        run: handshake::run,
        memory: (2 << 20, 128),
    },
    Target {
        name: "reader",
        about: "a stream of bytes after the handshake, cut anywhere",
        run: reader::run,
        memory: (4 << 20, 512),
    },
    Target {
        name: "client",
        about: "the client's state, between an honest instance and one that lies",
        run: client::run,
        memory: (64 << 20, 4096),
    },
    Target {
        name: "instance",
        about: "the instance's state, between an honest caller and two that lie",
        run: instance::run,
        memory: (64 << 20, 4096),
    },
];

impl Target {
    pub fn named(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|t| t.name == name)
    }

    /// Runs one input. Panics if a law is broken. One at a time: memory is measured for the whole process.
    pub fn run(&self, input: &[u8]) {
        MEMORY.reset_peak_usage();
        let before = MEMORY.peak_usage();
        (self.run)(input);
        let took = MEMORY.peak_usage().saturating_sub(before);
        let (fixed, each) = self.memory;
        let most = fixed + each * input.len();
        assert!(
            took <= most,
            "{} bytes of input took {took} bytes of memory; at most {most} may",
            input.len()
        );
    }
}
