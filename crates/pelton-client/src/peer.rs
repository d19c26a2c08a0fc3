//! What a client knows of one instance.

use std::collections::BTreeSet;

use pelton_core::RequestId;
use pelton_core::endpoint::Endpoint;

/// An instance as this client numbers it.
pub(crate) type PeerKey = u64;

/// A connection as the client's loop numbers it: what an older one says is not listened to.
pub(crate) type ConnectionId = u64;

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
    /// Attempts to connect that failed in a row.
    pub(crate) failures: u32,
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

impl Peer {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Peer {
            endpoint,
            connection: None,
            draining: false,
            held: 0,
            in_flight: BTreeSet::new(),
            to_acknowledge: Vec::new(),
            failures: 0,
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
