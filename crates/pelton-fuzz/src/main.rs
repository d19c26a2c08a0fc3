//! The fuzzer: libFuzzer around one target, which `PELTON_FUZZ_TARGET` names. `cargo xtask fuzz` starts it.

#![no_main]

use std::sync::OnceLock;

use pelton_fuzz::Target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("PELTON_FUZZ_TARGET").unwrap_or_default();
        Target::named(&name).expect("PELTON_FUZZ_TARGET names a target")
    });
    target.run(input);
});
