//! Which parts of a segment are taken. Pure: it knows numbers, not memory.
//!
//! First fit from the low end: what is used stays few pages, again and again the same ones, and they stay in the processor's caches.

use std::collections::BTreeMap;

/// Ranges begin and end at multiples of this: a page, so that memory can be given back page by page.
pub(crate) const GRAIN: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Arena {
    /// Offset and length of what is free; no two touch one another.
    free: BTreeMap<u64, u64>,
    /// Offset and length of what is taken.
    taken: BTreeMap<u64, u64>,
    /// The end of the highest range that was taken since the last [`trim`](Arena::trim).
    reach: u64,
}

impl Arena {
    /// All free, `size` rounded down to whole pages.
    pub(crate) fn new(size: u64) -> Arena {
        let size = size - size % GRAIN;
        let free = if size > 0 { BTreeMap::from([(0, size)]) } else { BTreeMap::new() };
        Arena { free, taken: BTreeMap::new(), reach: 0 }
    }

    /// Takes a range for so many bytes: where it begins, or nothing if there is no room in one piece.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<u64> {
        let length = bytes.max(1).checked_next_multiple_of(GRAIN)?;
        let (offset, room) = self.free.iter().find(|(_, room)| **room >= length).map(|(o, r)| (*o, *r))?;
        self.free.remove(&offset);
        if room > length {
            self.free.insert(offset + length, room - length);
        }
        self.taken.insert(offset, length);
        self.reach = self.reach.max(offset + length);
        Some(offset)
    }

    /// Frees the range that begins at `offset`. False if none does.
    pub(crate) fn release(&mut self, offset: u64) -> bool {
        let Some(mut length) = self.taken.remove(&offset) else { return false };
        let mut begin = offset;
        if let Some((&before, &room)) = self.free.range(..offset).next_back()
            && before + room == offset
        {
            self.free.remove(&before);
            (begin, length) = (before, room + length);
        }
        if let Some(room) = self.free.remove(&(begin + length)) {
            length += room;
        }
        self.free.insert(begin, length);
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// How far up memory was touched since the last trim.
    pub(crate) fn reach(&self) -> u64 {
        self.reach
    }

    /// What is above `keep` is given back: the range that this is.
    pub(crate) fn trim(&mut self, keep: u64) -> (u64, u64) {
        let keep = keep.next_multiple_of(GRAIN);
        let given_back = self.reach.saturating_sub(keep);
        self.reach -= given_back;
        (keep, given_back)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// Where ranges begin, in pages, after `+3` (take three pages), `+3!` (three pages, for which there is no room), `-4` (free what begins
    /// at page four) and `-4!` (there is no such range), in an arena of ten pages; and what is free then, as `begin:length`.
    fn check(script: &str, taken: &[u64], free: &str) {
        let mut arena = Arena::new(10 * GRAIN + 17);
        let mut places = Vec::new();
        for word in script.split_whitespace() {
            let (number, fails) =
                (word[1..].trim_end_matches('!').parse::<u64>().unwrap(), word.ends_with('!'));
            match &word[..1] {
                "+" => {
                    let place = arena.take(number * GRAIN - u64::from(number > 0));
                    assert_eq!(place.is_none(), fails, "{script}: {word}");
                    places.extend(place.map(|p| p / GRAIN));
                }
                "-" => assert_eq!(arena.release(number * GRAIN), !fails, "{script}: {word}"),
                other => panic!("{other}"),
            }
        }
        let left: Vec<String> =
            arena.free.iter().map(|(o, l)| format!("{}:{}", o / GRAIN, l / GRAIN)).collect();
        assert_eq!((places.as_slice(), left.join(" ").as_str()), (taken, free), "{script}");
    }

    #[test]
    fn the_lowest_place_with_room_is_taken() {
        check("", &[], "0:10");
        check("+3 +2", &[0, 3], "5:5");
        check("+3 +2 -0 +2", &[0, 3, 0], "2:1 5:5");
        check("+3 +2 -0 +4", &[0, 3, 5], "0:3 9:1");
        check("+10 +1!", &[0], "");
        check("+11!", &[], "0:10");
        check("+0", &[0], "1:9");
    }

    #[test]
    fn neighbours_that_are_free_become_one() {
        check("+1 +1 +1 -0 -2 -1", &[0, 1, 2], "0:10");
        check("+1 +1 +1 +7 -0 -2", &[0, 1, 2, 3], "0:1 2:1");
        check("+1 +1 +1 +7 -0 -2 -1 +3", &[0, 1, 2, 3, 0], "");
        check("+1 +9 -1 -0", &[0, 1], "0:10");
    }

    #[test]
    fn only_what_is_taken_is_released() {
        check("-0!", &[], "0:10");
        check("+2 -1! -0 -0!", &[0], "0:10");
        check("+2 -5!", &[0], "2:8");
    }

    #[test]
    fn what_was_touched_and_is_idle_can_be_given_back() {
        let mut arena = Arena::new(100 * GRAIN);
        assert!(arena.is_empty() && arena.reach() == 0);
        arena.take(60 * GRAIN);
        arena.release(0);
        arena.take(GRAIN);
        assert!(!arena.is_empty() && arena.reach() == 60 * GRAIN);
        arena.release(0);
        assert_eq!(arena.trim(10 * GRAIN), (10 * GRAIN, 50 * GRAIN));
        assert!(arena.is_empty() && arena.reach() == 10 * GRAIN);
        assert_eq!(arena.trim(10 * GRAIN), (10 * GRAIN, 0));
    }

    #[test]
    fn ranges_never_overlap() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut arena = Arena::new(64 * GRAIN);
        for _ in 0..20_000 {
            if rng.random_bool(0.55) {
                arena.take(rng.random_range(0..9 * GRAIN));
            } else if let Some(offset) = arena.taken.keys().nth(rng.random_range(0..8)).copied() {
                assert!(arena.release(offset));
            }
            let mut all: Vec<(u64, u64)> =
                arena.free.iter().chain(&arena.taken).map(|(o, l)| (*o, *l)).collect();
            all.sort_unstable();
            let mut end = 0;
            for (offset, length) in all {
                assert_eq!(offset, end);
                end += length;
            }
            assert_eq!(end, 64 * GRAIN);
        }
    }
}
