//! How a proxy deals with partners, beside whom their scopes vouch for.

use serde::{Deserialize, Serialize};

use super::Brief;
use crate::{identity::DnsName, refusal::Refusal};

/// How we deal with one partner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PartnerLink {
    /// Name of the `FederationPartner`; its scope is [`super::partner_scope`] of it.
    pub name: String,
    /// Whether it is trusted now.
    pub standing: PartnerStanding,
    /// Where our application may call it.
    pub edges: Vec<PartnerEdge>,
    /// Whether TLS 1.2 is spoken with it.
    pub tls12: bool,
    /// Whether it is shown the certificate that is mounted for it, instead of our own.
    pub presents: bool,
    /// Connections that are open at the same time, both directions.
    pub max_connections: u32,
    /// Handshakes that it may begin in a second.
    pub handshakes_per_second: u32,
}

/// Whether a partner is trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PartnerStanding {
    /// It is.
    #[default]
    Active,
    /// Not for the time being: its scope has no anchors.
    Suspended,
    /// The contract has ended: its scope has no anchors.
    Expired,
}

/// Where a partner may be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PartnerEdge {
    /// Its name, which its certificate must carry.
    pub host: DnsName,
    /// Its TCP port.
    pub port: u16,
}

/// The last contact with a partner: what we dialled, and what proved itself to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PartnerContact {
    /// When, Unix seconds.
    pub at: i64,
    /// Why it failed; `None` = the partner was verified in its scope. A caller that could not prove itself is nobody's
    /// contact.
    pub refused: Option<Refusal>,
}

/// What stands behind a name that the application dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// An edge of this partner.
    Edge(&'a PartnerLink),
    /// A host that may be called as it is.
    Host,
}

impl Brief {
    /// How the partner `name` is dealt with.
    pub fn link(&self, name: &str) -> Option<&PartnerLink> {
        self.partners.iter().find(|link| link.name == name)
    }

    /// What stands behind `port` of the name `host`.
    pub fn named(&self, host: &DnsName, port: u16) -> Result<Named<'_>, Refusal> {
        self.stands()?;
        let edges = |link: &PartnerLink| link.edges.iter().any(|edge| edge.host == *host && edge.port == port);
        if let Some(link) = self.partners.iter().find(|link| edges(link)) {
            return Ok(Named::Edge(link));
        }
        let mut allowed = self.egress.hosts.iter().filter(|allowed| allowed.host == *host);
        let known = allowed.clone().next().is_some()
            || self.partners.iter().flat_map(|link| &link.edges).any(|edge| edge.host == *host);
        match allowed.any(|allowed| allowed.ports.contains(&port)) {
            true => Ok(Named::Host),
            false if known => Err(Refusal::PortNotAllowed),
            false => Err(Refusal::DestinationNotDeclared),
        }
    }
}
