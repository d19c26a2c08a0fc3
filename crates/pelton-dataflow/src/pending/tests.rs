use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array};
use arrow_schema::{DataType, Field, Schema};
use pelton_core::service::Cardinality;

use super::*;

fn numbers(name: &str, values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    let schema = Schema::new(vec![Field::new(name, DataType::Int64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![column]).unwrap()
}

fn pending(order: Order) -> Pending {
    let field = |name: &str| Field::new(name, DataType::Int64, false);
    let shape = Shape {
        result: Arc::new(Schema::new(vec![field("y")])),
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
