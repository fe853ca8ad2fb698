//! From the network to our application: accept, judge, and only then dial the application.

use std::{net::SocketAddr, sync::Arc};

use rustls_pki_types::CertificateDer;
use tokio::{net::TcpStream, time::timeout};

use super::{
    accept::Arrival,
    access::Record,
    basis::{Basis, Proof, still_admitted},
    generation::Generation,
    metrics::mode_word,
    muxes,
    registry::Place,
    relay::{self, Joined, Network, Parts},
    reprove,
    shared::Shared,
    sockets,
    tls::{self, Made, Secured},
};
use crate::{
    brief::{ALPN_REPROVE, Direction, Mode, Port},
    handshakes::Handshake,
    identity::Peer,
    pki::verify::Proven,
    refusal::{DestinationDetail, HandshakeDetail, LimitDetail, Refusal, TimeoutDetail},
    telemetry,
};

/// First byte of a TLS handshake record (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 0x16;

/// Serves one accepted connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, arrival: Box<Arrival<Handshake>>) {
    let Arrival { from, pending, place, limits, host } = *arrival;
    let mut record = Record::begin(Direction::Inbound, from);
    // What it takes to begin is much, and not kept as long as the connection lives.
    let joined = match Box::pin(establish(&shared, stream, pending, &mut record)).await {
        Ok(Entered::Connection(joined)) => joined,
        Ok(Entered::Many(parts, registered, destination)) => {
            return muxes::serve(&shared, (&host, limits), *parts, registered, (from, destination), place);
        }
        other => return record.end(other.map(drop), &shared.metrics, &shared.refusals),
    };
    let outcome = relay::carry(joined, &mut record).await;
    record.end(outcome, &shared.metrics, &shared.refusals);
    drop(place);
}

/// What came in.
enum Entered {
    Connection(Box<Joined>),
    /// A connection for many, dialled to an address.
    Many(Box<Parts>, Place, SocketAddr),
    /// No connection but a proof, and it is over.
    Proof,
}

/// One more connection by the handshake of the one at `last`, judged as if it had just come; `None` = it is not let in. The
/// rest is whether the application could be reached.
pub(super) async fn anew(
    shared: &Shared,
    last: &Place,
    (from, destination): (SocketAddr, SocketAddr),
) -> Option<(Result<(TcpStream, Place), Refusal>, Record)> {
    let generation = last.under.upgrade().filter(|one| shared.generation().is_ok_and(|now| Arc::ptr_eq(one, &now)))?;
    let Basis::Caller { proof, .. } = shared.registry.rests(last)? else { return None };
    generation.judge.stands(&proof, telemetry::now()).ok()?;
    let mut record = Record::begin(Direction::Inbound, from);
    record.destination = Some(destination);
    record.mode = mode_word(Mode::MutualTls);
    record.proven(&proof.original);
    let came = Came { dialled: destination.port(), chain: &[], tls12: false };
    let (place, target) = admitted(shared, &generation, came, proof).ok()?;
    let address = SocketAddr::new(destination.ip(), target);
    match reach(shared, address, place, &record).await {
        Err(refusal) if !matches!(refusal, Refusal::DialFailed | Refusal::Timeout(_)) => None,
        reached => Some((reached, record)),
    }
}

async fn establish(
    shared: &Arc<Shared>,
    stream: TcpStream,
    pending: Handshake,
    record: &mut Record,
) -> Result<Entered, Refusal> {
    let destination = shared.place.intercepted.destination(&stream)?;
    record.destination = Some(destination);
    shared.not_ourselves(destination)?;
    if !shared.place.pod_ips.contains(&destination.ip()) {
        return Err(Refusal::ForbiddenDestination(DestinationDetail::NotThisPod));
    }
    let generation = shared.generation()?;
    let port = generation.brief().port(destination.port())?;
    record.mode = mode_word(port.mode);
    if port.mode == Mode::Plaintext {
        drop(pending);
        let place = anybody(shared, &generation, port, destination.port(), None)?;
        let address = SocketAddr::new(destination.ip(), port.target_port);
        let (application, place) = reach(shared, address, place, record).await?;
        let joined = Joined { application: application.into(), network: Network::Plain(stream), place };
        return Ok(Entered::Connection(Box::new(joined)));
    }
    let (secured, place, target) = tokio::select! {
        biased;
        secured = secure(shared, stream, &generation, port, destination.port(), record) => secured?,
        () = pending.displaced() => return Err(Refusal::Limit(LimitDetail::Pending)),
    };
    drop(pending);
    if secured.protocol.as_deref() == Some(ALPN_REPROVE) {
        return reprove::answer(shared, secured.made.stream()?, place, record).await.map(|()| Entered::Proof);
    }
    let stream = match secured.made {
        Made::Stream(stream) => stream,
        Made::Mux(parts) => return Ok(Entered::Many(parts, place, destination)),
    };
    let (application, place) = reach(shared, SocketAddr::new(destination.ip(), target), place, record).await?;
    Ok(Entered::Connection(Box::new(Joined {
        application: application.into(),
        network: Network::Secured(stream),
        place,
    })))
}

