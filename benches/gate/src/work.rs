//! Fixed work in memory: what is counted in instructions.

use std::net::Ipv4Addr;

use anyhow::Context;
use entente::{
    brief::Brief,
    proxy::gate::{Connection, Server},
};
use tokio::runtime::Runtime;

use crate::{
    sidecars::{PORT, REQUEST, served},
    support::{control, domain::Domain},
};

/// Streams that talk at a time.
const STREAMS: usize = 8;

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// MiB sealed in full records at one end, and opened at the other
    Records,
    /// Handshakes between sidecars that met before
    Handshakes,
    /// Briefs put in force at both ends, and a handshake between sidecars that meet for the first time
    FirstHandshakes,
    /// Requests through two tunnels
    Requests,
    /// Requests on eight streams of one connection, without relays
    MultiplexedRequests,
}

/// Makes ready what `name` needs, and does it so many times.
pub(crate) fn work(name: Name, times: usize) -> anyhow::Result<()> {
    // One thread, so that nothing depends on who comes first.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ready = runtime.block_on(Ready::new())?;
    counted(&runtime, ready, name, times)
}

/// What is there before the work begins.
struct Ready {
    caller: Server,
    callee: Server,
    connection: Connection,
}

impl Ready {
    async fn new() -> anyhow::Result<Self> {
        // It lends its authority and is not asked.
        let domain = control::Server::start(Ipv4Addr::LOCALHOST.into()).await;
        let caller = server(&domain.domain, "client", domain.brief("client", vec![]))?;
        let callee = server(&domain.domain, "server", domain.brief("server", vec![served(PORT)]))?;
        // What is made at first use is made by this.
        let connection = Connection::open(&caller, &callee, PORT).await?;
        Ok(Self { caller, callee, connection })
    }
}

/// The work itself: callgrind counts from where this begins to where it ends, and finds it by its name.
#[inline(never)]
fn counted(runtime: &Runtime, ready: Ready, name: Name, times: usize) -> anyhow::Result<()> {
    let Ready { mut caller, mut callee, mut connection } = ready;
    runtime.block_on(async {
        match name {
            Name::Records => connection.records(times)?,
            Name::Handshakes => {
                for _ in 0..times {
                    Connection::open(&caller, &callee, PORT).await?;
                }
            }
            Name::FirstHandshakes => {
                for _ in 0..times {
                    caller.forget()?;
                    callee.forget()?;
                    Connection::open(&caller, &callee, PORT).await?;
                }
            }
            Name::Requests => connection.requests(times, REQUEST).await?,
            Name::MultiplexedRequests => connection.multiplexed(STREAMS, times, REQUEST)?,
        }
        Ok(())
    })
}

fn server(domain: &Domain, name: &str, brief: Brief) -> anyhow::Result<Server> {
    let (lifetime, names) = (brief.lifetime_seconds, domain.names(name, name));
    Server::new(brief, name, |request| domain.answer(&request.csr, names, lifetime)).context("a server in memory")
}
