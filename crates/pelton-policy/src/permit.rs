//! How many permits an instance gives to whom.
//!
//! Callers announce, instances grant: the sum over all callers never exceeds what the instance can hold, however many
//! they are, and the backlog stays with the callers. How much that is, is decided in [`budget`](crate::budget) and
//! [`memory`](crate::memory); who gets what of it, here.

/// Every so many permits, one goes to the lowest priority that waits, so that none waits for ever.
const BOTTOM_UP: u64 = 16;

/// What one caller would send beyond what it was permitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// Rows of each priority, the highest first.
    pub rows: [u64; 3],
    /// Bytes and weight of a row, on average.
    pub bytes: u64,
    pub weight: f64,
}

impl Demand {
    pub fn total(&self) -> u64 {
        self.rows.iter().sum()
    }
}

/// Room for rows, bytes and weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    pub rows: u64,
    pub bytes: u64,
    pub weight: f64,
}

/// Where the next round begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    caller: usize,
    permits: u64,
}

/// Gives out permits row by row, the highest priority first and in turn among the callers that have some of it, as long as the
/// room lasts. A row larger than all of it is let in alone (`empty`: nothing is held or permitted), or it would wait for ever.
///
/// Returns the rows granted to each caller.
pub fn grant(demands: &[Demand], turn: &mut Turn, room: Room, empty: bool) -> Vec<u64> {
    let mut granted = vec![0; demands.len()];
    if demands.is_empty() {
        return granted;
    }
    let mut left: Vec<[u64; 3]> = demands.iter().map(|d| d.rows).collect();
    let mut of_priority = [0u64; 3];
    for rows in &left {
        (0..3).for_each(|p| of_priority[p] = of_priority[p].saturating_add(rows[p]));
    }
    let Room { mut rows, mut bytes, mut weight } = room;
    let mut nothing_yet = empty;
    turn.caller %= demands.len();
    while rows > 0 {
        let waiting = |p: &usize| of_priority[*p] > 0;
        let bottom_up = turn.permits % BOTTOM_UP == BOTTOM_UP - 1;
        let Some(priority) = (if bottom_up { (0..3).rev().find(waiting) } else { (0..3).find(waiting) })
        else {
            break;
        };
        while left[turn.caller][priority] == 0 {
            turn.caller = (turn.caller + 1) % demands.len();
        }
        let next = &demands[turn.caller];
        if (next.bytes > bytes || next.weight > weight) && !nothing_yet {
            // The next in turn waits for its room; letting smaller ones pass would starve it.
            break;
        }
        left[turn.caller][priority] -= 1;
        of_priority[priority] -= 1;
        granted[turn.caller] += 1;
        turn.caller = (turn.caller + 1) % demands.len();
        turn.permits += 1;
        rows -= 1;
        bytes = bytes.saturating_sub(next.bytes);
        weight -= next.weight;
        nothing_yet = false;
    }
    granted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demands(rows: &[u64]) -> Vec<Demand> {
        rows.iter().map(|&rows| Demand { rows: [0, rows, 0], bytes: 10, weight: 1.0 }).collect()
    }

    fn room(rows: u64, bytes: u64) -> Room {
        Room { rows, bytes, weight: f64::INFINITY }
    }

    #[test]
    fn shares_are_fair_and_within_the_room() {
        for (wanted, caller, room, expected) in [
            (vec![], 0, room(10, 1000), vec![]),
            (vec![100], 0, room(10, 1000), vec![10]),
            (vec![100, 100], 0, room(9, 1000), vec![5, 4]),
            (vec![100, 100], 1, room(9, 1000), vec![4, 5]),
            (vec![2, 100, 0], 0, room(9, 1000), vec![2, 7, 0]),
            (vec![3, 3], 0, room(100, 1000), vec![3, 3]),
            (vec![100, 100], 0, room(100, 45), vec![2, 2]),
            (vec![100], 0, room(0, 1000), vec![0]),
            (vec![100, 100], 0, Room { weight: 3.5, ..room(100, 1000) }, vec![2, 1]),
        ] {
            let mut turn = Turn { caller, permits: 0 };
            assert_eq!(grant(&demands(&wanted), &mut turn, room, false), expected, "{wanted:?} {room:?}");
        }
    }

    #[test]
    fn one_row_larger_than_everything_is_let_in_alone() {
        let huge = [Demand { rows: [0, 2, 0], bytes: 1_000_000, weight: 1.0 }];
        assert_eq!(grant(&huge, &mut Turn::default(), room(10, 1000), true), vec![1]);
        assert_eq!(grant(&huge, &mut Turn::default(), room(10, 1000), false), vec![0]);
    }

    #[test]
    fn turns_go_on_where_they_stopped() {
        let (all, mut turn) = (demands(&[100, 100, 100]), Turn::default());
        assert_eq!(grant(&all, &mut turn, room(2, 1000), false), vec![1, 1, 0]);
        assert_eq!(grant(&all, &mut turn, room(2, 1000), false), vec![1, 0, 1]);
    }

    #[test]
    fn the_interactive_go_first_and_the_bulk_is_not_forgotten() {
        let one = |rows| Demand { rows, bytes: 1, weight: 1.0 };
        let (all, mut turn) = ([one([100, 0, 0]), one([0, 100, 0]), one([0, 0, 100])], Turn::default());
        assert_eq!(grant(&all, &mut turn, room(32, 1000), false), vec![30, 0, 2]);
    }
}