/// Handshake, verdict, registration; and the local port where the application takes this caller's calls.
async fn secure(
    shared: &Shared,
    stream: TcpStream,
    generation: &Arc<Generation>,
    port: &Port,
    dialled: u16,
    record: &mut Record,
) -> Result<(Secured, Place, u16), Refusal> {
    expect_tls(&stream).await?;
    let mut secured = tls::accept(stream, generation.server(port.port)?).await.map_err(|refused| {
        if let Some(proven) = &refused.proven {
            record.proven(proven);
        }
        match refused.reason {
            // The caller went away in the middle of the handshake.
            Refusal::Truncated => Refusal::HandshakeFailed(HandshakeDetail::Malformed),
            other => other,
        }
    })?;
    shared.metrics.handshake(Direction::Inbound, record.age());
    let verdict = secured.verdict.take();
    let chain = secured.chain.as_slice();
    if let Some(proven) = &verdict {
        record.proven(&proven.peer);
    }
    let (place, target) = match (port.mode, verdict) {
        // A `MutualTls` handshake ends with a verdict.
        (Mode::MutualTls, None) => return Err(Refusal::NoCertificate),
        (Mode::MutualTls, Some(proven)) => {
            // Application protocols of ours are between servers of ours.
            if proven.peer.server().is_none() && secured.protocol.is_some() {
                return Err(Refusal::BadAlpn);
            }
            let proof = Proof::new(proven, generation.own_until, telemetry::now());
            admitted(shared, generation, Came { dialled, chain, tls12: secured.tls12 }, proof)?
        }
        (Mode::ServerTls | Mode::Plaintext, known) => {
            let known = known.map(|proven| (proven, chain));
            (anybody(shared, generation, port, dialled, known)?, port.target_port)
        }
    };
    Ok((secured, place, target))
}

/// How a caller with a certificate came.
#[derive(Clone, Copy)]
struct Came<'a> {
    /// The port that it dialled.
    dialled: u16,
    chain: &'a [CertificateDer<'static>],
    tls12: bool,
}

/// Registers a caller that the handshake let in; answers also where the application takes its calls.
fn admitted(
    shared: &Shared,
    generation: &Arc<Generation>,
    came: Came<'_>,
    proof: Proof,
) -> Result<(Place, u16), Refusal> {
    let Came { dialled, chain, tls12 } = came;
    let peer = proof.original.clone();
    let partner = partner_may(shared, generation, &peer, tls12)?;
    let admission = generation.brief().admit(&peer, dialled)?;
    let (own_port, mut target) = (admission.own_port, admission.target_port());
    let seat = partner.as_ref().map(|partner| shared.seat(generation, partner)).transpose()?;
    let shown = generation.judge.shown(&peer, chain, tls12);
    let basis = Basis::Caller { proof, port: dialled, own_port, shown };
    let again = basis.clone();
    let mut place = shared.register(basis, generation, |current| {
        let now = telemetry::now();
        let proven = current.judge.caller(chain, dialled, now, |_| Ok(())).map_err(|refused| refused.reason)?;
        still_admitted(&again, &current.judge, &shared.routes.table(), now)?;
        target = current.brief().admit(&proven.peer, dialled)?.target_port();
        Ok(())
    })?;
    place.seat = seat;
    if let Some(partner) = &partner {
        shared.contacts.met(partner, None, telemetry::now());
    }
    Ok((place, target))
}

/// What a handshake cannot see: which version of TLS a caller may speak, and whether what a partner is to be shown was
/// there. Answers the partner's name.
fn partner_may(shared: &Shared, generation: &Generation, peer: &Peer, tls12: bool) -> Result<Option<String>, Refusal> {
    let name = match peer {
        Peer::Partner(partner) => &partner.partner,
        Peer::Server(_) if tls12 => return Err(Refusal::HandshakeFailed(HandshakeDetail::Version)),
        Peer::Server(_) => return Ok(None),
    };
    if tls12 {
        generation.judge.may_speak_tls12(name)?;
    }
    if generation.brief().link(name).is_some_and(|link| link.presents) {
        tls::presented(&shared.place.mounted, name)?;
    }
    Ok(Some(name.clone()))
}

/// Registers a caller of a port that asks for no identity, and who it is where it said so.
fn anybody(
    shared: &Shared,
    generation: &Arc<Generation>,
    port: &Port,
    dialled: u16,
    known: Option<(Proven, &[CertificateDer<'_>])>,
) -> Result<Place, Refusal> {
    let (proven, chain) = known.unzip();
    let known = proven.map(|proven| Proof::new(proven, generation.own_until, telemetry::now()));
    let basis = Basis::Anybody { port: dialled, mode: port.mode, known };
    let again = basis.clone();
    shared.register(basis, generation, |current| {
        if let Some(chain) = chain {
            current.judge.known(chain, telemetry::now()).map_err(|refused| refused.reason)?;
        }
        still_admitted(&again, &current.judge, &shared.routes.table(), telemetry::now())
    })
}

/// A caller that does not speak TLS is refused at its first byte, not after a deadline.
async fn expect_tls(stream: &TcpStream) -> Result<(), Refusal> {
    let mut first = [0];
    match timeout(tls::HANDSHAKE, stream.peek(&mut first)).await {
        Err(_) => Err(Refusal::Timeout(TimeoutDetail::Handshake)),
        Ok(Ok(1)) if first[0] == HANDSHAKE_RECORD => Ok(()),
        Ok(Ok(1)) => Err(Refusal::NotTls),
        Ok(_) => Err(Refusal::HandshakeFailed(HandshakeDetail::Malformed)),
    }
}

/// Dials the application at the address that the caller dialled, never on loopback.
async fn reach(
    shared: &Shared,
    address: SocketAddr,
    mut place: Place,
    record: &Record,
) -> Result<(TcpStream, Place), Refusal> {
    let application = tokio::select! {
        biased;
        Ok(reason) = &mut place.killed => return Err(reason),
        dialled = sockets::dial(address, false) => dialled?,
    };
    shared.metrics.connected(Direction::Inbound, record.mode);
    Ok((application, place))
}
