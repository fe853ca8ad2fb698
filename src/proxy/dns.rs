//! The DNS guard: what the application asks of its resolvers passes through here, so that a forged answer never leads
//! to a wrong address, and names that are dialled for the application have an address to dial.

mod addresses;
mod answer;
mod judge;
mod serve;
mod upstream;
mod wire;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use domain::base::{Rtype, iana::Rcode};

pub(super) use self::{addresses::is_virtual, serve::Listeners};
use self::{
    addresses::{Addresses, Pair},
    judge::Families,
    upstream::Resolvers,
    wire::Query,
};
use crate::{
    brief::Brief,
    identity::DnsName,
    refusal::{Refusal, TimeoutDetail},
};

/// Addresses of one name that are dialled.
const MOST_ADDRESSES: usize = 8;
/// Domains that a name is completed with, as many as the system's own look-up takes (resolv.conf(5)).
const MOST_SEARCHED: usize = 6;
/// How long a look-up may take.
const LOOK_UP: Duration = Duration::from_secs(5);

/// What the guard knows: the names that are dialled for the application, each with an address of its own.
#[derive(Debug)]
pub(super) struct Guard {
    addresses: Mutex<Addresses>,
    resolvers: Resolvers,
    /// What `resolv.conf` completes names with.
    search: Vec<DnsName>,
    families: Families,
    /// Whether the pod's own addresses are on loopback: then there is no other network.
    loopback: bool,
    since: Instant,
}

impl Guard {
    /// Begins without names, in a pod with the addresses `own`, these resolvers, and names that are completed with
    /// `search`.
    pub(super) fn new(resolvers: &[SocketAddr], search: &[DnsName], own: &[IpAddr]) -> Self {
        Self {
            addresses: Mutex::default(),
            resolvers: Resolvers::new(resolvers),
            search: search.iter().take(MOST_SEARCHED).cloned().collect(),
            families: Families::of(own),
            loopback: own.iter().any(IpAddr::is_loopback),
            since: Instant::now(),
        }
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

    /// The guard's own addresses of `name`, where it is one that is dialled for the application.
    fn pair(&self, name: &DnsName) -> Option<Pair> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).of(name)
    }

    /// The addresses of `name`, as the pod's resolvers tell them, IPv4 first; those that can only be this pod itself or
    /// nobody are no addresses.
    pub(super) async fn look_up(&self, name: &DnsName) -> Result<Vec<IpAddr>, Refusal> {
        let Families { v4, v6 } = self.families;
        let found = async { tokio::join!(self.resolve(name, Rtype::A, v4), self.resolve(name, Rtype::AAAA, v6)) };
        let Ok((v4, v6)) = tokio::time::timeout(LOOK_UP, found).await else {
            return Err(Refusal::Timeout(TimeoutDetail::Connect));
        };
        let told = [v4, v6].concat();
        let found: Vec<IpAddr> =
            told.iter().copied().filter(|address| self.is_elsewhere(*address)).take(MOST_ADDRESSES).collect();
        match (found.is_empty(), told.is_empty()) {
            (false, _) => Ok(found),
            (true, false) => Err(Refusal::DnsMismatch),
            (true, true) => Err(Refusal::DialFailed),
        }
    }

    /// Addresses of a host of our own, the controller, by the name that this program was told: completed as `resolv.conf`
    /// says, else as it is. The system's own look-up would ask from ports that the application may get next, and conntrack
    /// would take the application's question for ours; it remains for what no resolver knows.
    pub(super) async fn find(&self, host: &str) -> Vec<IpAddr> {
        if let Ok(address) = host.parse() {
            return vec![address];
        }
        let completed = self.search.iter().map(|domain| format!("{host}.{domain}"));
        for name in completed.chain([host.to_owned()]).filter_map(|name| DnsName::parse(&name).ok()) {
            if let Ok(found) = self.look_up(&name).await {
                return found;
            }
        }
        let found = tokio::net::lookup_host((host, 0)).await;
        found.map(|found| found.map(|address| address.ip()).take(MOST_ADDRESSES).collect()).unwrap_or_default()
    }

    async fn resolve(&self, name: &DnsName, kind: Rtype, wanted: bool) -> Vec<IpAddr> {
        let query = if wanted { Query::of(name, kind) } else { None };
        let Some(query) = query else { return vec![] };
        let answer = self.resolvers.ask(&query).await.filter(|answer| answer.rcode() == Some(Rcode::NOERROR));
        let told = answer.and_then(|answer| answer.addresses()).unwrap_or_default();
        let fits = |address: &IpAddr| address.is_ipv4() == (kind == Rtype::A);
        told.into_iter().map(|told| told.address).filter(fits).take(MOST_ADDRESSES).collect()
    }

    fn is_elsewhere(&self, address: IpAddr) -> bool {
        let only_here = address.is_loopback() && !self.loopback;
        !(only_here || is_virtual(address) || address.is_unspecified() || address.is_multicast())
    }
}

#[cfg(test)]
mod tests;
