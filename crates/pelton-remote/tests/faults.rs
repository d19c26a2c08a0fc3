//! Servers that refuse, fail, talk nonsense, stop in the middle or say nothing: each request ends exactly once, rightly, and none is
//! worked on twice at once.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::time::Duration;

use common::{PATIENCE, caller, chat, declaration, embed, number, submit, text};
use faulty::{Asked, Behaviour, Faulty};
use pelton_core::call::Caller;
use pelton_core::service::Cardinality;
use pelton_core::{Error, Fate, Kind};
use pelton_env::Env;
use pelton_env::real::Host;

/// Most of what is asked fails, and all of it shall succeed.
const OFTEN: &str = "[retry]\nattempts = 1000\nbackoff = \"5ms\"\nmax_backoff = \"50ms\"\n";
/// Quick tries, so that tests are.
const QUICK: &str = "[retry]\nattempts = 4\nbackoff = \"5ms\"\nmax_backoff = \"50ms\"\n";

fn run(body: impl AsyncFnOnce(Env)) {
    let host = Host::new(2, 2).unwrap();
    let env = host.env().clone();
    host.block_on(body(env));
}

fn numbers(n: usize) -> Vec<String> {
    (0..n).map(|i| i.to_string()).collect()
}

/// Embeds the numbers up to `rows` at a server with this script; all must come back right.
fn all_right(
    rows: usize,
    before: &'static str,
    script: impl Fn(&Asked) -> Behaviour + Send + Sync + 'static,
) {
    run(async |env| {
        let server = Faulty::start(&env, script);
        let declaration =
            declaration("openai", std::slice::from_ref(&server.url), &format!("{before}{OFTEN}"), "");
        let caller = caller(&env, &declaration, embed(), None);
        let texts = numbers(rows);
        let inbox = submit(&caller, &texts.iter().map(String::as_str).collect::<Vec<_>>());
        for (id, parts) in inbox.ended(&env, rows).await {
            let [Ok(found)] = &parts[..] else { panic!("request {id} gave {parts:?}") };
            assert_eq!(number(found), id as f32);
        }
        server.check_none_twice();
        let stats = caller.stats();
        assert_eq!((stats.unended, stats.sent), (0, 0));
    });
}

/// The error that one request with the text `7` ends with.
fn failing(
    before: &str,
    within: &str,
    script: impl Fn(&Asked) -> Behaviour + Send + Sync + 'static,
) -> (Error, usize) {
    let mut result = None;
    run(async |env| {
        let server = Faulty::start(&env, script);
        let declaration =
            declaration("openai", std::slice::from_ref(&server.url), &format!("{before}{QUICK}"), within);
        let caller = caller(&env, &declaration, embed(), Some("sk-very-secret"));
        let inbox = submit(&caller, &["7"]);
        let mut ended = inbox.ended(&env, 1).await;
        server.check_none_twice();
        result = Some((ended.remove(&0).unwrap().remove(0).expect_err("an error"), server.asked("7")));
    });
    result.unwrap()
}

fn status(code: u16) -> Behaviour {
    Behaviour::Status(code, "", "the server's own words".into())
}

#[test]
fn without_faults_calls_carry_many_rows_and_answers_are_matched_by_index() {
    all_right(500, "", |_| Behaviour::Answer);
}

#[test]
fn bursts_of_503_are_waited_out() {
    all_right(200, "batch = { rows = 4 }\n", |a| {
        if (a.n / 7).is_multiple_of(2) { status(503) } else { Behaviour::Answer }
    });
}

#[test]
fn nonsense_halves_and_broken_connections_are_tried_again() {
    all_right(60, "batch = { rows = 3 }\n", |a| match a.n % 6 {
        0 => Behaviour::Body("application/json", "<html>it works!</html>".into()),
        2 => Behaviour::Half,
        3 => Behaviour::Body("application/json", "{\"data\":[]}".into()),
        4 => Behaviour::Close,
        _ => Behaviour::Answer,
    });
}

