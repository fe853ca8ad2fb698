//! Events on the object that decided, and counts of what sidecars reported.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::{apply::DEADLINE, health::Metrics, view::View};
use crate::{
    api::{FederationPartner, TrustDomain},
    brief::{Direction, MAX_REPORTED_REFUSALS, RefusedConnections, Report},
    identity::SpiffeId,
    topology::Server,
};

/// Events that wait to be written; more are counted and dropped.
const WAITING: usize = 1_024;

/// Takes what is to be told; writing happens apart, so that no poll waits for the API server.
#[derive(Clone)]
pub(super) struct Events {
    queue: mpsc::Sender<(ObjectReference, Event)>,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// The queue, and the task that writes what is in it.
    pub(super) fn new(
        client: Client,
        instance: String,
        view: watch::Receiver<Arc<View>>,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, mut waiting) = mpsc::channel::<(ObjectReference, Event)>(WAITING);
        let recorder = Recorder::new(client, Reporter { controller: "entente".to_owned(), instance: Some(instance) });
        let write = async move {
            while let Some((about, event)) = waiting.recv().await {
                match tokio::time::timeout(DEADLINE, recorder.publish(&event, &about)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!(%error, "an Event could not be written"),
                    Err(_) => warn!("an Event could not be written in time"),
                }
            }
        };
        (Self { queue, view, metrics }, write)
    }

    /// Something about a server; about our bundle endpoint, on its domain.
    pub(super) fn about(&self, server: &Server, type_: EventType, reason: &str, action: &str, note: String) {
        let about = if server.built_in {
            reference("TrustDomain", None, server.domain.clone(), &server.uid)
        } else {
            let (namespace, name) = (server.key.namespace.clone(), server.key.name.clone());
            reference("TrustedServer", Some(namespace), name, &server.uid)
        };
        self.tell(about, type_, reason, action, note);
    }

    /// Something about a domain.
    pub(super) fn about_domain(
        &self,
        domain: &TrustDomain,
        type_: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let uid = domain.metadata.uid.as_deref().unwrap_or_default();
        let name = domain.metadata.name.clone().unwrap_or_default();
        self.tell(reference("TrustDomain", None, name, uid), type_, reason, action, note);
    }

    /// Something about a partner.
    pub(super) fn about_partner(
        &self,
        partner: &FederationPartner,
        type_: EventType,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let uid = partner.metadata.uid.as_deref().unwrap_or_default();
        let (namespace, name) = (partner.metadata.namespace.clone(), partner.metadata.name.clone().unwrap_or_default());
        self.tell(reference("FederationPartner", namespace, name, uid), type_, reason, action, note);
    }

    fn tell(&self, about: ObjectReference, type_: EventType, reason: &str, action: &str, note: String) {
        let (reason, action) = (reason.to_owned(), action.to_owned());
        let event = Event { type_, reason, note: Some(note), action, secondary: None };
        if self.queue.try_send((about, event)).is_err() {
            debug!("an Event is dropped: too many wait");
        }
    }

    /// What a sidecar saw: each kind of refusal becomes one Event on its own server, repeats fold into a series.
    pub(super) fn report(&self, id: &SpiffeId, pod_uid: &str, report: &Report) {
        let view = Arc::clone(&self.view.borrow());
        for refused in report.refusals.iter().take(MAX_REPORTED_REFUSALS) {
            self.metrics.reported(refused);
            if refused.reason.is_routine() {
                continue;
            }
            let Some((server, pod)) = view.topology.pod(pod_uid).filter(|(server, _)| server.id == *id) else {
                continue;
            };
            let note = note(refused, &pod.name);
            let reason = if refused.cut { "ConnectionsCut" } else { "ConnectionRefused" };
            self.about(server, EventType::Warning, reason, refused.reason.code(), note);
        }
    }
}

fn note(refused: &RefusedConnections, pod: &str) -> String {
    let RefusedConnections { direction, reason, peer, port, cut, count } = refused;
    let peer: String = peer.chars().filter(|character| !character.is_control()).take(200).collect();
    let times = if *count > 1 { format!(" ({count} times)") } else { String::new() };
    if *cut {
        return format!("{reason}: {count} open connections of pod {pod} with {peer}, port {port}, were ended");
    }
    match direction {
        Direction::Inbound => format!("{reason}: {peer} was refused at port {port} of pod {pod}{times}"),
        Direction::Outbound => format!("{reason}: pod {pod} was not let through to {peer}, port {port}{times}"),
    }
}

fn reference(kind: &str, namespace: Option<String>, name: String, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("entente.dev/v1alpha1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace,
        name: Some(name),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}
