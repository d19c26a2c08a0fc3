//! What the threads of this process are doing, as far as the system tells.

use std::fmt::Write as _;
use std::path::Path;

/// One line a thread: its name, state, and where in the kernel it waits. Empty where the system does not say.
pub(crate) fn threads() -> String {
    of(Path::new("/proc/self/task"))
}

fn of(tasks: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(tasks) else { return String::new() };
    let mut text = String::from("threads:\n");
    for task in entries.flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find_map(|l| l.strip_prefix("State:")).unwrap_or("?").trim();
        let wait = read("wchan");
        let wait = if matches!(wait.trim(), "" | "0") { "user code" } else { wait.trim() };
        let id = task.file_name();
        let _ = writeln!(text, "  {} `{}`: {state}, in {wait}", id.display(), read("comm").trim());
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_thread_is_among_them() {
        let name = std::thread::current().name().unwrap_or_default().chars().take(15).collect::<String>();
        let text = super::threads();
        assert!(text.is_empty() || text.contains(&name), "{name}: {text}");
    }
}
