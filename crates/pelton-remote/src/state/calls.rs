//! How calls end, and what that means for their requests and endpoints.

use super::*;
use pelton_policy::backoff;

/// What a refused call waits at least, where the server does not say.
const PAUSE: Duration = Duration::from_millis(100);
/// A server that asks for more is asked again after this: limits are lifted, clocks are wrong.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

impl State {
    pub(super) fn part(&mut self, key: CallKey, rows: RecordBatch, actions: &mut Vec<Action>) {
        let Some(id) = self.calls.get(&key).and_then(|call| call.ids.first().copied()) else { return };
        if let Some(request) = self.requests.get_mut(id).filter(|r| r.place == Place::Sent(key)) {
            request.parts += 1;
            let outcome = Outcome { id, rows: Ok(rows), last: false };
            actions.push(Action::Deliver(request.receiver.clone(), vec![outcome]));
        }
    }

    pub(super) fn ended(
        &mut self,
        key: CallKey,
        result: Result<RecordBatch, Failure>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(call) = self.close(key) else { return };
        let many = self.settings.methods.get(call.method).map(|m| m.cardinality) == Some(Cardinality::Many);
        let result = match result {
            Ok(rows) if !many && rows.num_rows() != call.ids.len() => {
                let message = format!("{} rows came back for {} requests", rows.num_rows(), call.ids.len());
                Err(Failure { error: Error::protocol(message), cause: Cause::Endpoint })
            }
            other => other,
        };
        let server = &mut self.servers[call.endpoint];
        match result {
            Ok(rows) => {
                server.limiter.ended(call.limited, Ended::Answered { deadline: call.limit }, now);
                server.health.succeeded(now.since(call.sent), now);
                server.stats.answers += 1;
                self.answered = true;
                for (i, id) in call.ids.iter().enumerate() {
                    if self.is_part(*id, key) {
                        self.budget.succeeded(now);
                        let rows = if many { rows.clone() } else { rows.slice(i, 1) };
                        self.end(*id, Ok(rows), now, actions);
                    }
                }
            }
            Err(failure) => {
                let pause = self.blame(&call, &failure, now);
                self.try_again(key, &call, &failure, pause, now, actions);
            }
        }
    }

    /// Gives up calls whose time is over.
    pub(super) fn time_out(&mut self, now: Time, actions: &mut Vec<Action>) {
        while let Some(&(_, key)) = self.timeouts.first().filter(|(at, _)| *at <= now) {
            let Some(call) = self.close(key) else { continue };
            actions.push(Action::Abort(key));
            self.silent(&call, now);
            let message = format!("no answer within {:?} (attempt_timeout)", call.ends.since(call.sent));
            let error = Error::new(Kind::NoProgress, Fate::Unknown, Retry::Elsewhere, message);
            let failure = Failure { error, cause: Cause::Endpoint };
            self.try_again(key, &call, &failure, None, now, actions);
        }
    }

    /// Takes a call out of the books, not out of its limiter's.
    fn close(&mut self, key: CallKey) -> Option<Call> {
        let call = self.calls.remove(&key)?;
        self.timeouts.remove(&(call.ends, key));
        Some(call)
    }

    fn is_part(&self, id: RequestId, key: CallKey) -> bool {
        self.requests.get(id).is_some_and(|r| r.place == Place::Sent(key))
    }

    /// It had its time and said nothing.
    fn silent(&mut self, call: &Call, now: Time) {
        let random = self.rng.random();
        let server = &mut self.servers[call.endpoint];
        server.limiter.ended(call.limited, Ended::TimedOut, now);
        server.health.failed(now.since(call.sent), now, random);
        server.stats.failures += 1;
    }

    /// Tells an endpoint's limiter and health; gives the pause after a refusal.
    fn blame(&mut self, call: &Call, failure: &Failure, now: Time) -> Option<Duration> {
        let random: f64 = self.rng.random();
        let server = &mut self.servers[call.endpoint];
        let took = now.since(call.sent);
        match failure.cause {
            Cause::Refused { pause } => {
                let usual =
                    server.limiter.round_trip().unwrap_or_default().clamp(PAUSE, Duration::from_secs(1));
                // Never earlier than asked, and not all at the same moment.
                let pause = pause.map_or(usual, |p| p.min(LONGEST_PAUSE)).mul_f64(1.0 + random / 2.0);
                server.limiter.ended(call.limited, Ended::Refused { pause }, now);
                server.health.answered();
                server.stats.refusals += 1;
                self.answered = true;
                Some(pause)
            }
            Cause::Endpoint => {
                let ejected = server.health.failed(took, now, random);
                server.limiter.ended(call.limited, Ended::Failed { ejected }, now);
                server.stats.failures += 1;
                if ejected {
                    tracing::warn!(
                        "service `{}`: endpoint {} gets no calls for a while: {}",
                        self.settings.service,
                        call.endpoint,
                        failure.error
                    );
                }
                None
            }
            Cause::Request { .. } => {
                server.limiter.ended(call.limited, Ended::Silent, now);
                server.health.answered();
                server.stats.answers += 1;
                self.answered = true;
                None
            }
        }
    }

