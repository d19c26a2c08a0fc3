//! What is called and what it took: loads, processor time, memory.

use std::time::Duration;

use pelton::env::{Env, Time};
use pelton_peers::load::Summary;
use serde::{Deserialize, Serialize};

use crate::bench::flow::cpu::{self, Meter};

pub(super) const IN_FLIGHT: usize = 64;
const SMALL: [(&str, usize); 2] = [("100 B", 100), ("10 KB", 10_000)];
/// Large payloads, and how many are under way.
const LARGE: [(&str, usize, usize); 2] = [("1 MB", 1_000_000, 4), ("10 MB", 10_000_000, 1)];

/// Calls with payloads of a size, so many under way, for so long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    size: &'static str,
    pub(super) bytes: usize,
    pub(super) in_flight: usize,
    pub(super) time: Duration,
}

impl Load {
    pub(super) fn small(time: Duration) -> Vec<Load> {
        let of = |(size, bytes)| [IN_FLIGHT, 1].map(|in_flight| Load { size, bytes, in_flight, time });
        SMALL.into_iter().flat_map(of).collect()
    }

    pub(super) fn large(time: Duration) -> Vec<Load> {
        LARGE.into_iter().map(|(size, bytes, in_flight)| Load { size, bytes, in_flight, time }).collect()
    }

    pub(super) fn is_large(&self) -> bool {
        self.bytes >= LARGE[0].1
    }

    pub(super) fn name(&self) -> String {
        format!("{}, {} in flight", self.size, self.in_flight)
    }

    pub(super) fn measured(&self, system: &str, ended: Summary, spent: Spent) -> Measured {
        let name = self.name();
        let (bytes, in_flight) = (self.bytes, self.in_flight);
        Measured { system: system.to_owned(), name, bytes, in_flight, large: self.is_large(), ended, spent }
    }
}

/// What came of a load.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) system: String,
    /// The load's.
    pub(super) name: String,
    pub(super) bytes: usize,
    pub(super) in_flight: usize,
    pub(super) large: bool,
    pub(super) ended: Summary,
    pub(super) spent: Spent,
}

/// Processor time, from one moment on, of the caller (this process) and of the server's processes.
pub(crate) struct Spending {
    pids: Vec<u32>,
    meter: Meter,
    begun: Time,
    server: f64,
    caller: f64,
}

impl Spending {
    pub(crate) fn begin(env: &Env, pids: &[u32]) -> Spending {
        let server = pids.iter().map(|pid| cpu::of(*pid)).sum();
        let caller = cpu::of(std::process::id());
        let meter = Meter::begin(env, pids.iter().copied());
        Spending { pids: pids.to_vec(), meter, begun: env.now(), server, caller }
    }

    pub(crate) fn end(self, env: &Env) -> Spent {
        let server = self.pids.iter().map(|pid| cpu::of(*pid)).sum::<f64>() - self.server;
        let caller = cpu::of(std::process::id()) - self.caller;
        let seconds = env.now().since(self.begun).as_secs_f64();
        Spent { server, caller, seconds, others: self.meter.end(env).others }
    }
}

/// Seconds of processor time, in so many seconds; and the cores that others took meanwhile.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Spent {
    pub(crate) server: f64,
    pub(crate) caller: f64,
    pub(crate) seconds: f64,
    pub(crate) others: f64,
}

impl Spent {
    /// The caller was another process, which says what it took.
    pub(crate) fn with_caller(self, ended: &Summary) -> Spent {
        let taken = ended.processor.map_or(0.0, |(before, after)| after - before);
        let others = (self.others - taken / self.seconds).max(0.0);
        Spent { caller: taken, others, ..self }
    }
}

/// Processor seconds to copy a byte, between buffers that no cache holds. Of the processor, as all that it is compared with: what the clock on the wall
/// says is more on a machine that others use.
pub(super) fn copying() -> f64 {
    const SIZE: usize = 64 << 20;
    // A tick of the processor's time is 10 ms.
    const ENOUGH: f64 = 0.5;
    let from = vec![7u8; SIZE];
    let mut to = from.clone();
    let (begun, mut copied) = (cpu::of(std::process::id()), 0);
    loop {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        copied += SIZE;
        let taken = cpu::of(std::process::id()) - begun;
        if taken >= ENOUGH {
            return taken / copied as f64;
        }
    }
}

/// What processes hold at most, beyond what they held before, in bytes: resident memory as /proc says, to which shared memory counts in each
/// process that looks at it.
pub(super) struct Held {
    server: Vec<(u32, f64)>,
    caller: (u32, f64),
}

impl Held {
    /// From here on. (What a process held at most is forgotten: `clear_refs` in proc_pid_clear_refs(5).)
    pub(super) fn begin(pids: &[u32]) -> Held {
        let begin = |pid: u32| {
            let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
            (pid, resident(pid, "VmRSS:"))
        };
        Held { server: pids.iter().map(|pid| begin(*pid)).collect(), caller: begin(std::process::id()) }
    }

    /// The server's processes together, and the caller.
    pub(super) fn end(&self) -> (f64, f64) {
        let grown = |(pid, before): &(u32, f64)| (resident(*pid, "VmHWM:") - before).max(0.0);
        (self.server.iter().map(grown).sum(), grown(&self.caller))
    }
}

/// A line of /proc/PID/status, in bytes; 0 if there is none.
fn resident(pid: u32, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let found = status.lines().find_map(|l| l.strip_prefix(line));
    let kib: f64 = found.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    kib * 1024.0
}
