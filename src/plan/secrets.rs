//! Secrets with key and certificate, for software that holds its key itself (`certificate.secretName`).

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{AuthorityFacts, Plan, Step, World, usable};
use crate::{
    brief::Standing,
    identity::DnsName,
    pki::{
        self,
        ledger::{Holder, Record},
    },
    topology::{Domain, Server, Topology},
};

/// Annotations of such a Secret: which certificate is in it, and what it was made for.
pub const SERIAL_ANNOTATION: &str = "entente.dev/serial";
/// See [`SERIAL_ANNOTATION`].
pub const FINGERPRINT_ANNOTATION: &str = "entente.dev/made-for";

/// The Secret as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSeen {
    /// There is none.
    Absent,
    /// Somebody else's: it is never touched.
    Foreign,
    /// The operator may not write it.
    Denied,
    /// Ours.
    Ours {
        /// Serial of the certificate in it.
        serial: String,
        /// What it was made for.
        fingerprint: String,
    },
}

/// Names that a certificate in a Secret carries.
pub fn names(topology: &Topology, server: &Server) -> BTreeSet<DnsName> {
    topology.names_of_server(server)
}

/// Changes with everything that asks for another certificate or other roots beside it.
pub fn fingerprint(topology: &Topology, server: &Server, facts: &AuthorityFacts) -> String {
    let issuer = facts.active().map(|one| one.member.key_id.as_str()).unwrap_or_default();
    let names = names(topology, server);
    let names = names.iter().map(DnsName::as_str);
    let roots = facts.members.iter().map(|one| one.member.root_sha256.as_str()).collect::<BTreeSet<_>>();
    let parts: Vec<&str> = [issuer].into_iter().chain(names).chain(roots).collect();
    let text = format!("{} {} {}", server.id, server.uid, parts.join(" "));
    pki::sha256_hex(text.as_bytes())[..32].to_owned()
}

/// Those of `domain` who take key and certificate from a Secret: servers, and our own bundle endpoint.
fn holders<'a>(topology: &'a Topology, domain: &Domain) -> impl Iterator<Item = &'a Server> {
    let all = topology.servers().chain(topology.endpoints());
    all.filter(|server| {
        server.domain == domain.name && server.secret_name.is_some() && server.standing == Standing::Active
    })
}

/// The record of the certificate that is in the Secret of `server`, while somebody may use it.
pub(super) fn held<'a>(world: &'a World, server: &Server, serial: &str, now: Timestamp) -> Option<&'a Record> {
    let own = world.ledgers.values().filter(|seen| seen.server == server.key);
    let mut records = own.filter_map(|seen| seen.ledger.as_ref()).flat_map(|ledger| ledger.records());
    let name = server.secret_name.as_ref()?;
    records.find(|record| {
        record.serial.to_string() == serial
            && record.is_live(now)
            && matches!(&record.holder, Holder::Secret(own) if own == name)
    })
}

/// When the next certificate is due: at a third of a life.
fn due(record: &Record) -> Timestamp {
    let (start, end) = (record.recorded.as_second(), record.validity.not_after.as_second());
    Timestamp::from_second(start + (end - start) / 3).unwrap_or(record.validity.not_after)
}

/// Servers of `domain` whose Secret is not for what is declared and trusted now.
pub(super) fn outdated<'a>(topology: &'a Topology, world: &World, domain: &Domain) -> Vec<&'a Server> {
    let Some(facts) = usable(world, &domain.name) else { return vec![] };
    let asked = holders(topology, domain);
    asked
        .filter(|server| match world.secrets.get(&server.key) {
            Some(SecretSeen::Ours { fingerprint: made_for, .. }) => *made_for != fingerprint(topology, server, facts),
            Some(SecretSeen::Absent) => true,
            Some(SecretSeen::Foreign | SecretSeen::Denied) | None => false,
        })
        .collect()
}

pub(super) fn write(topology: &Topology, domain: &Domain, world: &World, now: Timestamp, plan: &mut Plan) {
    let Some(facts) = usable(world, &domain.name) else { return };
    for server in holders(topology, domain) {
        let made_for = fingerprint(topology, server, facts);
        let wanted = match world.secrets.get(&server.key) {
            Some(SecretSeen::Absent) => true,
            Some(SecretSeen::Ours { serial, fingerprint }) => match held(world, server, serial, now) {
                Some(record) if *fingerprint == made_for && now < due(record) => {
                    plan.wake(due(record));
                    false
                }
                Some(_) | None => true,
            },
            Some(SecretSeen::Foreign | SecretSeen::Denied) | None => false,
        };
        if wanted {
            plan.steps.push(Step::WriteSecret { server: Box::new(server.clone()), fingerprint: made_for });
        }
    }
}

#[cfg(test)]
mod tests;
