//! What an answer that is none means: the error's kind, fate and retry, and who is to blame.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{DATE, HeaderMap, RETRY_AFTER};
use pelton_core::{Error, Fate, Kind, Retry};

use crate::state::{Cause, Failure};

/// Most characters of a server's own text in a message.
const TEXT: usize = 400;

/// The request was not, or not wholly, put into words: the caller's mistake. `one`: of several rows, one may be to blame.
pub(crate) fn invalid(message: impl Into<String>, one: bool) -> Failure {
    Failure { error: Error::invalid(message), cause: Cause::Request { one } }
}

/// An answer that is not what the protocol says.
pub(crate) fn nonsense(message: impl Into<String>) -> Failure {
    Failure { error: Error::protocol(message), cause: Cause::Endpoint }
}

/// An answer larger than `max_message`.
pub(crate) fn too_large(bytes: u64, limit: u64) -> Failure {
    let message = format!("an answer of {bytes} bytes or more is over `max_message` ({limit} bytes)");
    let error = Error::new(Kind::Limit, Fate::Executed, Retry::Never, message);
    // With fewer rows it may fit.
    Failure { error, cause: Cause::Request { one: true } }
}

pub(crate) fn not_connected(message: String) -> Failure {
    let error = Error::new(Kind::Connect, Fate::NotSent, Retry::Elsewhere, message);
    Failure { error, cause: Cause::Endpoint }
}

/// The connection broke while an answer was awaited or under way.
pub(crate) fn broken(message: String) -> Failure {
    let error = Error::new(Kind::Reset, Fate::Unknown, Retry::Elsewhere, message);
    Failure { error, cause: Cause::Endpoint }
}

/// An HTTP status other than 2xx. `text`: what the server says to it.
pub(crate) fn status(status: StatusCode, pause: Option<Duration>, text: &str) -> Failure {
    let said = format!("the server answers {}{}", status.as_u16(), shown(text));
    let failure =
        |kind, fate, retry, cause| Failure { error: Error::new(kind, fate, retry, said.clone()), cause };
    let wait = pause.map_or(Retry::Elsewhere, Retry::After);
    match status.as_u16() {
        // An account without money is not a server without time.
        429 if text.contains("insufficient_quota") => {
            failure(Kind::Denied, Fate::Refused, Retry::Never, Cause::Request { one: false })
        }
        429 => failure(Kind::Overload, Fate::Refused, wait, Cause::Refused { pause }),
        503 | 529 => failure(Kind::Overload, Fate::Refused, wait, Cause::Endpoint),
        // Whoever stands before the server has lost it.
        408 | 502 | 504 => failure(Kind::Reset, Fate::Unknown, wait, Cause::Endpoint),
        401 | 403 | 407 => failure(Kind::Denied, Fate::Refused, Retry::Never, Cause::Request { one: false }),
        400 | 413 | 422 => failure(Kind::Invalid, Fate::Refused, Retry::Never, Cause::Request { one: true }),
        500..=599 => failure(Kind::User, Fate::Executed, wait, Cause::Request { one: true }),
        300..=399 => {
            let mut failure =
                failure(Kind::Invalid, Fate::Refused, Retry::Never, Cause::Request { one: false });
            failure.error = failure.error.context("write the address that it points to into `remote.urls`");
            failure
        }
        _ => failure(Kind::Invalid, Fate::Refused, Retry::Never, Cause::Request { one: false }),
    }
}

/// A gRPC status other than 0 (grpc.github.io/grpc/core/md_doc_statuscodes.html).
pub(crate) fn grpc(code: u32, text: &str) -> Failure {
    let said = format!("the server answers with gRPC status {code}{}", shown(text));
    let failure =
        |kind, fate, retry, cause| Failure { error: Error::new(kind, fate, retry, said.clone()), cause };
    match code {
        8 => failure(Kind::Overload, Fate::Refused, Retry::Elsewhere, Cause::Refused { pause: None }),
        14 => failure(Kind::Overload, Fate::Refused, Retry::Elsewhere, Cause::Endpoint),
        1 | 4 | 10 => failure(Kind::Reset, Fate::Unknown, Retry::Elsewhere, Cause::Endpoint),
        7 | 16 => failure(Kind::Denied, Fate::Refused, Retry::Never, Cause::Request { one: false }),
        3 | 11 => failure(Kind::Invalid, Fate::Refused, Retry::Never, Cause::Request { one: true }),
        5 | 6 | 9 | 12 => failure(Kind::Invalid, Fate::Refused, Retry::Never, Cause::Request { one: false }),
        _ => failure(Kind::User, Fate::Executed, Retry::Elsewhere, Cause::Request { one: true }),
    }
}