    /// What becomes of the requests of a call that failed.
    fn try_again(
        &mut self,
        key: CallKey,
        call: &Call,
        failure: &Failure,
        pause: Option<Duration>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let error = &failure.error;
        let untouched = matches!(error.fate(), Fate::NotSent | Fate::Refused);
        let counts = !untouched || !self.answered;
        // One row of several may be what the server chokes on: they go on in halves.
        let halves = (failure.cause == Cause::Request { one: true } && call.ids.len() > 1)
            .then_some(call.ids.len() / 2);
        let random = self.rng.random();
        let mut paid = None;
        // The last first, because each is put before those that were put back before it.
        for id in call.ids.iter().rev().copied() {
            if !self.is_part(id, key) {
                continue;
            }
            let Some(request) = self.requests.get_mut(id) else { continue };
            request.tries = request.tries.saturating_add(1);
            if let Some(halves) = halves {
                request.together = request.together.min(halves.max(1));
                self.retries += 1;
                self.requests.requeue(id);
                continue;
            }
            request.attempts += u32::from(counts);
            let (tries, attempts, parts) = (request.tries, request.attempts, request.parts);
            if error.retry() == Retry::Never {
                self.end(id, Err(error.clone()), now, actions);
            } else if parts > 0 {
                let error = error.clone().context(format_args!(
                    "lost after {parts} parts of its answer were given out, so that it cannot be tried again"
                ));
                self.end(id, Err(error.with_retry(Retry::Never)), now, actions);
            } else if counts && attempts >= self.settings.retry.attempts {
                let error =
                    error.clone().context(format_args!("attempt {attempts} of {attempts} (retry.attempts)"));
                self.end(id, Err(error.with_retry(Retry::Never)), now, actions);
            } else {
                self.retries += 1;
                let RetryLimits { backoff, max_backoff, .. } = self.settings.retry;
                let wait = pause.unwrap_or_else(|| backoff::delay(tries, backoff, max_backoff, random));
                let wait = if let Retry::After(asked) = error.retry() {
                    wait.max(asked.min(LONGEST_PAUSE))
                } else {
                    wait
                };
                // A refusal costs the server next to nothing, and the limiter answers it. The rest comes out of the budget, once a call.
                let paid =
                    if pause.is_some() { now } else { *paid.get_or_insert_with(|| self.budget.owe(now)) };
                let until = paid.max(now + wait);
                self.requests.delay(id, until);
            }
        }
    }

    /// A request's one and only end. If nothing of its call is wanted after that, the call is given up.
    pub(super) fn end(
        &mut self,
        id: RequestId,
        rows: Result<RecordBatch>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(request) = self.requests.remove(id) else { return };
        if let Place::Sent(key) = request.place
            && let Some(call) = self.calls.get_mut(&key)
        {
            call.wanted -= 1;
            if call.wanted == 0
                && let Some(call) = self.close(key)
            {
                actions.push(Action::Abort(key));
                self.give_up(&call, &rows, now);
            }
        }
        actions.push(Action::Deliver(request.receiver, vec![Outcome { id, rows, last: true }]));
    }

    /// Nobody waits for a call any more that is still under way.
    fn give_up(&mut self, call: &Call, rows: &Result<RecordBatch>, now: Time) {
        let late = rows.as_ref().is_err_and(|e| e.kind() == Kind::Deadline);
        // A deadline that passed on the way through our own backlog is not the server's fault.
        let had_its_time = call.limit.is_some_and(|limit| now.since(call.sent) * 2 >= limit);
        if late && had_its_time {
            return self.silent(call, now);
        }
        let server = &mut self.servers[call.endpoint];
        server.limiter.ended(call.limited, Ended::Silent, now);
        if call.probe {
            server.health.probe_lost(now);
        }
    }
}