#[test]
fn silence_ends_with_the_attempt_and_another_is_made() {
    all_right(20, "attempt_timeout = \"150ms\"\nbatch = { rows = 2 }\n", |a| {
        if a.n.is_multiple_of(3) { Behaviour::Silent } else { Behaviour::Answer }
    });
}

#[test]
fn slow_answers_are_answers() {
    all_right(40, "batch = { rows = 4 }\n", |a| {
        Behaviour::Slow(Duration::from_millis((a.n % 5) as u64 * 10))
    });
}

#[test]
fn a_refused_request_does_not_come_again_before_the_server_wants_it() {
    run(async |env| {
        let server = Faulty::start(&env, |a| match a.n {
            5..12 => Behaviour::Status(429, "retry-after: 1\r\n", "slow down".into()),
            _ => Behaviour::Answer,
        });
        let declaration =
            declaration("openai", std::slice::from_ref(&server.url), "batch = { rows = 1 }\n", "");
        let caller = caller(&env, &declaration, embed(), None);
        let texts = numbers(40);
        let inbox = submit(&caller, &texts.iter().map(String::as_str).collect::<Vec<_>>());
        let ended = inbox.ended(&env, 40).await;
        assert!(ended.values().flatten().all(Result::is_ok));
        assert!(server.soonest().is_some_and(|s| s >= Duration::from_secs(1)), "{:?}", server.soonest());
        server.check_none_twice();
        let (_, endpoint) = caller.stats().endpoints.remove(0);
        assert_eq!((endpoint.refusals, endpoint.failures), (7, 0));
    });
}

#[test]
fn a_row_that_the_server_chokes_on_is_found_and_the_others_keep_their_answers() {
    run(async |env| {
        let server = Faulty::start(&env, |a| {
            if a.inputs.iter().any(|t| t == "bad") { status(400) } else { Behaviour::Answer }
        });
        let declaration = declaration("openai", std::slice::from_ref(&server.url), "", "");
        let caller = caller(&env, &declaration, embed(), None);
        let texts = ["0", "1", "2", "3", "4", "bad", "6", "7", "8"];
        let ended = submit(&caller, &texts).ended(&env, texts.len()).await;
        for (id, parts) in ended {
            match &parts[..] {
                [Ok(found)] => assert_eq!(number(found), id as f32),
                [Err(e)] => {
                    assert_eq!((id, e.kind(), e.fate()), (5, Kind::Invalid, Fate::Refused));
                    assert!(e.message().contains("the server's own words"), "{e}");
                }
                other => panic!("request {id} gave {other:?}"),
            }
        }
        server.check_none_twice();
    });
}

#[test]
fn errors_say_what_happened_and_are_tried_as_often_as_they_deserve() {
    for (code, kind, fate, asked) in [
        (400, Kind::Invalid, Fate::Refused, 1),
        (404, Kind::Invalid, Fate::Refused, 1),
        (302, Kind::Invalid, Fate::Refused, 1),
        (500, Kind::User, Fate::Executed, 4),
        (502, Kind::Reset, Fate::Unknown, 4),
        // It has never answered anything: a wrong address is no reason to wait for ever.
        (503, Kind::Overload, Fate::Refused, 4),
    ] {
        let (error, times) = failing("", "", move |_| status(code));
        assert_eq!((error.kind(), error.fate(), times), (kind, fate, asked), "{code}: {error:?}");
        assert!(
            error.message().contains(&code.to_string()) && error.message().contains("own words"),
            "{error}"
        );
    }
    let (error, times) = failing("", "", |_| Behaviour::Body("application/json", "{]".into()));
    assert_eq!((error.kind(), times), (Kind::Protocol, 4), "{error:?}");
    let (error, times) = failing("", "", |_| Behaviour::Close);
    assert_eq!((error.kind(), error.fate(), times), (Kind::Reset, Fate::Unknown, 4), "{error:?}");
    let (error, times) = failing("attempt_timeout = \"50ms\"\n", "", |_| Behaviour::Silent);
    assert_eq!((error.kind(), error.fate(), times), (Kind::NoProgress, Fate::Unknown, 4), "{error:?}");
    let (error, times) = failing("timeout = \"100ms\"\n", "", |_| Behaviour::Silent);
    assert_eq!((error.kind(), error.fate(), times), (Kind::Deadline, Fate::Unknown, 1), "{error:?}");
}

