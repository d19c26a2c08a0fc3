//! Lives of results told as text.

use std::time::Duration;

use pelton_core::Bytes;

use super::*;

fn id(sequence: u64) -> RequestId {
    RequestId { operator: 1, group: 1, sequence }
}

fn at(ms: u64) -> Time {
    Time::from_origin(Duration::from_millis(ms))
}

/// What is left, how many bytes, and how many were evicted after `+3` (3 finishes, 10 bytes), `-3` (is acknowledged) and `e`
/// (evict), one a millisecond, with room for 25 bytes and 10 ms.
fn check(script: &str, left: &[u64], bytes: u64, evicted: u64) {
    let limits = LedgerLimits { bytes: Bytes(25), age: Duration::from_millis(10), ..LedgerLimits::default() };
    let mut ledger = Ledger::new(limits);
    for (ms, word) in script.split_whitespace().enumerate() {
        let (what, number) = word.split_at(1);
        match what {
            "+" => {
                finish(&mut ledger, number.parse().unwrap(), 10, ms as u64);
            }
            "-" => ledger.acknowledge(1, &[RequestRun::one(id(number.parse().unwrap()))]),
            "e" => ledger.evict(at(ms as u64)),
            "." => {}
            other => panic!("{other}"),
        }
    }
    let ids: Vec<u64> = ledger.entries.keys().map(|id| id.sequence).collect();
    assert_eq!((ids.as_slice(), ledger.bytes(), ledger.evicted()), (left, bytes, evicted), "{script}");
    assert_eq!(ledger.finished.len(), ledger.entries.len());
}

#[test]
fn it_keeps_what_fits() {
    check("+1 +2 e", &[1, 2], 20, 0);
    check("+1 +2 +3 e", &[2, 3], 20, 1);
    check("+1 +2 -1 +3 e", &[2, 3], 20, 0);
    check("+1 . . . . . . . . . e", &[], 0, 1);
    check("+1 . . . . . . . . e", &[1], 10, 0);
}

#[test]
fn an_id_that_ended_twice_is_as_old_as_its_last_end() {
    check("+1 -1 . . . . . . +1 . . . e", &[1], 10, 0);
    check("+2 +1 -1 . . . . . +1 . e", &[1], 10, 1);
}

#[test]
fn acknowledged_ones_take_no_room_behind_one_that_is_not() {
    let mut ledger = Ledger::new(LedgerLimits::default());
    for i in 0..5000 {
        finish(&mut ledger, i, 1, 0);
        if i > 0 {
            ledger.acknowledge(1, &[RequestRun::one(id(i))]);
        }
    }
    assert_eq!(ledger.finished.len(), 1);
}

fn finish(ledger: &mut Ledger, number: u64, bytes: u64, ms: u64) {
    let (stage, attached) = (Stage::Running { batch: 1 }, None);
    let entry = Entry { method: 0, attached, stage, parts: Vec::new(), stream: None, unwanted: false };
    ledger.insert(id(number), entry);
    ledger.finish(id(number), bytes, at(ms));
}

