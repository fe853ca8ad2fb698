//! Every open connection, so that a new generation can end exactly those that it no longer admits.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::oneshot;

use super::routes::Table;
use crate::{
    brief::{Brief, Direction, Mode},
    identity::{Identity, SpiffeId},
    refusal::{Refusal, ServerDetail},
};

/// What an open connection rests on.
#[derive(Clone, Debug)]
pub(super) enum Basis {
    /// A verified caller of one of our `MutualTls` ports.
    Caller {
        /// Who it is.
        identity: Identity,
        /// The port it dialled.
        port: u16,
    },
    /// Anybody, on a port that asks for no identity.
    Anybody {
        /// The port dialled.
        port: u16,
        /// The port's mode then.
        mode: Mode,
    },
    /// A declared server that our application dialled.
    Server {
        /// Where.
        address: SocketAddr,
        /// Who answered, or is declared to.
        server: SpiffeId,
        /// The port's mode then.
        mode: Mode,
    },
    /// An undeclared destination that our application may call as it is.
    Egress {
        /// Where; `resolver` ones need no permission.
        address: SocketAddr,
        /// Whether it is DNS to one of the pod's resolvers, which is always allowed.
        resolver: bool,
    },
}

impl Basis {
    const fn direction(&self) -> Direction {
        match self {
            Self::Caller { .. } | Self::Anybody { .. } => Direction::Inbound,
            Self::Server { .. } | Self::Egress { .. } => Direction::Outbound,
        }
    }
}

/// Whether `basis` still holds under `brief` and `routes`.
///
/// An address that left the table is no reason to cut: pods end gracefully, and the callee's own proxy cuts where
/// trust was withdrawn.
pub(super) fn still_admitted(basis: &Basis, brief: &Brief, routes: &Table) -> Result<(), Refusal> {
    brief.stands()?;
    match basis {
        Basis::Caller { identity, port } => match brief.admit(identity, *port)?.mode {
            Mode::MutualTls => Ok(()),
            Mode::ServerTls | Mode::Plaintext => Err(Refusal::PortNotAllowed),
        },
        Basis::Anybody { port, mode } => {
            if brief.port(*port)?.mode == *mode {
                Ok(())
            } else {
                Err(Refusal::PortNotAllowed)
            }
        }
        Basis::Server { address, server, mode } => match routes.at(address.ip()) {
            None => Ok(()),
            Some(route) if route.server != *server => Err(Refusal::WrongServer(ServerDetail::Uri)),
            Some(route) if route.ports.get(&address.port()) != Some(mode) => Err(Refusal::PortNotAllowed),
            Some(_) => Ok(()),
        },
        Basis::Egress { address, resolver } => {
            if *resolver || brief.may_leave(address.ip(), address.port()) {
                Ok(())
            } else {
                Err(Refusal::DestinationNotDeclared)
            }
        }
    }
}

#[derive(Debug)]
struct Open {
    basis: Basis,
    /// Taken when the connection is ended.
    kill: Option<oneshot::Sender<Refusal>>,
}

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Registry {
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
}

/// A connection's place in the registry, left when dropped.
#[derive(Debug)]
pub(super) struct Place {
    registry: Arc<Registry>,
    id: u64,
    /// Says why the connection must end.
    pub(super) killed: oneshot::Receiver<Refusal>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Registry {
    /// Takes a connection in. Whoever calls compares the generation afterwards.
    pub(super) fn enter(self: &Arc<Self>, basis: Basis) -> Place {
        let (kill, killed) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Open { basis, kill: Some(kill) };
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, open);
        Place { registry: self.clone(), id, killed }
    }

    /// Ends exactly the connections that `brief` and `routes` no longer admit; answers how many.
    pub(super) fn rejudge(&self, brief: &Brief, routes: &Table) -> usize {
        self.end(|basis| still_admitted(basis, brief, routes).err())
    }

    /// Ends every connection.
    pub(super) fn end_all(&self, reason: Refusal) -> usize {
        self.end(|_| Some(reason))
    }