#[test]
fn an_answer_is_not_believed_to_be_as_large_as_it_says() {
    let body = format!("{{\"data\":[{}]}}", " ".repeat(100_000));
    let (error, times) =
        failing("max_message = \"64KiB\"\n", "", move |_| Behaviour::Body("application/json", body.clone()));
    assert_eq!((error.kind(), times), (Kind::Limit, 1), "{error:?}");
    assert!(error.message().contains("max_message"), "{error}");
}

#[test]
fn a_key_is_sent_and_never_seen() {
    let key = "api_key_env = \"SOME_KEY\"";
    let (error, times) = failing("", key, |a| {
        assert!(a.head.contains("authorization: Bearer sk-very-secret"), "{}", a.head);
        Behaviour::Status(401, "", format!("bad key: {}", a.head))
    });
    assert_eq!((error.kind(), times), (Kind::Denied, 1));
    assert!(!format!("{error:?}").contains("secret") && error.message().contains("[api key]"), "{error}");
}

#[test]
fn nobody_there_is_said_with_the_address() {
    run(async |env| {
        let url = Faulty::start(&env, |_| Behaviour::Answer).url.clone();
        let declaration = declaration("openai", std::slice::from_ref(&url), QUICK, "");
        let caller = caller(&env, &declaration, embed(), None);
        let ended = submit(&caller, &["1", "2"]).ended(&env, 2).await;
        for error in ended.into_values().flatten().map(|r| r.expect_err("nobody answers")) {
            assert_eq!((error.kind(), error.fate()), (Kind::Connect, Fate::NotSent), "{error:?}");
            assert!(error.message().contains(&url), "{error}");
        }
    });
}

#[test]
fn the_other_protocols_meet_nonsense_too() {
    run(async |env| {
        let server = Faulty::start(&env, |_| Behaviour::Answer);
        for (protocol, kinds) in
            [("oip-http", &[Kind::Protocol][..]), ("oip-grpc", &[Kind::Reset, Kind::Connect])]
        {
            let declaration = declaration(protocol, std::slice::from_ref(&server.url), QUICK, "");
            let caller = caller(&env, &declaration, embed(), None);
            let ended = submit(&caller, &["1", "2"]).ended(&env, 2).await;
            for error in ended.into_values().flatten().map(|r| r.expect_err("it speaks another protocol")) {
                assert!(kinds.contains(&error.kind()), "{protocol}: {error:?}");
            }
        }
    });
}

#[test]
fn an_endpoint_that_fails_at_once_does_not_attract_calls() {
    run(async |env| {
        let good = Faulty::start(&env, |_| Behaviour::Slow(Duration::from_millis(3)));
        let bad = Faulty::start(&env, |_| status(503));
        let urls = [bad.url.clone(), good.url.clone()];
        let declaration = declaration("openai", &urls, &format!("batch = {{ rows = 1 }}\n{QUICK}"), "");
        let caller = caller(&env, &declaration, embed(), None);
        let texts = numbers(400);
        let ended =
            submit(&caller, &texts.iter().map(String::as_str).collect::<Vec<_>>()).ended(&env, 400).await;
        assert!(ended.values().flatten().all(Result::is_ok));
        assert!(good.requests() == 400 && bad.requests() < 100, "{} and {}", good.requests(), bad.requests());
    });
}

