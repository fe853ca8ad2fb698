//! Handshakes with whoever says anything: a stranger with bytes of no meaning, or one who does shake hands, by rustls,
//! over a wire that is not to be trusted. However it comes in pieces, a handshake ends or waits for more.

mod wire;

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, Waker},
};

use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    client::UnbufferedClientConnection,
    server::{UnbufferedServerConnection, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncWriteExt, duplex};

use self::wire::Wire;
use super::{Endpoint, FIRST, HEADER, MAX_PROTECTED, MOST, READ, Records, drive};
use crate::{
    brief::ALPN,
    proxy::{
        fuzz::{Input, pattern},
        records::{Opened, whole},
        tls::{PROVIDER, client_config, protocols, server_config, verifiers::Anyone, versions},
    },
};

/// What we use ourselves, but for the verdict: the stranger of the client's side has no certificate of ours, and any will do.
static CONFIGS: LazyLock<(Arc<ClientConfig>, Arc<ServerConfig>)> =
    LazyLock::new(|| configs().expect("the configurations are right"));

/// Shakes hands, as either side, with arbitrary bytes or over a wire that changes arbitrary bytes.
///
/// # Panics
///
/// Where a handshake ends well that was meddled with, or badly where nothing was; where it waits for what is there, takes
/// more than it may, or loses what came behind it.
pub fn handshake(input: &[u8]) {
    let mut input = Input::new(input);
    let how = input.byte();
    let (client, server) = CONFIGS.clone();
    if how.is_multiple_of(2) {
        let theirs = how.is_multiple_of(4).then(|| ClientConnection::new(client, name()).expect("a caller").into());
        let ours = UnbufferedServerConnection::new(server).expect("a callee");
        try_out(ours, Wire::new(theirs, how & 8 == 0, &mut input), FIRST);
    } else {
        let theirs = (how % 4 == 1).then(|| ServerConnection::new(server).expect("a callee").into());
        let ours = UnbufferedClientConnection::new(client, name()).expect("a caller");
        try_out(ours, Wire::new(theirs, how & 8 == 0, &mut input), MOST);
    }
}

fn name() -> ServerName<'static> {
    "far.example".try_into().expect("a name")
}

fn configs() -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), anyhow::Error> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["far.example".to_owned()])?.self_signed(&key)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let certified = CertifiedKey::from_der(vec![certificate.der().clone()], key, &PROVIDER)?;
    let mut client = client_config(versions(false), Arc::new(Anyone), None)?;
    let shown = Arc::new(SingleCertAndKey::from(certified));
    let mut server = server_config(versions(false), WebPkiClientVerifier::no_client_auth(), shown)?;
    // Whatever carries the product's records, these are ours.
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    client.alpn_protocols = protocols(true, &[ALPN]);
    server.alpn_protocols = protocols(true, &[ALPN]);
    Ok((Arc::new(client), Arc::new(server)))
}

/// Shakes hands over `wire`; `first` = what may be said to us before we have said anything.
fn try_out<E: Endpoint>(mut ours: E, mut wire: Wire, first: usize) {
    let outcome = {
        let mut driven = pin!(drive(&mut ours, &mut wire));
        driven.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    };
    let longest = HEADER + MAX_PROTECTED;
    let before = wire.taken_before.unwrap_or(wire.taken);
    assert!(before <= first + longest, "{before} bytes were taken before a word was said");
    match outcome {
        Poll::Pending => {
            assert!(wire.is_silent() && !wire.is_honest(), "it waits for what is there or cannot come");
        }
        Poll::Ready(Err(error)) => assert!(!wire.is_honest(), "{error:?} came of nothing"),
        Poll::Ready(Ok(left)) => {
            assert!(wire.shakes(), "nobody can shake hands who does not");
            assert!(left.behind.len() <= longest + READ, "{} bytes came behind", left.behind.len());
            wire.hear(&left.flight);
            behind(ours, &mut wire, left.behind);
        }
    }
    if !wire.shakes() {
        // Nothing that a stranger says is ever taken for good, so all of it is kept until the end.
        assert!(wire.taken <= MOST + longest, "{} bytes were taken", wire.taken);
    }
}

/// What came behind the handshake, and what comes afterwards, is what the other side said.
fn behind<E: Endpoint>(ours: E, wire: &mut Wire, mut bytes: Vec<u8>) {
    bytes.extend(wire.rest());
    let mut records = ours.into_records().expect("a handshake that is done leaves keys");
    let (mut came, mut rest) = (vec![], bytes.as_mut_slice());
    while let Ok(Some(length)) = whole(rest) {
        let (record, after) = rest.split_at_mut(length);
        rest = after;
        match records.open(record) {
            Ok(Opened::Data(data)) => came.extend_from_slice(data),
            Ok(Opened::Nothing) => {}
            Ok(Opened::UpdateRequested | Opened::Closed) | Err(_) => break,
        }
    }
    let said = pattern(0, wire.said);
    assert!(said.starts_with(&came), "other bytes came behind");
    assert!(came == said || !wire.is_honest(), "{} bytes came of {}", came.len(), said.len());
}

/// What a handshake of ours with ourselves leaves on both sides.
pub(in crate::proxy) fn shake(
    mut caller: UnbufferedClientConnection,
    mut callee: UnbufferedServerConnection,
) -> [Records; 2] {
    let (mut near, mut far) = duplex(1 << 16);
    let calling = async {
        let left = drive(&mut caller, &mut near).await?;
        near.write_all(&left.flight).await
    };
    let (calling, called) = futures::executor::block_on(futures::future::join(calling, drive(&mut callee, &mut far)));
    assert!(calling.is_ok() && called.is_ok(), "handshakes of our own work");
    [caller.into_records(), callee.into_records()].map(|records| records.expect("a handshake that is done leaves keys"))
}
