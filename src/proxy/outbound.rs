//! From our application to the network: find who is declared at the address, and let nobody else answer.

use std::{net::SocketAddr, sync::Arc};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use super::{
    accept::Arrival,
    access::Record,
    basis::{Basis, Proof, still_admitted},
    dns,
    generation::Generation,
    limits::Limits,
    metrics::mode_word,
    muxes::{self, Call},
    named,
    registry::Place,
    relay::{self, Joined, Network},
    shards::Host,
    shared::Shared,
    sockets,
    tls::{self, Made, Secured},
};
use crate::{
    brief::{Direction, Mode, Route},
    refusal::{AlertDetail, Refusal, ServerDetail},
    telemetry,
};

/// Serves one connection of our application to its end.
pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, arrival: Box<Arrival<()>>) {
    let Arrival { from, pending: (), place, limits, host } = *arrival;
    let mut record = Record::begin(Direction::Outbound, from);
    // What it takes to begin is much, and not kept as long as the connection lives.
    let outcome = match Box::pin(establish(&shared, stream, (host, limits), &mut record)).await {
        Ok(joined) => relay::carry(joined, &mut record).await,
        Err(refusal) => Err(refusal),
    };
    named::tell(&shared, &record, outcome);
    record.end(outcome, &shared.metrics, &shared.refusals);
    drop(place);
}

async fn establish(
    shared: &Arc<Shared>,
    application: TcpStream,
    (host, limits): (Host, Arc<Limits>),
    record: &mut Record,
) -> Result<Box<Joined>, Refusal> {
    let destination = shared.place.intercepted.destination(&application)?;
    record.destination = Some(destination);
    record.peer = destination.ip().to_string();
    shared.not_ourselves(destination)?;
    let generation = shared.generation()?;
    if dns::is_virtual(destination.ip()) {
        return named::call(shared, &generation, application, destination, record).await;
    }
    let Some(route) = shared.routes.find(destination.ip()).await else {
        return egress(shared, &generation, application, destination, record).await;
    };
    record.peer = route.server.to_string();
    let mode = declared_mode(&route, destination.port())?;
    record.mode = mode_word(mode);
    if mode == Mode::MutualTls {
        generation.brief().stands()?;
        let call =
            Call { shared, generation: &generation, address: destination, route: &route, host: &host, limits: &limits };
        let (network, place) = called(&call, record).await?;
        shared.metrics.connected(Direction::Outbound, record.mode);
        return Ok(Box::new(Joined { application: application.into(), network, place }));
    }
    let Route { server, pod, .. } = route;
    let basis = Basis::Server { address: destination, server, mode, pod, proof: None };
    still_admitted(&basis, &generation.judge, &shared.routes.table(), telemetry::now())?;
    splice(shared, &generation, application, destination, basis, record).await
}

/// A connection to a declared server: a stream on one with its pod, or its own.
async fn called(call: &Call<'_>, record: &mut Record) -> Result<(Network, Place), Refusal> {
    let &Call { shared, generation, address, route, .. } = call;
    // Behind a Service's address each connection finds a pod anew.
    if let Some(pod) = route.pod.as_ref().filter(|_| route.sidecar)
        && let Some(joined) = call.share(muxes::key(address, route.server.clone(), pod.clone()), record).await?
    {
        return Ok(joined);
    }
    let (made, place) = mutual(shared, generation, address, route, false, record).await?;
    Ok((Network::Secured(made.stream()?), place))
}

fn declared_mode(route: &Route, port: u16) -> Result<Mode, Refusal> {
    route.ports.get(&port).copied().ok_or(Refusal::PortNotAllowed)
}

/// What is not declared leaves as it is, where the brief allows that.
async fn egress(
    shared: &Shared,
    generation: &Arc<Generation>,
    application: TcpStream,
    destination: SocketAddr,
    record: &mut Record,
) -> Result<Box<Joined>, Refusal> {
    let basis = Basis::Egress { address: destination };
    still_admitted(&basis, &generation.judge, &shared.routes.table(), telemetry::now())?;
    record.mode = "egress";
    splice(shared, generation, application, destination, basis, record).await
}