    fn end(&self, reason: impl Fn(&Basis) -> Option<Refusal>) -> usize {
        let mut ended = 0;
        for open in self.open.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            let Some(reason) = reason(&open.basis) else { continue };
            // The receiver is gone where the connection just ended by itself.
            if open.kill.take().is_some_and(|kill| kill.send(reason).is_ok()) {
                ended += 1;
            }
        }
        ended
    }

    /// How many are open, inbound and outbound.
    pub(super) fn count(&self) -> [usize; 2] {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let inbound = open.values().filter(|open| open.basis.direction() == Direction::Inbound).count();
        [inbound, open.len() - inbound]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use jiff::Timestamp;

    use super::*;
    use crate::{
        brief::{
            Allow, Cursor, Egress, EgressNetwork, OnPeerExpiry, Port, Route, RouteCursor, RouteDelta, Standing, VERSION,
        },
        refusal::ReadyDetail,
    };

    fn id(server: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://contoso.example/ns/sip/server/{server}")).unwrap()
    }

    fn caller(server: &str, port: u16) -> Basis {
        let identity = Identity {
            id: id(server),
            dns_names: BTreeSet::new(),
            pod_uid: None,
            serial: vec![],
            issuer: None,
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::UNIX_EPOCH,
        };
        Basis::Caller { identity, port }
    }

    fn called(address: &str, mode: Mode) -> Basis {
        Basis::Server { address: address.parse().unwrap(), server: id("callee"), mode }
    }

    fn egress(address: &str, resolver: bool) -> Basis {
        Basis::Egress { address: address.parse().unwrap(), resolver }
    }

    fn brief() -> Brief {
        let port = |port, mode, servers| Port {
            name: format!("port-{port}"),
            port,
            target_port: port,
            mode,
            allow: Allow { all_declared: false, servers },
        };
        Brief {
            version: VERSION,
            cursor: Cursor::default(),
            identity: id("own"),
            standing: Standing::Active,
            names: vec![],
            lifetime_seconds: 3600,
            issuer: String::new(),
            renew_within_seconds: 0,
            on_peer_expiry: OnPeerExpiry::default(),
            ports: vec![port(1, Mode::MutualTls, vec![id("friend")]), port(2, Mode::ServerTls, vec![])],
            egress: Egress {
                unrestricted: false,
                networks: vec![EgressNetwork { cidr: "192.0.2.0/24".parse().unwrap(), ports: vec![443] }],
            },
            scopes: vec![],
            drain_seconds: 30,
        }
    }

    fn table() -> Arc<Table> {
        let route = |address: &str, server| Route {
            address: address.parse().unwrap(),
            server: id(server),
            pod: None,
            ports: BTreeMap::from([(5, Mode::MutualTls)]),
        };
        let routes = super::super::routes::Routes::default();
        let put = vec![route("10.0.0.1", "callee"), route("10.0.0.2", "other")];
        let cursor = RouteCursor { epoch: 1, version: 1 };
        routes.apply(RouteDelta { cursor, reset: true, on_demand: false, put, remove: vec![] });
        routes.table()
    }

    #[test]
    fn each_basis_holds_exactly_while_brief_and_routes_say_so() {
        let (brief, table) = (brief(), table());
        let judge = |basis: &Basis| still_admitted(basis, &brief, &table);
        for (basis, expected) in [
            (caller("friend", 1), Ok(())),
            (caller("stranger", 1), Err(Refusal::NotInTopology)),
            (caller("friend", 9), Err(Refusal::PortNotAllowed)),
            (caller("friend", 2), Err(Refusal::NotInTopology)),
            (Basis::Anybody { port: 2, mode: Mode::ServerTls }, Ok(())),
            (Basis::Anybody { port: 2, mode: Mode::Plaintext }, Err(Refusal::PortNotAllowed)),
            (Basis::Anybody { port: 1, mode: Mode::ServerTls }, Err(Refusal::PortNotAllowed)),
            (called("10.0.0.1:5", Mode::MutualTls), Ok(())),
            (called("10.0.0.1:5", Mode::Plaintext), Err(Refusal::PortNotAllowed)),
            (called("10.0.0.1:6", Mode::MutualTls), Err(Refusal::PortNotAllowed)),
            (called("10.0.0.2:5", Mode::MutualTls), Err(Refusal::WrongServer(ServerDetail::Uri))),
            (called("10.0.0.3:5", Mode::MutualTls), Ok(())),
            (egress("192.0.2.7:443", false), Ok(())),
            (egress("192.0.2.7:80", false), Err(Refusal::DestinationNotDeclared)),
            (egress("10.96.0.10:53", true), Ok(())),
        ] {
            assert_eq!(judge(&basis), expected, "{basis:?}");
        }
    }

    #[test]
    fn nothing_holds_for_a_withdrawn_server() {
        let brief = Brief { standing: Standing::Withdrawn, ..brief() };
        for basis in [caller("friend", 1), called("10.0.0.1:5", Mode::MutualTls), egress("192.0.2.7:443", false)] {
            let expected = Err(Refusal::NotReady(ReadyDetail::Withdrawn));
            assert_eq!(still_admitted(&basis, &brief, &table()), expected);
        }
    }

    #[test]
    fn a_rejudgement_ends_exactly_the_connections_that_no_longer_hold() {
        let registry = Arc::new(Registry::default());
        let mut stays = registry.enter(caller("friend", 1));
        let mut ends = registry.enter(caller("stranger", 1));
        assert_eq!(registry.count(), [2, 0]);
        assert_eq!(registry.rejudge(&brief(), &table()), 1);
        assert_eq!(ends.killed.try_recv(), Ok(Refusal::NotInTopology));
        assert!(stays.killed.try_recv().is_err());
        assert_eq!(registry.rejudge(&brief(), &table()), 0, "ended once");
        drop((stays, ends));
        assert_eq!(registry.count(), [0, 0]);
    }
}
