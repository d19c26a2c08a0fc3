//! What a client knows of one instance.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pelton_core::endpoint::Endpoint;
use pelton_core::{RequestId, Time};
use pelton_policy::health::{Admission, Health, Settings};
use pelton_wire::Demand;

/// Connections that fail this often in a row, over this time: what the instance holds is given to others. Control says so earlier
/// if it is dead; a few quick failures in a row say little, and what a live instance holds would run twice.
const GIVE_UP_AFTER: (u32, Duration) = (3, Duration::from_secs(1));

/// An instance as this client numbers it.
pub type PeerKey = u64;

/// A connection as the client's loop numbers it: what an older one says is not listened to.
pub type ConnectionId = u64;

pub(crate) struct Peer {
    pub(crate) endpoint: Endpoint,
    /// The connection that is up.
    pub(crate) connection: Option<ConnectionId>,
    /// It takes nothing new.
    pub(crate) draining: bool,
    /// It is not of this client's share of the instances any more.
    pub(crate) retired: bool,
    /// Rows it holds, as it last said.
    pub(crate) held: u64,
    /// Sent to it, not ended.
    pub(crate) in_flight: BTreeSet<RequestId>,
    /// What it has may be what instances die of: nothing else is sent to it meanwhile.
    pub(crate) isolates: bool,
    /// What may be sent to it ahead of permits when it has no work: a little, or as much as it has had from here at a time.
    pub(crate) ahead: Ahead,
    /// Results that it may forget.
    pub(crate) to_acknowledge: Vec<RequestId>,
    /// Some of those results are large.
    pub(crate) has_large_results: bool,
    pub(crate) acknowledged: Acknowledged,
    /// Requests that were given up while it could not be reached.
    pub(crate) to_cancel: Vec<RequestId>,
    pub(crate) given_up: GivenUp,
    /// Attempts to connect that failed in a row.
    pub(crate) failures: u32,
    /// Since when there is no connection.
    pub(crate) lost_since: Option<Time>,
    /// It was connected again, and has not said what it holds since: what it said before still counts.
    pub(crate) restates: bool,
    pub(crate) window: Window,
    /// Whether it answers.
    pub(crate) health: Health,
    /// How long its answers take.
    pub(crate) answer: Latency,
}

/// How long answers take from here: the mean and the mean deviation of the newest ones.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Latency {
    mean: f64,
    deviation: f64,
}

impl Latency {
    pub(crate) fn observe(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        if self.mean == 0.0 {
            (self.mean, self.deviation) = (took, took / 2.0);
        } else {
            self.deviation += 0.1 * ((took - self.mean).abs() - self.deviation);
            self.mean += 0.1 * (took - self.mean);
        }
    }

    /// An answer rarely takes longer. (As TCP sets its timer: mean and four deviations; RFC 6298.)
    pub(crate) fn usual(&self) -> Duration {
        Duration::from_secs_f64(self.mean + 4.0 * self.deviation)
    }
}

/// Rows and bytes that may be sent ahead of permits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

impl Default for Ahead {
    fn default() -> Self {
        Ahead { rows: 16, bytes: 64 << 10 }
    }
}

impl Ahead {
    /// It has so many rows of about so many bytes each, and has not refused them.
    pub(crate) fn had(&mut self, rows: u64, each: u64) {
        self.rows = self.rows.max(rows);
        self.bytes = self.bytes.max(rows.saturating_mul(each));
    }

    /// Whether all of this may go.
    pub(crate) fn allows(&self, rows: u64, bytes: u64) -> bool {
        rows <= self.rows && bytes <= self.bytes
    }
}

/// Counted from the start of a connection: announced, permitted, sent and returned rows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    pub(crate) announced: u64,
    pub(crate) permitted: u64,
    pub(crate) sent: u64,
    pub(crate) returned: u64,
    /// What was last said of the rows announced.
    pub(crate) like: Demand,
}

/// Rows that nobody sends in the life of a connection: 2^48 at a million a second take nine years. Permits beyond that are a lie, which
/// sums must not overflow for.
const MOST: u64 = 1 << 48;

impl Window {
    /// The instance permits so many rows in all.
    pub(crate) fn permit(&mut self, rows: u64) {
        self.permitted = self.permitted.max(rows.min(MOST));
    }

    /// Permits that are neither used nor given back.
    pub(crate) fn available(&self) -> u64 {
        self.permitted.saturating_sub(self.sent).saturating_sub(self.returned)
    }

