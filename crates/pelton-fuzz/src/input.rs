//! Bytes as a list of choices.

use std::sync::OnceLock;
use std::time::Duration;

/// Says what happens, if `PELTON_FUZZ_TRACE` is set: for looking at a finding.
pub(crate) fn trace(what: impl Fn() -> String) {
    static TRACED: OnceLock<bool> = OnceLock::new();
    if *TRACED.get_or_init(|| std::env::var_os("PELTON_FUZZ_TRACE").is_some()) {
        eprintln!("{}", what());
    }
}

/// Reads choices from bytes; what is beyond their end is zero.
pub(crate) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Input { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn u8(&mut self) -> u8 {
        let (first, rest) = self.rest.split_first().unwrap_or((&0, &[]));
        self.rest = rest;
        *first
    }

    pub(crate) fn bool(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    pub(crate) fn below(&mut self, n: u8) -> u8 {
        self.u8() % n
    }

    /// A small number mostly; now and then one that sums and products of are likely to overflow.
    pub(crate) fn number(&mut self) -> u64 {
        match self.u8() {
            n @ ..=199 => u64::from(n),
            200..=209 => u64::MAX,
            210..=219 => u64::MAX - u64::from(self.u8()),
            220..=229 => 1 << (self.u8() % 64),
            230..=239 => (1 << 32) - 1,
            _ => (0..8).fold(0, |n, _| n << 8 | u64::from(self.u8())),
        }
    }

    /// At least a microsecond, in whole ones.
    pub(crate) fn duration(&mut self) -> Duration {
        Duration::from_micros(self.number().max(1))
    }
}