/// A ledger with room for 25 bytes in memory and 64 KiB on disk, with results of 10 bytes, or of 20 KB where they are marked `!`.
/// After each of `EVENT EVENT ... => STATE`: `+1`, `-1`, `e` as above; `w` and `x`: the oldest block that waits for it is written, or is
/// not; `?1` caller 7 wants it, `l` and `d`: the oldest block that waits for it is read, or is damaged; `later`: 20 seconds pass, or
/// `much later`: an hour. The state: where each result is (`m` memory, `l` leaving, `d` disk, `D` disk and wanted), and what was
/// counted: `e` evicted, `s` spilled, `g` given to callers, `x` damaged, `h` handed back, `f` segments that were given back.
fn check_spill(script: &str) {
    let limits = LedgerLimits {
        bytes: Bytes(25),
        age: Duration::from_secs(60),
        spill: Some("/".into()),
        spill_bytes: Bytes::kib(64),
        ..LedgerLimits::default()
    };
    let mut ledger = Ledger::new(limits);
    let (mut writes, mut loads) = (Vec::new(), Vec::new());
    let (mut given, mut handed_back, mut freed, mut ms) = (0, 0, 0, 0);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (events, expected) = line.split_once("=>").unwrap();
        for word in events.split_whitespace() {
            let now = at(ms);
            let number = || id(word[1..].trim_end_matches('!').parse().unwrap());
            match word {
                "e" => ledger.evict(now),
                "w" => {
                    let Block { first, segment, .. } = writes.remove(0);
                    let _: u64 = segment;
                    let length = ledger.disk.charged_for(first).unwrap_or(1);
                    ledger.written(first, Ok(Extent { offset: 0, length, checksum: 0 }), now);
                }
                "x" => ledger.written(writes.remove(0).first, Err(spill::Failed), now),
                "l" | "d" => {
                    let first = loads.remove(0);
                    let range = ledger.disk.range(first).unwrap_or(first..first);
                    let results = range.map(|order| (order, Vec::new())).collect();
                    given += ledger
                        .loaded(first, if word == "l" { Ok(results) } else { Err(spill::Failed) })
                        .len();
                }
                "later" => ms += 20_000,
                "much-later" => ms += 3_600_000,
                _ if word.starts_with('+') => {
                    finish(&mut ledger, number().sequence, if word.ends_with('!') { 20_000 } else { 10 }, ms);
                }
                _ if word.starts_with('-') => ledger.acknowledge(7, &[RequestRun::one(number())]),
                _ if word.starts_with('?') => {
                    ledger.get_mut(number()).unwrap().attached = Some(7);
                    ledger.want(number());
                }
                other => panic!("{other}"),
            }
            for order in ledger.take_orders() {
                match order {
                    Order::Write(block) => writes.push(block),
                    Order::Load(load) => loads.push(load.first),
                    Order::Free(_) => freed += 1,
                }
            }
            handed_back += ledger.take_lost().len();
        }
        let place = |entry: &Entry| match entry.stage {
            Stage::Finished { place: Place::Memory, .. } => 'm',
            Stage::Finished { place: Place::Leaving, .. } => 'l',
            Stage::Finished { place: Place::Disk { wanted }, .. } => {
                if wanted {
                    'D'
                } else {
                    'd'
                }
            }
            _ => '?',
        };
        let mut found: Vec<String> =
            ledger.entries.iter().map(|(id, e)| format!("{}{}", id.sequence, place(e))).collect();
        let meter = ledger.meter();
        for (what, n) in [
            ('e', meter.evicted),
            ('s', meter.spilled),
            ('g', given as u64),
            ('x', meter.damaged),
            ('h', handed_back as u64),
            ('f', freed),
        ] {
            if n > 0 {
                found.push(format!("{what}{n}"));
            }
        }
        assert_eq!(found.join(" "), expected.trim(), "{line}");
        let on_disk = ledger
            .entries
            .values()
            .filter(|e| !matches!(e.stage, Stage::Finished { place: Place::Memory, .. }));
        assert_eq!(meter.on_disk, on_disk.count() as u64, "{line}");
        assert!(meter.disk_bytes <= 64 << 10, "{line}: {meter:?}");
        assert_eq!(meter.disk_bytes == 0, meter.on_disk == 0 && writes.is_empty(), "{line}: {meter:?}");
        let leaving: u64 = writes.iter().map(|b| b.results.len() as u64 * 10).sum();
        if !script.contains('!') {
            assert_eq!(ledger.bytes(), ledger.resident + leaving, "{line}");
        }
    }
}

#[test]
fn what_does_not_fit_goes_to_disk_and_comes_back() {
    check_spill(
        "+1 +2 e    => 1m 2m
         +3 e       => 1l 2m 3m
         w          => 1d 2m 3m s1
         +4 +5 e w  => 1d 2d 3d 4m 5m s3
         ?1         => 1D 2d 3d 4m 5m s3
         l          => 1d 2d 3d 4m 5m s3 g1
         ?1 ?2 l l  => 1d 2d 3d 4m 5m s3 g3
         -1         => 2d 3d 4m 5m s3 g3
         -2 -3      => 4m 5m s3 g3 f1
         much-later e => e2 s3 g3 f1",
    );
}

