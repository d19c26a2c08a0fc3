use super::*;
use crate::flow::draw::Draws;

/// The window after calls that each took so long, one every 100 ms from a time on, with the window always used up.
fn limit_after(window: &mut dyn Window, (from, calls): (f64, usize), took: f64, answer: Answer) -> f64 {
    for i in 0..calls {
        let now = from + i as f64 * 0.1;
        let in_flight = window.limit();
        let call =
            Ended { now, sent: now - took, took, lateness: took, answer, in_flight, source_limited: false };
        window.ended(&call);
    }
    window.limit()
}

#[test]
fn a_fixed_window_stays() {
    assert_eq!(limit_after(&mut Fixed(8.0), (0.0, 100), 5.0, Answer::Refused), 8.0);
}

#[test]
fn aimd_grows_by_one_a_window_and_shrinks_once_a_round_trip() {
    let mut aimd = Aimd::default();
    let grown = limit_after(&mut aimd, (0.0, 100), 0.5, Answer::Done);
    assert!((12.0..15.0).contains(&grown), "{grown}");
    let cut = limit_after(&mut aimd, (20.0, 5), 2.0, Answer::Done);
    assert!((cut - grown * 0.7).abs() < 1e-9, "five late answers of one round trip: {grown} to {cut}");
}

#[test]
fn those_that_follow_round_trips_grow_without_load_and_shrink_under_it() {
    let all: [Box<dyn Window>; 2] =
        [Box::new(Vegas::new(1.0, Draws::new(1, 1))), Box::new(Gradient2::new(1.0))];
    for mut window in all {
        let grown = limit_after(&mut *window, (0.0, 300), 0.1, Answer::Done);
        assert!(grown > 4.0, "{grown}");
        let loaded = limit_after(&mut *window, (40.0, 100), 1.0, Answer::Done);
        let refused = limit_after(&mut *window, (60.0, 300), 1.0, Answer::Refused);
        assert!(loaded < grown && refused < loaded, "{grown}, {loaded}, {refused}");
    }
}
