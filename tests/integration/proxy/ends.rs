//! The wire between two sidecars, cut by somebody in the middle after every so many bytes: an end, a reset, an alert that
//! nobody sealed. What either application then sees is a reset, never the end of a stream that was not whole.

use std::{collections::BTreeSet, io::ErrorKind, net::SocketAddr};

use entente::brief::Mode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use super::harness::{Plan, Seen, Sidecar, address, control, read_out};
use crate::support::eventually;

const SEED: u64 = 0x00E0_77E5;
/// What the server says first and last, and what its caller says between.
const SAID: [&[u8]; 3] = [b"220 at your service\r\n", b"bye", b"a word"];
/// Cuts of each direction and each kind, beside those at the edges of records; all there are where there is time.
const MORE: usize = 12;
/// A fatal alert (RFC 8446 §6.2, handshake_failure) as a record that nothing protects.
const ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    End,
    Reset,
    Alert,
}

/// Where and how a connection is cut.
type Cut = (Way, Kind, usize);

/// What a wire carried each way, to the server first, and whether it was cut.
struct Carried {
    bytes: [Vec<u8>; 2],
    cut: bool,
}

/// A wire to a server that is cut as it is told; it tells of each connection when that has ended.
struct Wire {
    address: SocketAddr,
    cuts: mpsc::UnboundedSender<Option<Cut>>,
    carried: mpsc::UnboundedReceiver<Carried>,
}

impl Wire {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((address(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, mut next) = mpsc::unbounded_channel();
        let (tell, carried) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(server).await.unwrap();
                tell.send(between(near, far, next.recv().await.unwrap()).await).unwrap();
            }
        });
        Self { address, cuts, carried }
    }
}

/// Carries both ways until both have ended; a reset on either side is one on both.
async fn between(near: TcpStream, far: TcpStream, cut: Option<Cut>) -> Carried {
    let mut carried = Carried { bytes: [vec![], vec![]], cut: false };
    let [there, back] = &mut carried.bytes;
    let at = |way| cut.filter(|cut| cut.0 == way).map(|(_, kind, after)| (kind, after));
    for stream in [&near, &far] {
        // What is dropped before its end is a reset.
        stream.set_zero_linger().unwrap();
    }
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let _ = tokio::try_join!(
        pass((near_read, far_write), at(Way::ToServer), there),
        pass((far_read, near_write), at(Way::ToClient), back)
    );
    carried.cut = cut.is_some_and(|(way, _, after)| carried.bytes[way as usize].len() > after);
    carried
}

/// Passes bytes on until their end, or until the cut: behind so many of them, when one more comes.
async fn pass(
    (mut from, mut to): (OwnedReadHalf, OwnedWriteHalf),
    cut: Option<(Kind, usize)>,
    came: &mut Vec<u8>,
) -> std::io::Result<()> {
    loop {
        let before = came.len();
        if from.read_buf(came).await? == 0 {
            return to.shutdown().await;
        }
        let Some((kind, after)) = cut.filter(|(_, after)| came.len() > *after) else {
            to.write_all(&came[before..]).await?;
            continue;
        };
        to.write_all(&came[before..after]).await?;
        match kind {
            Kind::Reset => return Err(ErrorKind::ConnectionReset.into()),
            Kind::Alert => to.write_all(&ALERT).await?,
            Kind::End => {}
        }
        to.shutdown().await?;
        // The other side may still say something, until it ends too.
        return tokio::io::copy(&mut from, &mut tokio::io::sink()).await.map(drop);
    }
}

/// A server that speaks first, reads to the end, and speaks once more; it tells what came and how that ended.
async fn server(told: mpsc::UnboundedSender<(Vec<u8>, Seen)>) -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                // A reset is told once: where a write meets it, a read no longer does.
                let (came, seen) = match stream.write_all(SAID[0]).await {
                    Ok(()) => read_out(&mut stream).await,
                    Err(_) => (vec![], Seen::Reset),
                };
                if seen == Seen::End {
                    let _ = stream.write_all(SAID[1]).await;
                    let _ = stream.shutdown().await;
                }
                told.send((came, seen)).unwrap();
            });
        }
    });
    address
}

