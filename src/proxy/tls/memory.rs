//! Handshakes of ours with ourselves over streams in memory, verdicts included.

use std::sync::Arc;

use anyhow::Context;
use rustls::{ClientConfig, ServerConfig, client::UnbufferedClientConnection, server::UnbufferedServerConnection};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncWriteExt, duplex};

use super::{
    super::{judge::Refused, records::Records},
    handshake::{self, Endpoint},
    judged,
};

/// More than all that both say.
const ROOM: usize = 1 << 16;

/// What carries the bytes of the caller and of the callee, each of which has judged the other.
pub(in super::super) async fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: ServerName<'static>,
) -> anyhow::Result<[Records; 2]> {
    let mut caller = UnbufferedClientConnection::new(client, name)?;
    let mut callee = UnbufferedServerConnection::new(server)?;
    let (mut near, mut far) = duplex(ROOM);
    let calling = judged(async {
        let left = handshake::drive(&mut caller, &mut near).await?;
        // Over a socket it goes with the first data.
        near.write_all(&left.flight).await
    });
    let called = judged(handshake::drive(&mut callee, &mut far));
    let (calling, called) = tokio::join!(calling, called);
    let refused = |refused: Refused| anyhow::anyhow!("refused: {}", refused.reason);
    calling.map_err(refused)?.1.context("the caller judged nobody")?;
    called.map_err(refused)?.1.context("the callee judged nobody")?;
    Ok([caller.into_records()?, callee.into_records()?])
}
