//! The common faults of the way between one client and a server, by name.

use super::{Conditions, Proxy};

/// What is wrong with a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Nothing arrives, and nobody is told; open connections stay open.
    Blackhole,
    /// Nothing of the client's arrives.
    StallUp,
    /// Nothing of the server's arrives: requests are executed, and not answered.
    StallDown,
    /// As with a server that was killed: connections are reset, and new ones refused.
    Refuse,
    /// New connections are accepted and closed at once; open ones are reset.
    Hangup,
}

impl Proxy {
    /// From now on this is wrong, and nothing else. What was held back passes when it is over, unless its connection
    /// was reset.
    pub fn fault(&self, fault: Fault) {
        match fault {
            Fault::None => self.restore(),
            Fault::Blackhole => self.only(Conditions::Silent, Conditions::Silent),
            Fault::StallUp => self.only(Conditions::Silent, Conditions::Good),
            Fault::StallDown => self.only(Conditions::Good, Conditions::Silent),
            Fault::Refuse => self.refuse(),
            Fault::Hangup => self.slam(),
        }
    }

    fn only(&self, up: Conditions, down: Conditions) {
        self.open();
        self.up().set(up);
        self.down().set(down);
    }
}
