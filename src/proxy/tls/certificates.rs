//! Which certificate is shown to whom.

use std::sync::Arc;

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{
    super::{credentials::Leaf, presented::Certificates},
    verifiers,
};
use crate::refusal::{HandshakeDetail, ReadyDetail, Refusal};

/// What a `MutualTls` port shows.
///
/// Nobody is known yet when the certificate is chosen, so the name that a caller asks for decides. The topology name is
/// what servers of ours ask for: our own certificate. Any other name that a certificate for a partner carries is that
/// partner's to ask for, also where our own carries it as well: that one. A name of ours, or none: our own.
#[derive(Debug)]
pub(in crate::proxy) struct OwnNames {
    /// Our own certificate.
    pub(in crate::proxy) leaf: Arc<Leaf>,
    /// Those that are mounted.
    pub(in crate::proxy) mounted: Arc<Certificates>,
    /// The partners that the port lists and that are shown one of them.
    pub(in crate::proxy) presents: Vec<String>,
}

impl OwnNames {
    fn presented(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let mut mounted = self.presents.iter().filter_map(|partner| self.mounted.presented(partner));
        mounted.find(|certified| certified.names(name)).map(|certified| certified.key.clone())
    }
}

impl ResolvesServerCert for OwnNames {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let identity = &self.leaf.identity;
        let Some(name) = hello.server_name() else { return Some(self.leaf.certified.clone()) };
        if identity.id.topology_name().is_none_or(|own| own.as_str() != name)
            && let Some(presented) = self.presented(name)
        {
            return Some(presented);
        }
        if identity.dns_names.iter().any(|own| own.as_str() == name) {
            return Some(self.leaf.certified.clone());
        }
        verifiers::refuse(Refusal::HandshakeFailed(HandshakeDetail::ServerName));
        None
    }
}

/// What a `ServerTls` port shows: the mounted certificate, else our own.
#[derive(Debug)]
pub(in crate::proxy) struct Served {
    /// Our own certificate.
    pub(in crate::proxy) leaf: Arc<Leaf>,
    /// Those that are mounted.
    pub(in crate::proxy) mounted: Arc<Certificates>,
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mounted = self.mounted.server.current().map(|certified| certified.key.clone());
        mounted.or_else(|| Some(self.leaf.certified.clone()))
    }
}

/// What the partner `name` is shown instead of our own certificate. Where that is not there, nothing is.
pub(in crate::proxy) fn presented(mounted: &Certificates, name: &str) -> Result<Arc<CertifiedKey>, Refusal> {
    let certified = mounted.presented(name).ok_or(Refusal::NotReady(ReadyDetail::NoPresented))?;
    Ok(certified.key.clone())
}
