//! The DNS guard: what the application asks of its resolvers passes through here, so that a forged answer never leads
//! to a wrong address, and names that are dialled for the application have an address to dial.

#![allow(dead_code, reason = "the listeners and the outbound side come next")]

mod addresses;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use self::addresses::Addresses;
use crate::{brief::Brief, identity::DnsName, refusal::Refusal};

#[allow(unused_imports, reason = "as above")]
pub(super) use self::addresses::is_virtual;

/// What the guard knows: the names that are dialled for the application, each with an address of its own.
#[derive(Debug)]
pub(super) struct Guard {
    addresses: Mutex<Addresses>,
    since: Instant,
}

impl Guard {
    /// Begins without names.
    pub(super) fn new() -> Self {
        Self { addresses: Mutex::default(), since: Instant::now() }
    }

    /// Gives each host of partners and of allowed egress that `brief` names an address of its own.
    pub(super) fn follow(&self, brief: &Brief) {
        let partners = brief.partners.iter().flat_map(|link| &link.edges).map(|edge| &edge.host);
        let names: BTreeSet<&DnsName> = partners.chain(brief.egress.hosts.iter().map(|host| &host.host)).collect();
        let left_out =
            self.addresses.lock().unwrap_or_else(PoisonError::into_inner).follow(&names, self.since.elapsed());
        if left_out > 0 {
            tracing::warn!(left_out, "too many names of partners and of allowed egress, some cannot be looked up");
        }
    }

    /// The name behind one of the guard's own addresses, also one that has left the brief within the hour.
    pub(super) fn named(&self, address: IpAddr) -> Option<DnsName> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).named(address).cloned()
    }

    /// The addresses of `name`, as the pod's resolvers tell them.
    #[expect(clippy::unused_async, reason = "the client of the resolvers comes with the guard's listeners")]
    pub(super) async fn look_up(&self, name: &DnsName) -> Result<Vec<IpAddr>, Refusal> {
        tracing::debug!(%name, "no resolver is asked yet");
        Err(Refusal::DialFailed)
    }
}
