use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::service::Cardinality;

use super::gather::Failed;
use super::*;
use crate::checkpoint::encode::{decode, encode};
use crate::subtask::state::State;
use crate::topology::ChangelogShape;

fn numbers(name: &str, values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    let schema = Schema::new(vec![Field::new(name, DataType::Int64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![column]).unwrap()
}

fn pending(order: Order) -> Pending {
    let field = |name: &str| Field::new(name, DataType::Int64, false);
    let shape = Shape {
        result: Arc::new(Schema::new(vec![field("y")])),
        kept: vec![0],
        output: Arc::new(Schema::new(vec![field("x"), field("y")])),
        cardinality: Cardinality::One,
    };
    Pending::new(1, order, shape, 1 << 20, None)
}

fn add(p: &mut Pending, group: u64, values: std::ops::Range<i64>) {
    p.add(group, Batch { split: group, rows: numbers("x", values) }).unwrap();
}

fn answer(p: &mut Pending, group: u64, sequences: impl IntoIterator<Item = u64>) {
    for sequence in sequences {
        p.finish(RequestId { operator: 1, group, sequence }, Ok(numbers("y", [sequence as i64])), true);
    }
}

/// All that can leave now: a list a batch, or a watermark.
fn emitted(p: &mut Pending) -> Vec<Vec<i64>> {
    std::iter::from_fn(|| p.emit().unwrap())
        .map(|e| match e {
            Emission::Watermark(w) => vec![-w],
            Emission::Rows { rows, .. } => {
                rows.unwrap().rows.column(0).as_primitive::<Int64Type>().values().to_vec()
            }
        })
        .collect()
}

#[test]
fn ordered_rows_wait_for_those_before_them_in_their_group_only() {
    let mut p = pending(Order::Ordered);
    add(&mut p, 1, 0..3);
    add(&mut p, 1, 3..5);
    add(&mut p, 2, 10..12);
    answer(&mut p, 1, [1, 2, 3]);
    answer(&mut p, 2, [0]);
    assert_eq!(emitted(&mut p), [vec![10]]);
    answer(&mut p, 1, [0]);
    assert_eq!(emitted(&mut p), [vec![0, 1, 2, 3]], "joined over blocks");
    answer(&mut p, 1, [4, 0, 99]);
    answer(&mut p, 2, [1]);
    assert_eq!(emitted(&mut p), [vec![4], vec![11]]);
    assert!(p.is_empty() && p.bytes == 0);
}

#[test]
fn unordered_rows_do_not_cross_a_watermark_that_stays_behind_earlier_rows() {
    let mut p = pending(Order::Unordered);
    add(&mut p, 1, 0..3);
    p.watermark(100);
    add(&mut p, 1, 3..5);
    answer(&mut p, 1, [2, 4]);
    assert_eq!(emitted(&mut p), [vec![2]]);
    answer(&mut p, 1, [0, 1]);
    assert_eq!(emitted(&mut p), [vec![0, 1], vec![-100], vec![4]]);
    answer(&mut p, 1, [3]);
    assert_eq!(emitted(&mut p), [vec![3]]);
    assert!(p.is_empty() && p.bytes == 0);
}

#[test]
fn what_is_saved_comes_back_as_it_was() {
    for order in [Order::Ordered, Order::Unordered] {
        let mut p = pending(order);
        add(&mut p, 1, 0..4);
        add(&mut p, 2, 10..13);
        answer(&mut p, 1, [0, 2]);
        let before = emitted(&mut p);
        answer(&mut p, 2, [1]);
        p.finish(RequestId { operator: 1, group: 2, sequence: 0 }, Err(Error::user("no")), true);
        let unfinished = p.unfinished_ids();
        let mut back = pending(order);
        p.save().unwrap().into_iter().for_each(|lane| back.restore(lane).unwrap());
        assert_eq!((back.unfinished_ids(), back.rows()), (unfinished, p.rows()));
        let Some(Emission::Rows { failed, rows, .. }) = back.emit().unwrap() else {
            panic!("something is ready")
        };
        if order == Order::Ordered {
            assert_eq!(before, [vec![0]], "2 waits for 1");
        }
        assert_eq!(failed[0].row.error.message(), "no");
        assert_eq!(rows.unwrap().rows.num_rows(), 1);
        answer(&mut back, 1, [1, 3]);
        answer(&mut back, 2, [2]);
        emitted(&mut back);
        assert!(back.is_empty());
        let next = back.add(1, Batch { split: 1, rows: numbers("x", 0..1) }).unwrap();
        assert_eq!(next.ids[0].sequence, 4, "numbers go on");
    }
}

#[test]
fn rows_leave_without_columns_that_nobody_looks_at_also_where_some_failed() {
    let y = Arc::new(Schema::new(vec![Field::new("y", DataType::Int64, false)]));
    let shape = Shape { result: y.clone(), kept: vec![], output: y, cardinality: Cardinality::One };
    let mut p = Pending::new(1, Order::Ordered, shape, 1 << 20, None);
    add(&mut p, 1, 10..13);
    answer(&mut p, 1, [0, 2]);
    p.finish(RequestId { operator: 1, group: 1, sequence: 1 }, Err(Error::user("no")), true);
    assert_eq!(emitted(&mut p), [vec![0, 2]]);
    assert!(p.is_empty());
}

#[test]
fn it_is_full_by_bytes_and_empties_again() {
    let mut p = pending(Order::Ordered);
    p.budget = 1000;
    add(&mut p, 1, 0..500);
    assert!(p.is_full());
    answer(&mut p, 1, 0..499);
    emitted(&mut p);
    assert!(p.is_full(), "the last row keeps the buffers of all");
    answer(&mut p, 1, [499]);
    emitted(&mut p);
    assert!(!p.is_full() && p.bytes == 0);
}

#[test]
fn it_is_full_by_rows_too_where_that_is_asked_for() {
    let mut p = pending(Order::Ordered).with_most_rows(Some(3));
    add(&mut p, 1, 0..2);
    assert!(!p.is_full());
    add(&mut p, 1, 2..3);
    assert!(p.is_full());
    answer(&mut p, 1, [0]);
    emitted(&mut p);
    assert!(!p.is_full());
}

/// A changelog's rows: row kind and id, `~` for null.
fn changes(rows: &[&str]) -> RecordBatch {
    let split =
        |row: &&str| row.split_once(':').map(|(kind, id)| (kind.to_owned(), id.parse().ok())).unwrap();
    let (kinds, ids): (Vec<String>, Vec<Option<i64>>) = rows.iter().map(split).unzip();
    let kinds: arrow_array::StringArray = kinds.into_iter().map(|k| (k != "~").then_some(k)).collect();
    let columns: [(&str, ArrayRef); 2] =
        [("kind", Arc::new(kinds)), ("id", Arc::new(Int64Array::from_iter(ids)))];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

fn pending_changes(max_bytes: u64, default: Option<RecordBatch>) -> Pending {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    let (kind, id, y) =
        (field("kind", DataType::Utf8), field("id", DataType::Int64), field("y", DataType::Int64));
    let shape = Shape {
        result: Arc::new(Schema::new(vec![y.clone()])),
        kept: vec![0, 1],
        output: Arc::new(Schema::new(vec![kind, id, y])),
        cardinality: Cardinality::Many,
    };
    let changelog = ChangelogShape { operation: 0, key: vec![1], max_bytes: pelton_core::Bytes(max_bytes) };
    Pending::new(1, Order::Ordered, shape, 1 << 20, Some(Stored::new("c", changelog, default)))
}

/// What leaves now: `+I:1=10` for a row and its result, `+I:1!no` for one that failed.
fn told(p: &mut Pending) -> Result<Vec<String>> {
    let mut told = Vec::new();
    while let Some(emission) = p.emit()? {
        let Emission::Rows { rows, failed, .. } = emission else { panic!("there are no watermarks") };
        if let Some(Batch { rows, .. }) = rows {
            let (kinds, ids) =
                (rows.column(0).as_string::<i32>(), rows.column(1).as_primitive::<Int64Type>());
            let ys = rows.column(2).as_primitive::<Int64Type>();
            told.extend(
                (0..rows.num_rows()).map(|i| format!("{}:{}={}", kinds.value(i), ids.value(i), ys.value(i))),
            );
        }
        for Failed { row, .. } in failed {
            let value: serde_json::Value = serde_json::from_str(&row.row).unwrap();
            let kind = value["kind"].as_str().unwrap_or("~");
            told.push(format!("{kind}:{}!{}", value.get("id").unwrap_or(&"~".into()), row.error.message()));
        }
    }
    Ok(told)
}

/// From a checkpoint.
fn restart(p: &mut Pending, fresh: &dyn Fn() -> Pending) -> Result<()> {
    let state = State { lanes: p.save()?, ..State::default() };
    *p = fresh();
    let mut pieces = Vec::new();
    encode(&state, |name, content| {
        pieces.push((name, content));
        Ok(())
    })?;
    let back = decode(pieces)?;
    back.lanes.into_iter().try_for_each(|lane| p.restore(lane))
}

/// Plays words: `+I:1,-D:1` are rows that come together, `0=10,11` is what request 0 is answered, `0!no` how it fails, `save` a restart from a
/// checkpoint, `group=2` the group of what follows, all of one split. Tells what is submitted (`?0`), and what leaves.
fn play(p: &mut Pending, words: &str, fresh: &dyn Fn() -> Pending) -> Result<String> {
    let mut said = Vec::new();
    let mut group = 7;
    for word in words.split(' ') {
        if word == "save" {
            restart(p, fresh)?;
        } else if let Some(other) = word.strip_prefix("group=") {
            group = other.parse().unwrap();
        } else if word.contains(':') {
            let rows = changes(&word.split(',').collect::<Vec<_>>());
            let to_submit = p.add(group, Batch { split: 7, rows })?;
            for (row, id) in to_submit.ids.iter().enumerate() {
                match p.refusal(&to_submit.rows, row) {
                    Some(e) => _ = p.finish(*id, Err(e), true),
                    None => said.push(format!("?{}", id.sequence)),
                }
            }
        } else if let Some((sequence, error)) = word.split_once('!') {
            let id = RequestId { operator: 1, group, sequence: sequence.parse().unwrap() };
            assert!(p.finish(id, Err(Error::user(error)), true), "{word}");
        } else if let Some((sequence, values)) = word.split_once('=') {
            let id = RequestId { operator: 1, group, sequence: sequence.parse().unwrap() };
            let values: Vec<i64> = values.split(',').filter_map(|v| v.parse().ok()).collect();
            // In two parts, as a streaming answer comes.
            let (first, rest) = values.split_at(values.len().min(1));
            p.finish(id, Ok(numbers("y", first.to_vec())), false);
            assert!(p.finish(id, Ok(numbers("y", rest.to_vec())), true), "{word}");
        }
        said.extend(told(p)?);
    }
    Ok(said.join(" "))
}

#[test]
fn retractions_get_what_was_given_out() {
    let unknown = "!it takes back key (id) = (1), and no result of that is stored: no +I or +U of it came before in its split, or it was \
                   taken back already; let all rows of a key come in one split, in order";
    for (words, expected) in [
        ("+I:1 0=10 -D:1", "?0 +I:1=10 -D:1=10"),
        // It waits for its turn, and is not sent meanwhile.
        ("+I:1,-U:1,+U:1 2=12 0=10 -D:1", "?0 ?2 +I:1=10 -U:1=10 +U:1=12 -D:1=12"),
        ("+I:1,+I:2,-D:1,-D:2 1=20 0=10", "?0 ?1 +I:1=10 +I:2=20 -D:1=10 -D:2=20"),
        // All rows of an answer, or none.
        ("+I:1,-D:1 0=10,11,12", "?0 +I:1=10 +I:1=11 +I:1=12 -D:1=10 -D:1=11 -D:1=12"),
        ("+I:1,-D:1,+I:2,-D:2 0= 2=20", "?0 ?2 +I:2=20 -D:2=20"),
        // So that both outputs stay balanced.
        ("+I:1,-D:1 0!no", "?0 +I:1!no -D:1!no"),
        ("+I:1,-U:1,+U:1,-D:1 0!no 2=12", "?0 ?2 +I:1!no -U:1!no +U:1=12 -D:1=12"),
        // The newest counts.
        ("+I:1,+U:1,-D:1 0=10 1=11", "?0 ?1 +I:1=10 +U:1=11 -D:1=11"),
        // Restarts.
        ("+I:1 0=10 save -D:1", "?0 +I:1=10 -D:1=10"),
        ("+I:1 0=10,11 save save -D:1", "?0 +I:1=10 +I:1=11 -D:1=10 -D:1=11"),
        ("+I:1 0= save -D:1", "?0"),
        ("+I:1 0!no save -D:1", "?0 +I:1!no -D:1!no"),
        ("+I:1,-D:1 save 0=10", "?0 +I:1=10 -D:1=10"),
        (
            "+I:1,+I:2,+I:3 2=30 0=10 1!no -D:2 save -D:3,-D:1",
            "?0 ?1 ?2 +I:1=10 +I:3=30 +I:2!no -D:2!no -D:3=30 -D:1=10",
        ),
        // A group for each generation: the younger waits for the older.
        (
            "+I:1 save group=2 -D:1,+I:2 1=20 group=7 0=10 group=2 -D:2",
            "?0 ?1 +I:1=10 -D:1=10 +I:2=20 -D:2=20",
        ),
        (
            "+I:1 save group=9 -D:1,+I:1 save group=5 -D:1 group=9 1=11 group=7 0=10",
            "?0 ?1 +I:1=10 -D:1=10 +I:1=11 -D:1=11",
        ),
        ("+I:1 0=10 save group=9 +I:2 0=20 save group=5 -D:1,-D:2", "?0 +I:1=10 ?0 +I:2=20 -D:1=10 -D:2=20"),
    ] {
        let fresh = || pending_changes(1 << 20, None);
        let mut p = fresh();
        assert_eq!(play(&mut p, words, &fresh).unwrap(), expected, "{words}");
        assert!(p.is_empty() && p.bytes == 0 && p.stored() == (0, 0), "{words}: {:?}", p.stored());
    }
    for (words, expected) in [
        ("-D:1", format!("-D:1{unknown}")),
        ("+I:1,-D:1,-D:1 0=10", format!("?0 +I:1=10 -D:1=10 -D:1{unknown}")),
        ("++:1", "++:1!`++` in column `kind` is no row kind; they are +I, -U, +U and -D".to_owned()),
        ("~:1", "~:1!`null` in column `kind` is no row kind; they are +I, -U, +U and -D".to_owned()),
        (
            "+I:~,-D:~",
            ["+I", "-D"]
                .map(|k| format!("{k}:\"~\"!key `id` is null, so nobody can tell which row is meant"))
                .join(" "),
        ),
    ] {
        let fresh = || pending_changes(1 << 20, None);
        assert_eq!(play(&mut fresh(), words, &fresh).unwrap(), expected, "{words}");
    }
}

#[test]
fn a_large_answer_of_a_changelog_leaves_whole_whatever_comes_between() {
    let fresh = || pending_changes(1 << 20, None);
    let mut p = fresh();
    p.add(7, Batch { split: 7, rows: changes(&["+I:1", "-D:1"]) }).unwrap();
    let id = RequestId { operator: 1, group: 7, sequence: 0 };
    assert!(!p.finish(id, Ok(numbers("y", 0..15_000)), false));
    assert!(p.finish(id, Ok(numbers("y", 15_000..20_000)), true));
    for kind in ["+I", "-D"] {
        let Some(Emission::Rows { rows: Some(Batch { rows, .. }), .. }) = p.emit().unwrap() else {
            panic!("{kind}: no rows")
        };
        assert!(rows.column(0).as_string::<i32>().iter().all(|k| k == Some(kind)));
        assert!(rows.column(2).as_primitive::<Int64Type>().values().iter().copied().eq(0..20_000), "{kind}");
        restart(&mut p, &fresh).unwrap();
    }
    assert!(p.emit().unwrap().is_none());
    assert!(p.is_empty() && p.bytes == 0 && p.results == 0 && p.stored() == (0, 0));
}

#[test]
fn default_values_stand_for_what_is_not_stored() {
    let fresh = || pending_changes(1 << 20, Some(numbers("y", [-1])));
    let mut p = fresh();
    // What a failed row was given is for the caller of `finish` to say.
    assert_eq!(play(&mut p, "+I:1 0=-1 save -D:1 -D:1", &fresh).unwrap(), "?0 +I:1=-1 -D:1=-1 -D:1=-1");
}

#[test]
fn what_is_stored_is_bounded_and_counted() {
    let fresh = || pending_changes(2000, None);
    let mut p = fresh();
    play(&mut p, "+I:1 0=10", &fresh).unwrap();
    let (keys, one) = p.stored();
    assert!(keys == 1 && one < 700, "{one}");
    play(&mut p, "save", &fresh).unwrap();
    assert_eq!(p.stored(), (1, one), "it takes as much after a restart");
    play(&mut p, "-D:1,+I:2,+I:2,+I:2,+I:2,+I:2,+I:2,+I:2,+I:2 2=1 3=1 4=1 5=1 6=1 7=1 8=1 9=1", &fresh)
        .unwrap();
    assert_eq!(p.stored(), (1, one), "the newest of a key counts");
    let many: Vec<String> = (0..8).map(|id| format!("+I:{id}")).collect();
    let answers: Vec<String> = (0..8).map(|id| format!("{id}=1")).collect();
    let words = format!("{} {}", many.join(","), answers.join(" "));
    let error = play(&mut fresh(), &words, &fresh).unwrap_err();
    let message = error.message();
    assert!(
        message.starts_with("call `c` has stored the results of ")
            && message.contains("more than the 2.0 KiB"),
        "{message}"
    );
    // Also where two tasks' worth comes together in one.
    let large = || pending_changes(1 << 20, None);
    let mut p = large();
    play(&mut p, &words, &large).unwrap();
    assert_eq!(play(&mut p, "save", &fresh).unwrap_err().kind(), pelton_core::Kind::Limit);
}
