//! From our application to a name: a partner's edge, which must prove itself, or a host that may be called as it is. The
//! application dialled an address that the guard gave that name; where the name is, we look up ourselves.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};

use super::{
    access::Record,
    basis::{Basis, Proof},
    generation::Generation,
    metrics::mode_word,
    outbound,
    registry::Place,
    relay::{Joined, Network},
    shared::Shared,
    sockets,
    tls::{self, Stream},
};
use crate::{
    brief::{Direction, Mode, Named, PartnerLink},
    identity::DnsName,
    refusal::{HandshakeDetail, Refusal, ServerDetail, TimeoutDetail},
    telemetry,
};

/// Addresses of one name that are tried, one after the other.
const MAX_ADDRESSES: usize = 4;
/// How long looking up and dialling may take together.
const DEADLINE: Duration = Duration::from_secs(12);

/// Joins a connection of our application to `destination`, an address of the guard's.
pub(super) async fn call(
    shared: &Shared,
    generation: &Arc<Generation>,
    application: TcpStream,
    destination: SocketAddr,
    record: &mut Record,
) -> Result<Box<Joined>, Refusal> {
    let host = shared.guard.named(destination.ip()).ok_or(Refusal::DestinationNotDeclared)?;
    record.peer = host.to_string();
    match generation.brief().named(&host, destination.port())? {
        Named::Host => {
            record.mode = "egress";
            let network = reach(shared, &host, destination.port()).await?;
            let address = network.peer_addr().map_err(|_| Refusal::DialFailed)?;
            let basis = Basis::Host { host, address };
            outbound::pass(shared, generation, (application, network), basis, record)
        }
        Named::Edge(link) => {
            record.mode = mode_word(Mode::MutualTls);
            record.peer = format!("partner/{}", link.name);
            record.partner = Some(Called { name: link.name.clone(), met: false });
            let (stream, place) = secured(shared, generation, (link, host, destination.port()), record).await?;
            shared.metrics.connected(Direction::Outbound, record.mode);
            record.partner = Some(Called { name: link.name.clone(), met: true });
            Ok(Box::new(Joined { application: application.into(), network: Network::Secured(stream), place }))
        }
    }
}

/// A partner that was called.
#[derive(Debug)]
pub(super) struct Called {
    name: String,
    /// Whether it was verified; what comes later is no news of whether it can be reached.
    met: bool,
}

/// Tells how calling a partner ended, where that says something of the partner beside that it was verified.
pub(super) fn tell(shared: &Shared, record: &Record, outcome: Result<(), Refusal>) {
    let Some(Called { name, met }) = &record.partner else { return };
    let failed = match outcome {
        // In TLS 1.3 a caller is let in or not after it has finished its own handshake.
        Err(reason @ Refusal::PeerRefused(_)) => Some(reason),
        // We did not call: that tells nothing of the partner.
        Err(Refusal::Limit(_) | Refusal::PartnerSuspended | Refusal::PartnerExpired) => None,
        Err(reason) if !met => Some(reason),
        Ok(()) | Err(_) => None,
    };
    if failed.is_some() {
        shared.contacts.met(name, failed, telemetry::now());
    }
}

/// Dials an edge of a partner, which must prove itself in its own scope, by the name that was dialled.
async fn secured(
    shared: &Shared,
    generation: &Arc<Generation>,
    (link, host, port): (&PartnerLink, DnsName, u16),
    record: &mut Record,
) -> Result<(Stream, Place), Refusal> {
    let judge = &generation.judge;
    let partner = link.name.as_str();
    judge.partners.get(partner).ok_or(Refusal::DestinationNotDeclared)?.stands()?;
    let shown = match link.presents {
        true => tls::presented(&shared.place.mounted, partner)?,
        false => generation.leaf.certified.clone(),
    };
    let config = tls::edge(judge, (partner, &host), link.tls12, shown)
        .map_err(|_| Refusal::HandshakeFailed(HandshakeDetail::Malformed))?;
    let nameless = Refusal::WrongServer(ServerDetail::DnsName);
    let name = ServerName::try_from(host.as_str().to_owned()).map_err(|_| nameless)?;
    let seat = shared.seat(generation, partner)?;
    let network = reach(shared, &host, port).await?;
    let secured = outbound::secure(shared, network, (name, config), record).await?;
    let proven = secured.verdict.ok_or(Refusal::NoCertificate)?;
    record.proven(&proven.peer);
    let chain = secured.chain.as_slice();
    let shown = judge.shown(&proven.peer, chain, secured.tls12).ok_or(Refusal::NameOutOfScope)?;
    let proof = Proof::new(proven, generation.own_until, telemetry::now());
    let basis = Basis::Edge { partner: partner.to_owned(), host: host.clone(), port, proof, shown };
    let mut place = outbound::register(shared, generation, basis, |current| {
        let judged = current.judge.edge(chain, partner, &host, telemetry::now());
        judged.map(drop).map_err(|refused| refused.reason)
    })?;
    place.seat = Some(seat);
    shared.contacts.met(partner, None, telemetry::now());
    Ok((secured.made.stream()?, place))
}

/// A connection to `port` of `host`, wherever that is; nothing is said on it yet.
async fn reach(shared: &Shared, host: &DnsName, port: u16) -> Result<TcpStream, Refusal> {
    let reaching = async {
        let mut addresses = shared.guard.look_up(host).await?;
        addresses.truncate(MAX_ADDRESSES);
        for address in &addresses {
            outside(shared, address.to_canonical()).await?;
        }
        let mut last = Refusal::DialFailed;
        for address in addresses {
            match sockets::dial(SocketAddr::new(address.to_canonical(), port), true).await {
                Ok(network) => return Ok(network),
                Err(reason) => last = reason,
            }
        }
        Err(last)
    };
    timeout(DEADLINE, reaching).await.unwrap_or(Err(Refusal::Timeout(TimeoutDetail::Connect)))
}

/// Whoever answers for a foreign name must not lead us to ourselves, to a server of ours, or to what a node offers on its
/// links (169.254.169.254 for instance). What only this pod could reach, the guard has left out.
async fn outside(shared: &Shared, address: IpAddr) -> Result<(), Refusal> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if link_local || shared.place.pod_ips.contains(&address) || shared.routes.find(address).await.is_some() {
        return Err(Refusal::DnsMismatch);
    }
    Ok(())
}
