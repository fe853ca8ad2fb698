//! One short mutual handshake between the pods of open connections, so that these may go on past the end of the
//! certificates they began with: each side judges the other exactly as for a connection, and no application is dialled.

use std::{net::SocketAddr, sync::Arc};

use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    access::Record,
    basis::{Basis, Proof, still_admitted},
    registry::{Pair, Place},
    shared::Shared,
    sockets::{self, Underlying},
    tls::{self, Stream},
};
use crate::{
    brief::{ALPN_REPROVE, Direction, Mode, OnPeerExpiry},
    refusal::{AlertDetail, Refusal, ServerDetail, TimeoutDetail},
    telemetry,
};

/// What the callee says after its verdict: in TLS 1.3 the caller's handshake ends before the callee has judged.
const PROVED: u8 = 1;

/// We, who dialled `pair`'s connections, prove ourselves to the pod `uid`, and it to us. Answers for how many
/// connections that counts.
pub(super) async fn prove(shared: &Shared, uid: &str, pair: &Pair, attempt: u32) -> Result<usize, Refusal> {
    let generation = shared.generation()?;
    let targets = targets(shared, uid, pair);
    let turn = usize::try_from(attempt).unwrap_or_default() % targets.len().max(1);
    let address = *targets.get(turn).ok_or(Refusal::DestinationNotDeclared)?;
    let nameless = Refusal::WrongServer(ServerDetail::DnsName);
    let name = pair.server.topology_name().ok_or(nameless)?.as_str().to_owned();
    let name = ServerName::try_from(name).map_err(|_| nameless)?;
    let config = tls::reprove(&*generation.client(&pair.server)?);
    let network = sockets::dial(address, true).await?;
    let secured = tls::connect_stream(network, name, config).await.map_err(|refused| refused.reason)?;
    let (mut stream, verdict) = secured;
    let verdict = verdict.ok_or(Refusal::NoCertificate)?;
    if verdict.peer.pod_uid() != Some(uid) {
        // Another pod of the same server has the address now.
        return Err(Refusal::WrongServer(ServerDetail::Uri));
    }
    let now = telemetry::now();
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_REPROVE) {
        return Err(Refusal::BadAlpn);
    }
    match timeout(tls::HANDSHAKE, stream.read_u8()).await {
        Ok(Ok(PROVED)) => {}
        Ok(Ok(_)) => return Err(Refusal::PeerRefused(AlertDetail::Other)),
        Ok(Err(error)) => {
            return Err(match tls::reason(&error) {
                Refusal::Truncated => Refusal::PeerRefused(AlertDetail::Other),
                other => other,
            });
        }
        Err(_) => return Err(Refusal::Timeout(TimeoutDetail::Handshake)),
    }
    sockets::end_cleanly(stream.get_ref().0);
    let basis = Basis::Server {
        address,
        server: pair.server.clone(),
        mode: Mode::MutualTls,
        pod: Some(uid.to_owned()),
        proof: Some(Proof::new(verdict, generation.own_until, now)),
    };
    let again = basis.clone();
    let mut place = shared.register(basis, &generation, |current| {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        current.judge.callee(chain, &pair.server, telemetry::now()).map_err(|refused| refused.reason)?;
        still_admitted(&again, &current.judge, &shared.routes.table(), telemetry::now())
    })?;
    moved(shared, &mut place)
}

/// Where the pod `uid` can be asked: its own addresses, first at the ports that were dialled, then at its others; and
/// the addresses dialled, where they were its own. Never a Service's, behind which another pod may answer.
fn targets(shared: &Shared, uid: &str, pair: &Pair) -> Vec<SocketAddr> {
    let table = shared.routes.table();
    let own = table.of_pod(uid).filter(|route| route.server == pair.server);
    let open = own.flat_map(|route| {
        let ports = route.ports.iter().filter(|(_, mode)| **mode == Mode::MutualTls);
        ports.map(|(port, _)| SocketAddr::new(route.address.to_canonical(), *port))
    });
    let was_dialled = |address: &SocketAddr| pair.dialled.iter().any(|(dialled, _)| dialled.port() == address.port());
    let (mut first, mut others): (Vec<_>, Vec<_>) = open.partition(was_dialled);
    first.sort();
    others.sort();
    first.append(&mut others);
    if first.is_empty() {
        first.extend(pair.dialled.iter().filter(|(_, own)| *own).map(|(address, _)| *address));
    }
    first
}

/// The caller at `place` was judged like that of any connection: its deadlines move, and it is told.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    mut stream: Stream,
    mut place: Place,
    record: &mut Record,
) -> Result<(), Refusal> {
    record.mode = "re-proof";
    let proved = match shared.in_force().map(|generation| generation.brief().on_peer_expiry) {
        Some(OnPeerExpiry::Reprove | OnPeerExpiry::Keep) => moved(shared, &mut place),
        // The rule says that the caller's certificate ends its connections.
        Some(OnPeerExpiry::Cut) | None => Err(Refusal::BadAlpn),
    };
    shared.metrics.reproof(Direction::Inbound, proved.is_ok());
    // It was never a connection; what follows is the goodbye.
    drop(place);
    proved?;
    let said = async {
        match &mut stream {
            Stream::Own(tunnel) => tunnel.say_last(&[PROVED]).await,
            Stream::Rustls(stream) => {
                stream.write_u8(PROVED).await?;
                stream.shutdown().await?;
                stream.read(&mut [0]).await.map(drop)
            }
        }
    };
    // Where it did not arrive the caller comes again.
    let _ = timeout(tls::HANDSHAKE, said).await;
    sockets::end_cleanly(stream.socket());
    Ok(())
}

fn moved(shared: &Shared, place: &mut Place) -> Result<usize, Refusal> {
    match shared.registry.reproved(place) {
        Some(connections) => Ok(connections),
        None => Err(place.killed.try_recv().unwrap_or(Refusal::Drained)),
    }
}