/// A call to its end: what came, and how it ended.
async fn call(client: &Sidecar) -> (Vec<u8>, Seen) {
    let mut stream = client.open(0).await;
    let spoken = async {
        stream.write_all(SAID[2]).await?;
        stream.shutdown().await
    };
    match spoken.await {
        Ok(()) => read_out(&mut stream).await,
        Err(_) => (vec![], Seen::Reset),
    }
}

/// Where to cut what was carried: at the edges of its records, and anywhere else.
fn places(carried: &[u8], seed: &mut u64) -> BTreeSet<usize> {
    if std::env::var_os("ENTENTE_LONG").is_some() {
        return (0..carried.len()).collect();
    }
    let (mut places, mut start) = (BTreeSet::new(), 0);
    while let Some(header) = carried[start..].first_chunk::<5>() {
        let end = start + 5 + usize::from(u16::from_be_bytes([header[3], header[4]]));
        places.extend([start, start + 1, start + 5, end - 1]);
        start = end;
    }
    for _ in 0..MORE {
        // Knuth's linear congruential generator.
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        places.insert((*seed >> 33) as usize % carried.len());
    }
    places
}

async fn idle(sidecars: [(&Sidecar, &str); 2]) {
    for (sidecar, direction) in sidecars {
        let series = format!("entente_open_connections{{direction=\"{direction}\"}}");
        eventually(&series, || async { (sidecar.metric(&series).await == 0.0).then_some(()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_and_however_the_wire_is_cut_the_application_sees_a_reset_and_the_cut_is_counted_once() {
    let control = control().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let application = server(tell).await;
    let server = Plan::new(&control, "server", application.ip()).port(Mode::MutualTls, application).start().await;
    let mut wire = Wire::to(server.inbound[0]).await;
    let client = Plan::new(&control, "client", address());
    let client = client.calls(wire.address, &control.domain.id("server"), Mode::MutualTls).start().await;
    let whole = [SAID[0], SAID[1]].concat();

    wire.cuts.send(None).unwrap();
    assert_eq!(call(&client).await, (whole.clone(), Seen::End));
    assert_eq!(told.recv().await.unwrap(), (SAID[2].to_vec(), Seen::End));
    let Carried { bytes, .. } = wire.carried.recv().await.unwrap();
    assert!(server.reasons().await.is_empty() && client.reasons().await.is_empty());

    let (mut seed, mut counted) = (SEED, [0, 0]);
    for way in [Way::ToServer, Way::ToClient] {
        let (mut cuts, mut uncut) = (0, 0);
        for kind in [Kind::End, Kind::Reset, Kind::Alert] {
            for after in places(&bytes[way as usize], &mut seed) {
                wire.cuts.send(Some((way, kind, after))).unwrap();
                let (came, seen) = call(&client).await;
                let what = format!("{way:?} {kind:?} after {after}, seed {SEED:#x}: {came:?}");
                // Signatures differ in length: at the very end there may be nothing left to cut.
                let cut = wire.carried.recv().await.unwrap().cut;
                cuts += u32::from(cut);
                uncut += usize::from(!cut);
                assert_eq!(seen, if cut { Seen::Reset } else { Seen::End }, "{what}");
                assert!(whole.starts_with(&came) && (cut || came == whole), "{what}");
            }
        }
        idle([(&server, "inbound"), (&client, "outbound")]).await;
        let reasons = [server.reasons().await, client.reasons().await];
        eprintln!("{way:?}: {cuts} cuts; {reasons:?}");
        let before = std::mem::replace(&mut counted, reasons.each_ref().map(|all| all.values().sum::<u32>()));
        assert_eq!(counted[way as usize] - before[way as usize], cuts, "where it was cut, {way:?}");
        assert!(reasons.iter().all(|all| !all.contains_key("Timeout")), "nobody waited for what was not to come");
        let mut ended = 0;
        while let Ok((came, seen)) = told.try_recv() {
            assert!(SAID[2].starts_with(&came) && (seen == Seen::Reset || came == SAID[2]), "{came:?} {seen:?}");
            ended += usize::from(seen == Seen::End);
        }
        assert!(way == Way::ToClient || ended == uncut, "{ended} calls ended in order, {uncut} were not cut");
    }
}