    /// Rows that were sent and not permitted yet.
    pub(crate) fn ahead(&self) -> u64 {
        (self.sent + self.returned).saturating_sub(self.permitted)
    }

    /// What the instance still thinks we want.
    pub(crate) fn demand(&self) -> u64 {
        self.announced.saturating_sub(self.permitted)
    }

    /// The new announcement that says that we want `wanted` rows like these, if it is worth a frame. Small changes of a large demand are
    /// not; what begins or ends always is.
    pub(crate) fn announce(&mut self, wanted: u64, like: Demand) -> Option<u64> {
        let (demand, ahead) = (self.demand(), self.ahead());
        if wanted == 0 && demand == ahead {
            return None;
        }
        let wanted = wanted + ahead;
        let worth_it = match (demand, wanted) {
            (0, 0) => false,
            _ if self.differs(&like) => true,
            (d, w) if d == w => false,
            (0, _) | (_, 0) => true,
            (d, w) => w.abs_diff(d) > d / 4,
        };
        worth_it.then(|| {
            self.announced = self.permitted + wanted;
            self.like = like;
            self.announced
        })
    }

    /// Whether the rows are now of another kind than the instance was told.
    fn differs(&self, like: &Demand) -> bool {
        let off = |a: f64, b: f64| (a - b).abs() > 0.1 * a.max(b);
        let mixed = |d: &Demand| (d.interactive > 0, d.bulk > 0);
        off(self.like.row_weight, like.row_weight)
            || self.like.row_bytes.abs_diff(like.row_bytes) > self.like.row_bytes / 2
            || self.like.patience != like.patience
            || mixed(&self.like) != mixed(like)
    }
}

/// After so many acknowledgements a ping asks whether they were heard.
const PINGED_AFTER: usize = 1024;

/// Acknowledgements that were sent, and may have been lost with their connection. A ping behind them comes back when they have
/// been heard; one is under way at a time.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    since_ping: Vec<RequestId>,
    before_ping: Vec<RequestId>,
    pinged: bool,
    pings: u64,
}

impl Acknowledged {
    /// Some were sent. Returns the number of the ping to send behind them, if it is `asked` for, or time for one.
    pub(crate) fn sent(&mut self, ids: &[RequestId], asked: bool) -> Option<u64> {
        self.since_ping.extend(ids);
        if asked || self.since_ping.len() >= PINGED_AFTER { self.ping() } else { None }
    }

    /// The ping came back.
    pub(crate) fn confirmed(&mut self, ping: u64) {
        if self.pinged && ping == self.pings {
            self.pinged = false;
            self.before_ping.clear();
        }
    }

    fn ping(&mut self) -> Option<u64> {
        if self.pinged || self.since_ping.is_empty() {
            return None;
        }
        self.pinged = true;
        self.pings += 1;
        self.before_ping = std::mem::take(&mut self.since_ping);
        Some(self.pings)
    }

    /// The connection was lost: all that may have been lost with it.
    pub(crate) fn lost(&mut self) -> Vec<RequestId> {
        self.pinged = false;
        let mut lost = std::mem::take(&mut self.before_ping);
        lost.append(&mut self.since_ping);
        lost
    }
}

/// Requests that were cancelled over this connection. What the instance had said of them before it heard of that may still be under way,
/// and is no answer to another attempt: a mark behind the cancellation comes back when all of it is here.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    /// By request, the mark that it waits for.
    waiting: BTreeMap<RequestId, u64>,
    marks: u64,
    unmarked: bool,
}

/// Tells the number of a mark from that of another ping.
const MARK: u64 = 1 << 63;

impl GivenUp {
    pub(crate) fn cancelled(&mut self, id: RequestId) {
        self.waiting.insert(id, self.marks + 1);
        self.unmarked = true;
    }

    /// The ping to send behind what was cancelled since the last one.
    pub(crate) fn mark(&mut self) -> Option<u64> {
        std::mem::take(&mut self.unmarked).then(|| {
            self.marks += 1;
            MARK | self.marks
        })
    }

    /// A ping came back. Says whether it was a mark.
    pub(crate) fn returned(&mut self, ping: u64) -> bool {
        if ping & MARK != 0 {
            self.waiting.retain(|_, mark| *mark > ping & !MARK);
        }
        ping & MARK != 0
    }

    /// Whether what comes for a request now was said before its cancellation was heard.
    pub(crate) fn is_stale(&self, id: RequestId) -> bool {
        self.waiting.contains_key(&id)
    }

    /// There is another connection, over which nothing of it comes.
    pub(crate) fn clear(&mut self) {
        (self.waiting, self.unmarked) = (BTreeMap::new(), false);
    }
}