async fn splice(
    shared: &Shared,
    generation: &Arc<Generation>,
    application: TcpStream,
    destination: SocketAddr,
    basis: Basis,
    record: &Record,
) -> Result<Box<Joined>, Refusal> {
    let network = sockets::dial(destination, true).await?;
    pass(shared, generation, (application, network), basis, record)
}

/// Joins what is called as it is.
pub(super) fn pass(
    shared: &Shared,
    generation: &Arc<Generation>,
    (application, network): (TcpStream, TcpStream),
    basis: Basis,
    record: &Record,
) -> Result<Box<Joined>, Refusal> {
    let place = register(shared, generation, basis, |_| Ok(()))?;
    shared.metrics.connected(Direction::Outbound, record.mode);
    Ok(Box::new(Joined { application: application.into(), network: Network::Plain(network), place }))
}

/// Dials the address that the application dialled; the certificate must name the declared server. For `many`, where
/// the peer knows how.
pub(super) async fn mutual(
    shared: &Shared,
    generation: &Arc<Generation>,
    destination: SocketAddr,
    Route { server, pod, sidecar, .. }: &Route,
    many: bool,
    record: &mut Record,
) -> Result<(Made, Place), Refusal> {
    let config = generation.client(server)?;
    let config = match (sidecar, many) {
        (false, _) => tls::without_protocol(&config),
        (true, true) => tls::multiplexed(&config),
        (true, false) => config,
    };
    let nameless = Refusal::WrongServer(ServerDetail::DnsName);
    let name =
        ServerName::try_from(server.topology_name().ok_or(nameless)?.as_str().to_owned()).map_err(|_| nameless)?;
    let network = sockets::dial(destination, true).await?;
    let secured = secure(shared, network, (name, config), record).await?;
    let verdict = secured.verdict.ok_or(Refusal::NoCertificate)?;
    let proof = Some(Proof::new(verdict, generation.own_until, telemetry::now()));
    let basis =
        Basis::Server { address: destination, server: server.clone(), mode: Mode::MutualTls, pod: pod.clone(), proof };
    let place = register(shared, generation, basis, |current| {
        current.judge.callee(&secured.chain, server, telemetry::now()).map(drop).map_err(|refused| refused.reason)
    })?;
    Ok((secured.made, place))
}

/// The handshake with whoever answers, and its verdict. Nothing of the application's goes further before that.
pub(super) async fn secure(
    shared: &Shared,
    network: TcpStream,
    (name, config): (ServerName<'static>, Arc<ClientConfig>),
    record: &mut Record,
) -> Result<Secured, Refusal> {
    let secured = tls::connect(network, name, config).await.map_err(|refused| {
        record.presented = refused.proven.map(|proven| proven.to_string());
        match refused.reason {
            // It hung up on us in the middle of the handshake.
            Refusal::Truncated => Refusal::PeerRefused(AlertDetail::Other),
            other => other,
        }
    })?;
    shared.metrics.handshake(Direction::Outbound, record.age());
    Ok(secured)
}

/// Registers a connection; routes may have changed since they were looked up, as the generation may have.
pub(super) fn register(
    shared: &Shared,
    generation: &Arc<Generation>,
    basis: Basis,
    again: impl FnOnce(&Generation) -> Result<(), Refusal>,
) -> Result<Place, Refusal> {
    let admitted = basis.clone();
    let holds =
        |current: &Generation| still_admitted(&admitted, &current.judge, &shared.routes.table(), telemetry::now());
    let place = shared.register(basis, generation, |current| {
        again(current)?;
        holds(current)
    })?;
    holds(generation)?;
    Ok(place)
}