#[test]
fn cancelled_requests_end_and_their_calls_are_broken_off() {
    run(async |env| {
        let server =
            Faulty::start(&env, |a| if a.inputs[0] == "0" { Behaviour::Silent } else { Behaviour::Answer });
        let declaration =
            declaration("openai", std::slice::from_ref(&server.url), "batch = { rows = 1 }\n", "");
        let caller = caller(&env, &declaration, embed(), None);
        let inbox = submit(&caller, &["0", "1"]);
        let asked = async {
            while server.asked("0") == 0 {
                env.sleep(Duration::from_millis(1)).await;
            }
        };
        env.within(PATIENCE, asked).await.expect("it is sent");
        // It has the only place in the window: the other one waits for it.
        caller.cancel(&[common::id(0)]);
        let ended = inbox.ended(&env, 2).await;
        assert_eq!(ended[&0][0].as_ref().expect_err("cancelled").kind(), Kind::Cancelled);
        assert_eq!(number(ended[&1][0].as_ref().expect("answered")), 1.0);
    });
}

fn events(texts: &[&str], end: &str) -> Behaviour {
    let delta = |t: &&str| {
        format!("data: {}\n\n", serde_json::json!({ "choices": [{ "index": 0, "delta": { "content": t } }] }))
    };
    let body: String = texts.iter().map(delta).collect();
    Behaviour::Body("text/event-stream", body + end)
}

/// What one chat gives: the texts of its parts, and its error.
fn chatting(
    cardinality: Cardinality,
    script: impl Fn(&Asked) -> Behaviour + Send + Sync + 'static,
) -> (Vec<String>, Option<Error>) {
    let mut result = None;
    run(async |env| {
        let server = Faulty::start(&env, script);
        let within = "[remote.methods.chat]\nsystem = \"be loud\"\nextra = { temperature = 0.5 }\n";
        let declaration = declaration("openai", std::slice::from_ref(&server.url), QUICK, within);
        let caller = caller(&env, &declaration, chat(cardinality), None);
        let parts = submit(&caller, &["hello"]).ended(&env, 1).await.remove(&0).unwrap();
        let error = parts.iter().find_map(|p| p.as_ref().err().cloned());
        result = Some((parts.iter().flatten().map(text).filter(|t| !t.is_empty()).collect(), error));
        server.check_none_twice();
    });
    result.unwrap()
}

#[test]
fn chats_are_answered_whole_or_in_parts() {
    let done = "data: [DONE]\n\n";
    let (parts, error) = chatting(Cardinality::One, |a| {
        assert_eq!(a.body["messages"][0]["content"], "be loud");
        assert_eq!((a.body["temperature"].as_f64(), a.body["stream"].as_bool()), (Some(0.5), Some(false)));
        Behaviour::Answer
    });
    assert_eq!((parts, error), (vec!["HELLO".to_owned()], None));
    // A server that streams whether it was asked to or not.
    let (parts, error) = chatting(Cardinality::One, move |_| events(&["HE", "LLO"], done));
    assert_eq!((parts, error), (vec!["HELLO".to_owned()], None));
    let (parts, error) = chatting(Cardinality::Many, move |a| {
        assert_eq!(a.body["stream"].as_bool(), Some(true));
        events(&["HE", "LLO"], done)
    });
    assert_eq!((parts, error), (vec!["HE".to_owned(), "LLO".to_owned()], None));
    // A server that does not stream.
    let (parts, error) = chatting(Cardinality::Many, |_| Behaviour::Answer);
    assert_eq!((parts, error), (vec!["HELLO".to_owned()], None));
}

#[test]
fn a_stream_that_breaks_off_is_tried_again_unless_its_caller_has_a_part() {
    let (parts, error) =
        chatting(Cardinality::One, |a| if a.n == 0 { events(&["HE"], "") } else { Behaviour::Answer });
    assert_eq!((parts, error), (vec!["HELLO".to_owned()], None));
    let (parts, error) = chatting(Cardinality::Many, |_| events(&["HE"], ""));
    let error = error.expect("it broke off");
    assert_eq!((parts, error.kind()), (vec!["HE".to_owned()], Kind::Reset));
    assert!(error.message().contains("1 parts"), "{error}");
}
