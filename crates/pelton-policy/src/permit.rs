//! How many permits an instance gives to whom.
//!
//! Callers announce, instances grant: the sum over all callers never exceeds what the instance can hold, however many
//! they are, and the backlog stays with the callers. The budget is fixed for now; who gets what of it is decided here.

/// What one caller would send beyond what it was permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    pub rows: u64,
    pub bytes: u64,
}

/// Room for rows and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub rows: u64,
    pub bytes: u64,
}

/// Gives out permits row by row, in turn, beginning with caller `first`, as long as rows and bytes last. A row larger than
/// all bytes is let in alone (`empty`: nothing is held or permitted), or it would wait for ever.
///
/// Returns the rows granted to each caller, and who is first the next time.
pub fn grant(demands: &[Demand], first: usize, room: Room, empty: bool) -> (Vec<u64>, usize) {
    let mut granted = vec![0; demands.len()];
    let Room { mut rows, mut bytes } = room;
    if demands.is_empty() {
        return (granted, 0);
    }
    let mut turn = first % demands.len();
    let mut idle = 0;
    let mut nothing_yet = empty;
    while rows > 0 && idle < demands.len() {
        let demand = demands[turn];
        if granted[turn] < demand.rows {
            let weight = demand.bytes / demand.rows.max(1);
            if weight > bytes && !nothing_yet {
                // The next in turn waits for its room; letting smaller ones pass would starve it.
                break;
            }
            granted[turn] += 1;
            rows -= 1;
            bytes = bytes.saturating_sub(weight);
            nothing_yet = false;
            idle = 0;
        } else {
            idle += 1;
        }
        turn = (turn + 1) % demands.len();
    }
    (granted, turn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demands(rows: &[u64]) -> Vec<Demand> {
        rows.iter().map(|&rows| Demand { rows, bytes: rows * 10 }).collect()
    }

    #[test]
    fn shares_are_fair_and_within_the_room() {
        let room = |rows, bytes| Room { rows, bytes };
        for (wanted, first, room, expected) in [
            (vec![], 0, room(10, 1000), vec![]),
            (vec![100], 0, room(10, 1000), vec![10]),
            (vec![100, 100], 0, room(9, 1000), vec![5, 4]),
            (vec![100, 100], 1, room(9, 1000), vec![4, 5]),
            (vec![2, 100, 0], 0, room(9, 1000), vec![2, 7, 0]),
            (vec![3, 3], 0, room(100, 1000), vec![3, 3]),
            (vec![100, 100], 0, room(100, 45), vec![2, 2]),
            (vec![100], 0, room(0, 1000), vec![0]),
        ] {
            assert_eq!(grant(&demands(&wanted), first, room, false).0, expected, "{wanted:?} {room:?}");
        }
    }

    #[test]
    fn one_row_larger_than_everything_is_let_in_alone() {
        let huge = [Demand { rows: 2, bytes: 2_000_000 }];
        let room = Room { rows: 10, bytes: 1000 };
        assert_eq!(grant(&huge, 0, room, true).0, vec![1]);
        assert_eq!(grant(&huge, 0, room, false).0, vec![0]);
    }

    #[test]
    fn turns_go_on_where_they_stopped() {
        let all = demands(&[100, 100, 100]);
        let (first, next) = grant(&all, 0, Room { rows: 2, bytes: 1000 }, false);
        assert_eq!((first, next), (vec![1, 1, 0], 2));
        assert_eq!(grant(&all, next, Room { rows: 2, bytes: 1000 }, false).0, vec![1, 0, 1]);
    }
}
