//! What processes take of the cores, as /proc counts it.

use std::fs;
use std::time::Duration;

use pelton::env::{Env, Time};

/// What /proc counts in: 100 a second on every Linux (proc(5), `sysconf(_SC_CLK_TCK)`).
const TICKS: f64 = 100.0;

/// Seconds that all threads of a process have run; 0 if there is none.
pub(crate) fn of(pid: u32) -> f64 {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| ticks(&stat))
        .map_or(0.0, |t| t / TICKS)
}

/// `utime` and `stime`, the 14th and 15th field of proc_pid_stat(5).
fn ticks(stat: &str) -> Option<f64> {
    // The name, in parentheses, may hold anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Seconds that all cores together were busy: the first line of proc_stat(5) without idle and iowait.
fn machine() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    busy(stat.lines().next().unwrap_or_default()) / TICKS
}

fn busy(line: &str) -> f64 {
    let fields: Vec<f64> = line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum()
}

/// Measures this process and some others.
pub(crate) struct Meter {
    at: Time,
    machine: f64,
    pids: Vec<u32>,
    ours: f64,
}

/// What was taken from begin to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// By this process and the others that are measured.
    pub(crate) ours: Duration,
    /// Cores that everybody else took.
    pub(crate) others: f64,
}

impl Meter {
    pub(crate) fn begin(env: &Env, pids: impl IntoIterator<Item = u32>) -> Meter {
        let mut pids: Vec<u32> = pids.into_iter().collect();
        pids.push(std::process::id());
        let ours = pids.iter().map(|pid| of(*pid)).sum();
        Meter { at: env.now(), machine: machine(), pids, ours }
    }

    pub(crate) fn end(&self, env: &Env) -> Taken {
        let wall = env.now().since(self.at).as_secs_f64().max(1e-9);
        let ours = (self.pids.iter().map(|pid| of(*pid)).sum::<f64>() - self.ours).max(0.0);
        let others = ((machine() - self.machine - ours) / wall).max(0.0);
        Taken { ours: Duration::from_secs_f64(ours), others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_fields_are_added() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0 1 0 99";
        assert_eq!(ticks(stat), Some(42.0));
        assert_eq!(ticks("7 (a"), None);
        assert_eq!(busy("cpu  1 2 3 100 200 4 5 6 0 0"), 15.0);
    }

    #[test]
    fn this_process_takes_something() {
        let mut x = 1u64;
        while of(std::process::id()) == 0.0 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(machine() > 0.0);
    }
}
