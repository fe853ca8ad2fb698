//! What all tasks of one proxy share, and the one place where a new leaf or brief comes in force.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    access::Refusals,
    basis::Basis,
    contacts::Contacts,
    credentials::{self, Leaf},
    dns::Guard,
    generation::{Generation, GenerationError, Readiness},
    metrics::Metrics,
    muxes::Muxes,
    presented::Certificates,
    quotas::{Quotas, Seat},
    registry::{self, Place, Registry},
    routes::Routes,
    sockets::Intercepted,
};
use crate::{
    brief::Brief,
    identity::DnsName,
    refusal::{DestinationDetail, Refusal},
    telemetry,
};

/// Shared state of one proxy.
#[derive(Debug)]
pub(super) struct Shared {
    readiness: ArcSwap<Readiness>,
    /// Writers of `readiness` take turns; readers never wait.
    turn: Mutex<()>,
    leaf: watch::Sender<Option<Arc<Leaf>>>,
    /// Wakes whoever keeps our certificate fresh.
    pub(super) renew: Notify,
    /// Cancelled when the pod ends.
    pub(super) draining: CancellationToken,
    /// Open connections.
    pub(super) registry: Arc<Registry>,
    /// What connections to the same pod share.
    pub(super) muxes: Muxes,
    /// Where declared servers live.
    pub(super) routes: Routes,
    /// What the application is told of names.
    pub(super) guard: Guard,
    /// What Prometheus sees.
    pub(super) metrics: Metrics,
    /// What the next sync reports.
    pub(super) refusals: Refusals,
    /// What came of dealing with partners.
    pub(super) contacts: Contacts,
    /// What partners may ask for.
    quotas: Arc<Quotas>,
    /// What never changes.
    pub(super) place: Surroundings,
}

/// What a proxy knows of its pod; never changes.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    /// The pod's UID.
    pub(super) pod_uid: String,
    /// The pod's addresses.
    pub(super) pod_ips: Vec<IpAddr>,
    /// The pod's nameservers.
    pub(super) resolvers: Vec<SocketAddr>,
    /// What the pod completes names with.
    pub(super) search: Vec<DnsName>,
    /// The proxy's own ports.
    pub(super) own_ports: Vec<u16>,
    /// Where key, chain and brief are kept.
    pub(super) state_dir: PathBuf,
    /// How original destinations are learnt.
    pub(super) intercepted: Intercepted,
    /// What is shown instead of our own certificate.
    pub(super) mounted: Arc<Certificates>,
}

impl Shared {
    /// Begins without identity and brief: everything is refused.
    pub(super) fn new(place: Surroundings) -> Self {
        Self {
            readiness: ArcSwap::from_pointee(Readiness::NoIdentity),
            turn: Mutex::default(),
            leaf: watch::Sender::new(None),
            renew: Notify::new(),
            draining: CancellationToken::new(),
            registry: Arc::default(),
            muxes: Muxes::default(),
            routes: Routes::default(),
            guard: Guard::new(&place.resolvers, &place.search, &place.pod_ips),
            metrics: Metrics::default(),
            refusals: Refusals::default(),
            contacts: Contacts::default(),
            quotas: Arc::default(),
            place,
        }
    }

    /// The generation in force.
    pub(super) fn generation(&self) -> Result<Arc<Generation>, Refusal> {
        self.readiness.load().generation(telemetry::now()).cloned()
    }

    /// Whether peers can be judged and new ones are welcome.
    pub(super) fn is_ready(&self) -> bool {
        !self.draining.is_cancelled() && self.generation().is_ok()
    }

    /// From now on readiness is off.
    pub(super) fn start_draining(&self) {
        self.draining.cancel();
    }

    /// Our certificate, which may not be in force yet.
    pub(super) fn leaf(&self) -> watch::Receiver<Option<Arc<Leaf>>> {
        self.leaf.subscribe()
    }

    /// The brief in force, even where our own certificate has expired.
    pub(super) fn in_force(&self) -> Option<Arc<Generation>> {
        match self.readiness.load().as_ref() {
            Readiness::InForce(generation) => Some(generation.clone()),
            Readiness::NoIdentity | Readiness::NoBrief => None,
        }
    }

    fn build(&self, brief: Brief, leaf: Arc<Leaf>, before: Option<&Generation>) -> Result<Generation, GenerationError> {
        Generation::build(brief, leaf, before, (&self.place.mounted, &self.quotas), telemetry::now())
    }

