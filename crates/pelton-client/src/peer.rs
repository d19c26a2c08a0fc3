//! What a client knows of one instance.

use std::collections::BTreeSet;

use pelton_core::endpoint::Endpoint;
use pelton_core::{RequestId, Time};

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
    /// Rows it holds, as it last said.
    pub(crate) held: u64,
    /// Sent to it, not ended.
    pub(crate) in_flight: BTreeSet<RequestId>,
    /// Results that it may forget.
    pub(crate) to_acknowledge: Vec<RequestId>,
    pub(crate) acknowledged: Acknowledged,
    /// Requests that were given up while it could not be reached.
    pub(crate) to_cancel: Vec<RequestId>,
    /// Attempts to connect that failed in a row.
    pub(crate) failures: u32,
    /// Since when there is no connection.
    pub(crate) lost_since: Option<Time>,
    pub(crate) window: Window,
}

/// Counted from the start of a connection: announced, permitted, sent and returned rows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    pub(crate) announced: u64,
    pub(crate) permitted: u64,
    pub(crate) sent: u64,
    pub(crate) returned: u64,
}

impl Window {
    /// Permits that are neither used nor given back.
    pub(crate) fn available(&self) -> u64 {
        self.permitted.saturating_sub(self.sent).saturating_sub(self.returned)
    }

    /// What the instance still thinks we want.
    pub(crate) fn demand(&self) -> u64 {
        self.announced.saturating_sub(self.permitted)
    }

    /// The new announcement that says that we want `wanted`, if it is worth a frame. Small changes of a large demand are not; what
    /// begins or ends always is.
    pub(crate) fn announce(&mut self, wanted: u64) -> Option<u64> {
        let demand = self.demand();
        let worth_it = match (demand, wanted) {
            (d, w) if d == w => false,
            (0, _) | (_, 0) => true,
            (d, w) => w.abs_diff(d) > d / 4,
        };
        worth_it.then(|| {
            self.announced = self.permitted + wanted;
            self.announced
        })
    }
}

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
    /// Some were sent. Returns the number of the ping to send behind them, if it is time for one.
    pub(crate) fn sent(&mut self, ids: &[RequestId]) -> Option<u64> {
        self.since_ping.extend(ids);
        self.ping()
    }

    /// The ping came back. Returns the next one to send, if there is something to ask for.
    pub(crate) fn confirmed(&mut self, ping: u64) -> Option<u64> {
        if !self.pinged || ping != self.pings {
            return None;
        }
        self.pinged = false;
        self.before_ping.clear();
        self.ping()
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

impl Peer {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Peer {
            endpoint,
            connection: None,
            draining: false,
            held: 0,
            in_flight: BTreeSet::new(),
            to_acknowledge: Vec::new(),
            acknowledged: Acknowledged::default(),
            to_cancel: Vec::new(),
            failures: 0,
            lost_since: None,
            window: Window::default(),
        }
    }

    pub(crate) fn takes_requests(&self) -> bool {
        self.connection.is_some() && !self.draining
    }

    /// How much work stands before a new request there.
    pub(crate) fn load(&self) -> u64 {
        self.held.max(self.in_flight.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_news_are_announced() {
        let mut window = Window { announced: 10, permitted: 10, ..Window::default() };
        assert_eq!(window.announce(0), None);
        assert_eq!(window.announce(100), Some(110));
        assert_eq!(window.announce(110), None, "a tenth more");
        assert_eq!(window.announce(200), Some(210));
        window.permitted = 210;
        assert_eq!((window.demand(), window.available()), (0, 210));
        assert_eq!(window.announce(1), Some(211));
        assert_eq!(window.announce(0), Some(210));
    }
}
