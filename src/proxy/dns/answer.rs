//! One question of the application, from its bytes to the answer that it is told.

use std::net::{IpAddr, SocketAddr};

use domain::base::{Rtype, iana::Rcode};

use super::{
    judge::{self, Mismatch},
    wire::{Query, Unreadable},
};
use crate::{
    brief::Direction,
    identity::DnsName,
    proxy::{access::Record, routes::Unanswered, shared::Shared},
    refusal::Refusal,
};

/// An answer, and how it gets into a datagram.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    /// The whole.
    pub(super) message: Vec<u8>,
    query: Option<Query>,
}

impl Reply {
    /// What fits into a datagram.
    pub(super) fn datagram(self) -> Option<Vec<u8>> {
        match self.query {
            Some(query) => query.datagram(self.message),
            None => Some(self.message),
        }
    }
}

/// Answers what the application sent from `from`; `None` = not at all.
pub(super) async fn answer(shared: &Shared, message: &[u8], from: SocketAddr) -> Option<Reply> {
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(Unreadable::Nothing) => return None,
        Err(Unreadable::Answer(message)) => return Some(Reply { message, query: None }),
    };
    let message = match told(shared, &query).await {
        Ok(message) => message,
        Err(refused) => {
            if let Refused::Mismatch(mismatch) = refused {
                record(shared, from, mismatch);
            }
            query.reply(Rcode::SERVFAIL, &[])
        }
    };
    Some(Reply { message: message?, query: Some(query) })
}

/// Why the application is told SERVFAIL.
enum Refused {
    /// What a resolver told leads to the wrong place.
    Mismatch(Mismatch),
    /// Nobody answered, or nothing that can be read.
    Failed,
    /// It is not known whether the name is declared.
    Unknown,
}

impl From<Mismatch> for Refused {
    fn from(mismatch: Mismatch) -> Self {
        Self::Mismatch(mismatch)
    }
}

impl From<Unanswered> for Refused {
    fn from(_: Unanswered) -> Self {
        Self::Unknown
    }
}

async fn told(shared: &Shared, query: &Query) -> Result<Option<Vec<u8>>, Refused> {
    let (guard, routes) = (&shared.guard, &shared.routes);
    let (name, kind) = (query.name(), query.kind());
    let connects = judge::tells_how_to_connect(kind);
    let name = if connects { query.service_name() } else { name };
    if let Some(pair) = name.as_ref().and_then(|name| guard.pair(name)) {
        return Ok(query.reply(Rcode::NOERROR, &judge::of_virtual(pair, kind, guard.families)));
    }
    if let Some(name) = name.as_ref().filter(|_| connects)
        && routes.led(name, &[]).await?.is_some()
    {
        return Ok(query.reply(Rcode::NOERROR, &[]));
    }
    let answer = guard.resolvers.ask(query).await.ok_or(Refused::Failed)?;
    let rcode = answer.rcode().ok_or(Refused::Failed)?;
    if rcode == Rcode::NXDOMAIN
        && let Some(name) = &name
        && let Some(addresses) = declared(shared, name, kind).await
    {
        return Ok(query.reply(Rcode::NOERROR, &addresses));
    }
    let told = answer.addresses().ok_or(Refused::Failed)?;
    let all: Vec<IpAddr> = told.iter().map(|told| told.address).collect();
    let led = match &name {
        Some(name) if !all.is_empty() => routes.led(name, &all).await?,
        _ => None,
    };
    let table = routes.table();
    let asked = name.as_ref();
    judge::judge(asked, &told, |of| if Some(of) == asked { led.clone() } else { table.led(of) })?;
    query.relay(&answer).ok_or(Refused::Failed).map(Some)
}

/// The addresses of a declared name that no resolver knows: names below our trust domain need no DNS of their own.
async fn declared(shared: &Shared, name: &DnsName, kind: Rtype) -> Option<Vec<IpAddr>> {
    let generation = shared.in_force()?;
    let ours = name.is_within(generation.brief().identity.trust_domain());
    let led = match shared.routes.table().led(name) {
        None if ours => shared.routes.led(name, &[]).await.ok()?,
        led => led,
    }?;
    (!led.present.is_empty()).then(|| judge::of_declared(&led, kind))
}

/// Counts an answer that the application was not told, as a refused connection is.
fn record(shared: &Shared, from: SocketAddr, mismatch: Mismatch) {
    let Mismatch { name, server, address } = mismatch;
    let mut record = Record::begin(Direction::Outbound, from);
    record.destination = shared.guard.resolvers.first();
    record.mode = "dns";
    record.misled(name.as_ref(), server.as_ref(), address);
    record.end(Err(Refusal::DnsMismatch), &shared.metrics, &shared.refusals);
}