impl Peer {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Peer {
            endpoint,
            connection: None,
            draining: false,
            retired: false,
            held: 0,
            in_flight: BTreeSet::new(),
            isolates: false,
            ahead: Ahead::default(),
            to_acknowledge: Vec::new(),
            has_large_results: false,
            acknowledged: Acknowledged::default(),
            to_cancel: Vec::new(),
            given_up: GivenUp::default(),
            failures: 0,
            lost_since: None,
            restates: false,
            window: Window::default(),
            health: Health::new(Settings::of_instances()),
            answer: Latency::default(),
        }
    }

    /// It has been out of reach so often, and for so long, that what it holds was given to others.
    pub(crate) fn is_given_up(&self, now: Time) -> bool {
        self.failures >= GIVE_UP_AFTER.0
            && self.lost_since.is_some_and(|since| now.since(since) >= GIVE_UP_AFTER.1)
    }

    /// Whether it, without a connection, may hold what was sent to it: it once had one, and was not given up since.
    pub(crate) fn may_hold(&self, now: Time) -> bool {
        self.lost_since.is_some() && !self.is_given_up(now)
    }

    /// Whether there is no work at it, as far as is known here, and nothing under way to or from it about permits.
    pub(crate) fn is_idle(&self) -> bool {
        let asked = self.window.demand() > 0 || self.window.available() > 0 || self.window.ahead() > 0;
        self.held == 0 && self.in_flight.is_empty() && !asked
    }

    /// It refused requests for want of a permit, and has not counted them.
    pub(crate) fn refused(&mut self, rows: u64) {
        self.window.sent = self.window.sent.saturating_sub(rows);
        // Until it says otherwise.
        self.held = self.held.max(1);
        self.ahead = Ahead::default();
    }

    /// Whether it is not to keep results until something else is said: they are large, or it is about to leave.
    pub(crate) fn acknowledges_at_once(&self) -> bool {
        self.has_large_results || self.draining || self.retired
    }

    /// It has ended, or lost, this request.
    pub(crate) fn forget(&mut self, id: RequestId) {
        self.in_flight.remove(&id);
        self.isolates &= !self.in_flight.is_empty();
    }

    pub(crate) fn takes_requests(&self) -> bool {
        self.connection.is_some() && !self.draining && !self.retired
    }

    /// How many rows may be sent to it: all that it permits, one to see whether it is back, or none. `suspect`: the next in line may be
    /// what instances die of, and has one to itself.
    pub(crate) fn admits(&self, alone: bool, suspect: bool, now: Time) -> u64 {
        match self.health.admission(alone, now) {
            _ if !self.takes_requests() || self.isolates => 0,
            _ if suspect && !self.in_flight.is_empty() => 0,
            // There is nothing better, and its permits keep it from having too much.
            _ if alone => {
                if suspect {
                    1
                } else {
                    u64::MAX
                }
            }
            Admission::Yes if suspect => 1,
            Admission::Yes => u64::MAX,
            Admission::Probe => 1,
            Admission::NotBefore(_) | Admission::WaitForProbe => 0,
        }
    }

    /// How much work stands before a new request there; failures count as much work.
    pub(crate) fn load(&self) -> u64 {
        let held = self.held.max(self.in_flight.len() as u64);
        ((held as f64 + 1.0) * self.health.bias()) as u64 - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_beyond_what_anybody_sends_overflow_nothing() {
        let mut window = Window::default();
        window.permit(u64::MAX - 1);
        assert!(window.available() > 1_000_000_000);
        let announced = window.announce(u64::from(u32::MAX), Demand::default()).expect("it is news");
        assert!(announced > window.permitted);
    }

    #[test]
    fn only_news_are_announced() {
        let mut window = Window { announced: 10, permitted: 10, ..Window::default() };
        let like = Demand::default();
        assert_eq!(window.announce(0, like), None);
        assert_eq!(window.announce(100, like), Some(110));
        assert_eq!(window.announce(110, like), None, "a tenth more");
        assert_eq!(window.announce(200, like), Some(210));
        let urgent = Demand { interactive: 1, ..like };
        assert_eq!(window.announce(200, urgent), Some(210), "the same number, but of other rows");
        window.permitted = 210;
        assert_eq!((window.demand(), window.available()), (0, 210));
        assert_eq!(window.announce(1, urgent), Some(211));
        assert_eq!(window.announce(0, like), Some(210));
        assert_eq!(window.announce(0, urgent), None);
    }
}
