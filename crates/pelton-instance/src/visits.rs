//! Who is at the door, and who is inside. Both are bounded, each by itself: whoever knocks and says nothing takes no room from those who are
//! in, nor for long from those who knock behind.

use std::collections::BTreeMap;

use pelton_env::Task;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Connections at a time that have shown who they are; more are turned away.
const MOST_INSIDE: usize = 4096;
/// Connections at a time that have not: another one takes the place of the one that has stood there longest.
const MOST_KNOCKING: usize = 512;

pub(crate) struct Visits {
    knocking: BTreeMap<u64, Task>,
    inside: BTreeMap<u64, Task>,
    next: u64,
    news: UnboundedReceiver<News>,
    tell: UnboundedSender<News>,
}

enum News {
    Entered(u64),
    Gone(u64),
}

/// Stands for one connection; where it goes, so does the place that it has.
pub(crate) struct Pass {
    number: u64,
    tell: UnboundedSender<News>,
}

impl Pass {
    /// It has shown who it is.
    pub(crate) fn enter(&self) {
        let _ = self.tell.send(News::Entered(self.number));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let _ = self.tell.send(News::Gone(self.number));
    }
}

impl Visits {
    pub(crate) fn new() -> Self {
        let (tell, news) = unbounded_channel();
        Visits { knocking: BTreeMap::new(), inside: BTreeMap::new(), next: 0, news, tell }
    }

    /// Somebody knocks. `start` begins the task that attends to it; what it is given lives as long as the connection.
    pub(crate) fn knock(&mut self, start: impl FnOnce(Pass) -> Task) {
        while let Ok(news) = self.news.try_recv() {
            match news {
                News::Entered(number) => {
                    if let Some(task) = self.knocking.remove(&number) {
                        self.inside.insert(number, task);
                    }
                }
                News::Gone(number) => {
                    self.knocking.remove(&number);
                    self.inside.remove(&number);
                }
            }
        }
        if self.inside.len() >= MOST_INSIDE {
            return;
        }
        if self.knocking.len() >= MOST_KNOCKING {
            self.knocking.pop_first();
        }
        let number = self.next;
        self.next += 1;
        let task = start(Pass { number, tell: self.tell.clone() });
        self.knocking.insert(number, task);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Knocks; returns the pass, if it was let to knock. Its number goes to `ended` when its task is ended.
    fn knock(visits: &mut Visits, ended: &Arc<Mutex<Vec<u64>>>) -> Option<Pass> {
        let (mut given, ended) = (None, ended.clone());
        visits.knock(|pass| {
            let number = pass.number;
            given = Some(pass);
            Task::new(move || ended.lock().unwrap().push(number))
        });
        given
    }

    #[test]
    fn the_oldest_that_says_nothing_makes_room_and_nobody_inside_does() {
        let (mut visits, ended) = (Visits::new(), Arc::default());
        let first = knock(&mut visits, &ended).unwrap();
        first.enter();
        let silent: Vec<Pass> = (0..MOST_KNOCKING + 3).filter_map(|_| knock(&mut visits, &ended)).collect();
        assert_eq!(*ended.lock().unwrap(), [1, 2, 3], "0 is inside, the others came later");
        assert_eq!(silent.len(), MOST_KNOCKING + 3);
    }

    #[test]
    fn who_is_inside_leaves_a_bounded_place() {
        let (mut visits, ended) = (Visits::new(), Arc::default());
        let mut inside = Vec::new();
        for _ in 0..MOST_INSIDE {
            let pass = knock(&mut visits, &ended).unwrap();
            pass.enter();
            inside.push(pass);
        }
        assert!(knock(&mut visits, &ended).is_none(), "turned away");
        inside.pop();
        assert!(knock(&mut visits, &ended).is_some(), "there is room again");
    }
}