    /// Puts a new certificate in force, under the brief that is.
    pub(super) fn adopt_leaf(&self, leaf: Leaf) {
        let leaf = Arc::new(leaf);
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.in_force() {
            None => self.readiness.store(Arc::new(Readiness::NoBrief)),
            Some(old) => match self.build(old.brief().clone(), leaf.clone(), Some(&old)) {
                Ok(generation) => {
                    let generation = Arc::new(generation);
                    self.readiness.store(Arc::new(Readiness::InForce(generation.clone())));
                    self.metrics.own_revoked(false);
                    self.judge_ourselves(&generation);
                }
                // The next brief fits the new certificate; until then the old pair stands.
                Err(error) => tracing::warn!(%error, "certificate waits for a brief that fits it"),
            },
        }
        self.metrics.leaf(leaf.identity.not_after.as_second());
        tracing::info!(serial = leaf.serial(), until = %leaf.identity.not_after, id = %leaf.identity.id, "certificate adopted");
        self.leaf.send_replace(Some(leaf));
    }

    /// Puts a brief in force: validated completely, every new connection judged by it, every open one re-judged.
    pub(super) fn adopt_brief(&self, brief: Brief) -> Result<(), GenerationError> {
        let Some(leaf) = self.leaf.borrow().clone() else { return Ok(()) };
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.in_force();
        // A brief that came as JSON can be written as JSON.
        let kept = serde_json::to_vec(&brief).unwrap_or_default();
        let generation = Arc::new(self.build(brief, leaf, before.as_deref())?);
        self.guard.follow(generation.brief());
        self.readiness.store(Arc::new(Readiness::InForce(generation.clone())));
        let cut = self.registry.rejudge(&generation.judge, &self.routes.table(), telemetry::now());
        self.metrics.brief(generation.cursor().revision);
        self.judge_ourselves(&generation);
        tracing::info!(revision = generation.cursor().revision, cut, "brief in force");
        for partner in generation.judge.partners.iter() {
            for problem in partner.problems() {
                tracing::warn!(partner = partner.name(), %problem, "a partner's trust cannot be used");
            }
        }
        if let Err(error) = credentials::store_brief(&self.place.state_dir, &kept) {
            tracing::warn!(%error, "brief is not kept for a restart");
        }
        Ok(())
    }

    /// Judges open connections by the routes as they stand.
    pub(super) fn routes_changed(&self) {
        if let Some(generation) = self.in_force() {
            self.registry.rejudge(&generation.judge, &self.routes.table(), telemetry::now());
        }
    }

    /// Our own certificate may be among those that were taken back.
    fn judge_ourselves(&self, generation: &Generation) {
        if let Err(reason) = generation.judge.view.taken_back(&generation.leaf.identity) {
            self.own_revoked(&generation.leaf, reason);
        }
    }

    /// Our certificate was taken back: it stands for us no longer, and another one is asked for at once.
    pub(super) fn own_revoked(&self, leaf: &Leaf, reason: Refusal) {
        if leaf.revoke() {
            self.metrics.own_revoked(true);
            tracing::warn!(serial = leaf.serial(), %reason, "our own certificate is revoked");
        }
        self.renew.notify_one();
    }

    /// The controller does not accept our certificate.
    pub(super) fn rejected(&self, leaf: &Leaf) {
        leaf.reject();
        self.renew.notify_one();
    }

    /// A place for one more connection with `partner`, whose limits `generation` says.
    pub(super) fn seat(&self, generation: &Generation, partner: &str) -> Result<Seat, Refusal> {
        let link = generation.brief().link(partner).ok_or(Refusal::NameOutOfScope)?;
        self.quotas.seat(partner, link.max_connections)
    }

    /// Registers a connection that `generation` admitted. Where the generation has moved meanwhile, `again` judges
    /// anew: this closes the race between a handshake and a withdrawal.
    pub(super) fn register(
        &self,
        basis: Basis,
        generation: &Arc<Generation>,
        again: impl FnOnce(&Generation) -> Result<(), Refusal>,
    ) -> Result<Place, Refusal> {
        let mut place = registry::admit(|| self.registry.enter(basis), generation, || self.generation(), again)?;
        place.under = Arc::downgrade(generation);
        Ok(place)
    }

    /// Refuses destinations that are the proxy itself.
    pub(super) fn not_ourselves(&self, destination: SocketAddr) -> Result<(), Refusal> {
        let ours = self.place.pod_ips.contains(&destination.ip());
        if ours && self.place.own_ports.contains(&destination.port()) {
            return Err(Refusal::ForbiddenDestination(DestinationDetail::OwnPort));
        }
        Ok(())
    }
}