#[test]
fn what_is_on_its_way_can_be_acknowledged() {
    check_spill(
        "+1 +2 +3 e => 1l 2m 3m
         -1         => 2m 3m
         w          => 2m 3m f1
         +4 e       => 2l 3m 4m f1
         -2 x       => 3m 4m f2
         later +5 e => 3l 4m 5m f2
         w ?3       => 3D 4m 5m s1 f2
         -3         => 4m 5m s1 f3
         l          => 4m 5m s1 f3
         +3 e       => 3m 4l 5m s1 f3
         w          => 3m 4d 5m s2 f3",
    );
}

#[test]
fn one_that_ended_again_is_not_answered_with_what_it_gave_before() {
    check_spill(
        "+1 +2 +3 e w ?1 => 1D 2m 3m s1
         -1 +1 e w       => 1m 2d 3m s2 f1
         l               => 1m 2d 3m s2 f1",
    );
}

#[test]
fn a_disk_that_takes_nothing_is_left_alone_for_a_while() {
    check_spill(
        "+1 +2 +3 e => 1l 2m 3m
         x          => 2m 3m e1 f1
         +4 e       => 3m 4m e2 f1
         later +5 e => 3l 4m 5m e2 f1
         w          => 3d 4m 5m e2 s1 f1",
    );
}

#[test]
fn what_is_damaged_is_forgotten_and_handed_back() {
    check_spill(
        "+1 +2 +3 e w => 1d 2m 3m s1
         ?1           => 1D 2m 3m s1
         d            => 2m 3m e1 s1 x1 h1 f1",
    );
}

#[test]
fn one_that_is_wanted_and_too_old_is_handed_back() {
    check_spill(
        "+1 +2 +3 e w ?1 => 1D 2m 3m s1
         much-later e    => e3 s1 h1 f1
         l               => e3 s1 h1 f1",
    );
}

#[test]
fn the_disk_has_a_limit_too() {
    check_spill(
        "+1! +2! e w w   => 1d 2d s2
         +3! e w         => 1d 2d 3d s3
         ?1 +4! e        => 2d 3d 4l e1 s3 h1 f1
         w l             => 2d 3d 4d e1 s4 h1 f1",
    );
}

#[test]
fn where_the_disk_is_behind_memory_has_a_limit() {
    let spill = Some("/".into());
    let mut ledger = Ledger::new(LedgerLimits { bytes: Bytes::kib(1), spill, ..LedgerLimits::default() });
    let mut longest = 0;
    for number in 0..300 {
        finish(&mut ledger, number, 1 << 20, 0);
        ledger.evict(at(0));
        longest = longest.max(ledger.bytes());
    }
    assert!((60 << 20..=BEHIND + 1024).contains(&longest), "{longest}");
    let writes = ledger.take_orders().len() as u64;
    assert_eq!(ledger.evicted() + writes, 300);
    assert_eq!(ledger.evicted() + ledger.entries.len() as u64, 300);
}

#[test]
fn segments_are_given_back_and_the_memory_for_what_is_on_disk_is_bounded() {
    let spill = Some("/".into());
    let mut ledger = Ledger::new(LedgerLimits { bytes: Bytes::kib(1), spill, ..LedgerLimits::default() });
    let mut segments = std::collections::BTreeSet::new();
    for number in 0..100_000 {
        finish(&mut ledger, number, 2000, 0);
        ledger.evict(at(0));
        for order in ledger.take_orders() {
            match order {
                Order::Write(Block { first, segment, results, .. }) => {
                    segments.insert(segment);
                    let length = 2100 * results.len() as u64;
                    ledger.written(first, Ok(Extent { offset: 0, length, checksum: 0 }), at(0));
                }
                Order::Free(segment) => assert!(segments.remove(&segment)),
                Order::Load(_) => {}
            }
        }
    }
    // 16 MiB, 256 bytes each.
    assert_eq!(ledger.meter().on_disk, 65536);
    assert!(ledger.meter().disk_bytes < 3 * (64 << 20) + (64 << 20), "{:?}", ledger.meter());
    assert!(segments.len() <= 4, "{segments:?}");
}
