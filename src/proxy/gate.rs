//! The data path on fixed work in memory, for `benches/gate`: no socket, no thread, no timer that matters, so that the
//! same work is the same instructions.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Error, ensure};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::{
    credentials::{Candidate, Leaf},
    generation::Generation,
    presented::Certificates,
    quotas::Quotas,
    records::{self, MAX_PLAINTEXT, Opened, Records, STRIDE},
    relay::{Tunnel, memory::carry, mux_memory},
    tls::memory::shake,
};
use crate::{
    brief::{Brief, CertificateRequest, CertificateResponse},
    telemetry,
};

/// Full records that are sealed at a time, as the relay does it.
const RECORDS: usize = 8;
/// Room of a stream in memory: as much as a socket takes at a time.
const ROOM: usize = 1 << 17;

/// A server of the topology: its certificate, and what its sidecar was told.
#[derive(Debug)]
pub struct Server {
    leaf: Arc<Leaf>,
    brief: Brief,
    surroundings: (Arc<Certificates>, Arc<Quotas>),
    generation: Generation,
}

impl Server {
    /// Makes a key for the pod `pod_uid`, lets `certify` answer its request, and puts `brief` in force.
    pub fn new(
        brief: Brief,
        pod_uid: &str,
        certify: impl FnOnce(&CertificateRequest) -> CertificateResponse,
    ) -> anyhow::Result<Self> {
        let key = Candidate::new()?;
        let answer = certify(&key.request()?);
        let leaf = Arc::new(key.join(&answer, pod_uid, None, (telemetry::now(), 0.5))?);
        let nowhere = PathBuf::from("/nonexistent");
        let surroundings = (Arc::new(Certificates::new(nowhere.clone(), &nowhere)), Arc::new(Quotas::default()));
        let generation = generation(&brief, &leaf, &surroundings)?;
        Ok(Self { leaf, brief, surroundings, generation })
    }

    /// Puts the same brief in force anew: nothing is remembered of anybody.
    pub fn forget(&mut self) -> anyhow::Result<()> {
        self.generation = generation(&self.brief, &self.leaf, &self.surroundings)?;
        Ok(())
    }
}

fn generation(
    brief: &Brief,
    leaf: &Arc<Leaf>,
    (mounted, quotas): &(Arc<Certificates>, Arc<Quotas>),
) -> anyhow::Result<Generation> {
    Ok(Generation::build(brief.clone(), leaf.clone(), None, (mounted, quotas), telemetry::now())?)
}

/// What carries the bytes of both ends of one connection.
#[derive(Debug)]
pub struct Connection([Records; 2]);

impl Connection {
    /// A handshake of `caller` with `port` of `callee`; each judges the other.
    pub async fn open(caller: &Server, callee: &Server, port: u16) -> anyhow::Result<Self> {
        let client = caller.generation.client(&callee.brief.identity).map_err(Error::msg)?;
        let server = callee.generation.server(port).map_err(Error::msg)?;
        let name = callee.brief.identity.topology_name().context("a server without a topology name")?;
        let name = ServerName::try_from(name.as_str().to_owned())?;
        Ok(Self(shake(client, server, name).await?))
    }

    /// Seals `mebibytes` in full records at either end in turn, and opens them at the other.
    pub fn records(&mut self, mebibytes: usize) -> anyhow::Result<()> {
        let [caller, callee] = &mut self.0;
        let mut buffer = vec![0; RECORDS * STRIDE];
        let times = (mebibytes << 20) / (RECORDS * MAX_PLAINTEXT);
        for time in 0..times {
            let (from, to) = if time % 2 == 0 { (&mut *caller, &mut *callee) } else { (&mut *callee, &mut *caller) };
            let sealed = from.seal(&mut buffer, RECORDS * MAX_PLAINTEXT)?;
            let opened = opened(to, &mut buffer[..sealed])?;
            ensure!(opened == RECORDS * MAX_PLAINTEXT, "{opened} bytes came out");
        }
        Ok(())
    }

    /// Carries requests and answers of `size` bytes, one after the other, between an application and a server through
    /// the relays and tunnels of both ends.
    pub async fn requests(self, count: usize, size: usize) -> anyhow::Result<()> {
        let [ours, theirs] = self.0;
        let (mut application, near) = duplex(ROOM);
        let (network, far) = duplex(ROOM);
        let (mut server, beyond) = duplex(ROOM);
        let calling = tokio::spawn(carry(near, Tunnel::new(network, ours, Default::default())));
        let called = tokio::spawn(carry(beyond, Tunnel::new(far, theirs, Default::default())));
        let answering = tokio::spawn(async move {
            let mut request = vec![0; size];
            for _ in 0..count {
                server.read_exact(&mut request).await?;
                server.write_all(&request).await?;
            }
            server.shutdown().await
        });
        let (request, mut answer) = (vec![7; size], vec![0; size]);
        for _ in 0..count {
            application.write_all(&request).await?;
            application.read_exact(&mut answer).await?;
        }
        ensure!(count == 0 || answer == request, "another answer came");
        application.shutdown().await?;
        answering.await??;
        calling.await??;
        called.await?
    }

    /// The same through one multiplexed connection, on each of `streams` one before the first is answered.
    pub fn multiplexed(self, streams: usize, count: usize, size: usize) -> anyhow::Result<()> {
        mux_memory::requests(self.0, streams, count, size)
    }
}

/// Opens the records in `wire`; how many bytes of data were in them.
fn opened(records: &mut Records, mut wire: &mut [u8]) -> anyhow::Result<usize> {
    let mut length = 0;
    while let Some(whole) = records::whole(wire)? {
        let (record, rest) = wire.split_at_mut(whole);
        let Opened::Data(data) = records.open(record)? else { anyhow::bail!("a record without data") };
        length += data.len();
        wire = rest;
    }
    ensure!(wire.is_empty(), "a record without an end");
    Ok(length)
}