/// How long a server asks to be left alone: seconds, or a date, which is compared with the server's own clock if it tells it.
pub(crate) fn retry_after(headers: &HeaderMap, unix_millis: u64) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let server = headers.get(DATE).and_then(|d| httpdate::parse_http_date(d.to_str().ok()?).ok());
    let now = server.unwrap_or(SystemTime::UNIX_EPOCH + Duration::from_millis(unix_millis));
    Some(until.duration_since(now).unwrap_or_default())
}

/// A server's own words, in one line and cut: `: ...`.
fn shown(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut cut: String = one_line.chars().filter(|c| !c.is_control()).take(TEXT).collect();
    if one_line.chars().count() > TEXT {
        cut.push_str(" ...");
    }
    if cut.is_empty() { cut } else { format!(": {cut}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_say_what_may_have_run_and_who_is_to_blame() {
        use Cause::{Endpoint, Refused, Request};
        use Retry::{After, Elsewhere, Never};
        let s = Duration::from_secs;
        for (code, pause, text, kind, fate, retry, cause) in [
            (
                429,
                Some(s(3)),
                "slow",
                Kind::Overload,
                Fate::Refused,
                After(s(3)),
                Refused { pause: Some(s(3)) },
            ),
            (429, None, "", Kind::Overload, Fate::Refused, Elsewhere, Refused { pause: None }),
            (429, None, "insufficient_quota", Kind::Denied, Fate::Refused, Never, Request { one: false }),
            (503, None, "", Kind::Overload, Fate::Refused, Elsewhere, Endpoint),
            (502, None, "", Kind::Reset, Fate::Unknown, Elsewhere, Endpoint),
            (504, None, "", Kind::Reset, Fate::Unknown, Elsewhere, Endpoint),
            (500, None, "", Kind::User, Fate::Executed, Elsewhere, Request { one: true }),
            (400, None, "", Kind::Invalid, Fate::Refused, Never, Request { one: true }),
            (401, None, "", Kind::Denied, Fate::Refused, Never, Request { one: false }),
            (404, None, "", Kind::Invalid, Fate::Refused, Never, Request { one: false }),
            (302, None, "", Kind::Invalid, Fate::Refused, Never, Request { one: false }),
        ] {
            let failure = status(StatusCode::from_u16(code).unwrap(), pause, text);
            let error = &failure.error;
            assert_eq!((error.kind(), error.fate(), error.retry()), (kind, fate, retry), "{code}");
            assert_eq!(failure.cause, cause, "{code}");
        }
    }

    #[test]
    fn a_pause_is_seconds_or_a_date() {
        let headers = |all: &[(hyper::header::HeaderName, &str)]| -> HeaderMap {
            all.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
        };
        let date = "Wed, 21 Oct 2015 07:28:00 GMT";
        for (all, expected) in [
            (vec![], None),
            (vec![(RETRY_AFTER, "7")], Some(7)),
            (vec![(RETRY_AFTER, "-7")], None),
            (vec![(RETRY_AFTER, "soon")], None),
            (vec![(RETRY_AFTER, date), (DATE, "Wed, 21 Oct 2015 07:27:30 GMT")], Some(30)),
            (vec![(RETRY_AFTER, date), (DATE, "Wed, 21 Oct 2015 08:00:00 GMT")], Some(0)),
            (vec![(RETRY_AFTER, date)], Some(10)),
        ] {
            let found = retry_after(&headers(&all), 1_445_412_470_000);
            assert_eq!(found, expected.map(Duration::from_secs), "{all:?}");
        }
    }

    #[test]
    fn a_servers_text_is_cut() {
        let failure =
            status(StatusCode::BAD_REQUEST, None, &format!("a\n\u{1b}[31m  b {}", "x".repeat(10_000)));
        let message = failure.error.to_string();
        assert!(message.starts_with("the server answers 400: a [31m b xxx"), "{message}");
        assert!(message.len() < 500);
    }
}
