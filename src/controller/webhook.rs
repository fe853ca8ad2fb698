//! `POST /inject`: the admission review of a new pod; the patch is `plan::sidecars`' business.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use base64::prelude::{BASE64_STANDARD, Engine};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    core::{
        DynamicObject,
        admission::{AdmissionRequest, AdmissionResponse, AdmissionReview},
    },
};
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    apply::{ApplyError, within},
    view::View,
};
use crate::{
    api::{ProxyResources, TrustedServer},
    plan::{
        partners,
        sidecars::{Injection, patch},
    },
    sidecar,
    topology::Selector,
};

/// How long a review waits for the API server, and then for our own picture: together less than the webhook's deadline.
const CATCH_UP: Duration = Duration::from_secs(2);

/// Name of the MutatingWebhookConfiguration, and of the webhook in it.
const CONFIGURATION: &str = "entente";
const WEBHOOK: &str = "pods.entente.dev";

/// What the endpoint works with.
#[derive(Clone)]
pub(super) struct Webhook {
    pub(super) client: Client,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) image: String,
    pub(super) pull_policy: String,
    pub(super) control_address: String,
    pub(super) control_ca: String,
}

/// The endpoint.
pub(super) async fn inject(
    State(webhook): State<Webhook>,
    Json(review): Json<AdmissionReview<Pod>>,
) -> Json<AdmissionReview<DynamicObject>> {
    let request: AdmissionRequest<Pod> = match review.try_into() {
        Ok(request) => request,
        Err(error) => return Json(AdmissionResponse::invalid(error).into_review()),
    };
    Json(webhook.judge(&request).await.into_review())
}

impl Webhook {
    async fn judge(&self, request: &AdmissionRequest<Pod>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let Some(pod) = &request.object else { return response };
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        // A pod that names its server is injected before that server exists: Helm creates custom resources last.
        let named = labels.get(sidecar::SERVER_LABEL);
        let view = match self.current(namespace, &labels, named.is_some()).await {
            Ok(view) => view,
            Err(reason) => return response.deny(reason),
        };
        let server = view.topology.selecting(namespace, &labels);
        let Some(name) = server.map(|server| &server.key.name).or(named) else { return response };
        if server.is_some_and(|server| server.secret_name.is_some()) {
            // Its software holds the key and speaks mutual TLS itself.
            return response;
        }
        let ports = server.map(|server| server.ports.as_slice()).unwrap_or_default();
        let udp: Vec<u16> = ports.iter().filter(|port| port.mode.is_none()).map(|port| port.port).collect();
        let resources = ProxyResources::default();
        let presented = server.map(|server| partners::presented(&view.topology, server)).unwrap_or_default();
        let injection = Injection {
            image: &self.image,
            pull_policy: &self.pull_policy,
            control_address: &self.control_address,
            control_ca: &self.control_ca,
            server: name,
            server_certificate: server.and_then(|server| server.server_secret_name.as_deref()),
            presented: &presented,
            udp_ports: &udp,
            drain_seconds: server.map_or(30, |server| server.drain_seconds),
            resources: server.map_or(&resources, |server| &server.resources),
        };
        match patch(pod, &injection) {
            Ok(patch) => response.with_patch(patch).unwrap_or_else(AdmissionResponse::invalid),
            Err(reason) => {
                info!(namespace, server = name, %reason, "a pod was refused");
                response.deny(format!("TrustedServer {namespace}/{name}: {reason}"))
            }
        }
    }

    /// A picture that knows every server which selects such a pod. Where ours knows none, the API server is asked: the
    /// server may be a moment old, and a pod that starts bare stays bare.
    async fn current(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        named: bool,
    ) -> Result<Arc<View>, String> {
        let mut views = self.view.clone();
        let view = Arc::clone(&views.borrow_and_update());
        if named || view.topology.selecting(namespace, labels).is_some() {
            return Ok(view);
        }
        let api = Api::<TrustedServer>::namespaced(self.client.clone(), namespace);
        let listed = tokio::time::timeout(CATCH_UP, api.list(&ListParams::default())).await;
        let Ok(Ok(listed)) = listed else {
            return Err(
                "Entente could not ask the API server whether this pod is a TrustedServer's; try again".to_owned()
            );
        };
        let selects = |server: &&TrustedServer| {
            Selector::parse(&server.spec.selector).is_some_and(|selector| selector.matches(labels))
        };
        let Some(server) = listed.items.iter().find(selects) else { return Ok(view) };
        let seen = views.wait_for(|view| view.topology.selecting(namespace, labels).is_some());
        match tokio::time::timeout(CATCH_UP, seen).await {
            Ok(Ok(view)) => Ok(Arc::clone(&view)),
            Ok(Err(_)) | Err(_) => {
                let name = server.metadata.name.as_deref().unwrap_or_default();
                Err(format!(
                    "TrustedServer {namespace}/{name} selects this pod but is not in force: see its condition Accepted"
                ))
            }
        }
    }
}

/// Writes our authority into the webhook's configuration where it is missing: Helm leaves that field to us.
pub(super) async fn keep_bundle(client: &Client, ca: &str) {
    match ensure_bundle(client, ca).await {
        Ok(true) => info!("the webhook's configuration has our authority now"),
        Ok(false) => {}
        Err(error) => warn!(%error, "the webhook's configuration could not be brought up to date"),
    }
}

async fn ensure_bundle(client: &Client, ca: &str) -> Result<bool, ApplyError> {
    let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let Some(found) = within(api.get_opt(CONFIGURATION)).await? else { return Ok(false) };
    let ours = |webhook: &&k8s_openapi::api::admissionregistration::v1::MutatingWebhook| webhook.name == WEBHOOK;
    let Some(webhook) = found.webhooks.as_ref().and_then(|webhooks| webhooks.iter().find(ours)) else {
        return Ok(false);
    };
    let held = webhook.client_config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice());
    if held == Some(ca.as_bytes()) {
        return Ok(false);
    }
    let patch = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATION},
        "webhooks": [{"name": WEBHOOK, "clientConfig": {"caBundle": BASE64_STANDARD.encode(ca)}}],
    });
    // A strategic merge finds the webhook by its name and leaves everything else to the chart.
    let manager = PatchParams { field_manager: Some("entente-webhook".to_owned()), ..PatchParams::default() };
    within(api.patch(CONFIGURATION, &manager, &Patch::Strategic(patch))).await?;
    Ok(true)
}
