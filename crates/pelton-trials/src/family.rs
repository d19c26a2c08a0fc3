//! The processes of one trial, found by an environment variable that all of them inherit: so that none is overlooked, and none
//! of anybody else is touched.

use std::fs;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

/// Marks the processes of a trial.
pub(crate) const VARIABLE: &str = "PELTON_TRIAL";

/// A process, told from a later one of the same number by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) pid: u32,
    started: u64,
}

impl Member {
    /// None if there is no such process, or it has ended and only waits to be noticed.
    pub(crate) fn find(pid: u32) -> Option<Member> {
        let (state, started) = look(pid)?;
        (state != 'Z' && state != 'X').then_some(Member { pid, started })
    }

    pub(crate) fn is_there(self) -> bool {
        Member::find(self.pid) == Some(self)
    }

    pub(crate) fn is_stopped(self) -> bool {
        look(self.pid).is_some_and(|(state, _)| state == 'T')
    }

    /// Sends a signal, if it is still there.
    pub(crate) fn signal(self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid as i32)
            && self.is_there()
        {
            let _ = kill_process(pid, signal);
        }
    }
}

/// The state of a process and when it started; see proc_pid_stat(5).
fn look(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(PathBuf::from("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// All processes that carry this mark.
pub(crate) fn members(mark: &str) -> Vec<Member> {
    let wanted = format!("{VARIABLE}={mark}");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes())
    })
    .filter_map(Member::find)
    .collect()
}

/// Ends all processes that carry this mark.
pub(crate) fn end(mark: &str) {
    // Whoever is ended may just have started another.
    for _ in 0..5 {
        let members = members(mark);
        if members.is_empty() {
            break;
        }
        members.iter().for_each(|member| member.signal(Signal::KILL));
    }
}
