//! `POST /inject`: the admission review of a new pod; the patch is `plan::sidecars`' business.

use std::sync::Arc;

use axum::{Json, extract::State};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{
        DynamicObject,
        admission::{AdmissionRequest, AdmissionResponse, AdmissionReview},
    },
};
use base64::prelude::{BASE64_STANDARD, Engine};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    apply::{ApplyError, within},
    view::View,
};
use crate::{
    api::ProxyResources,
    plan::sidecars::{Injection, patch},
    sidecar,
};

/// Name of the MutatingWebhookConfiguration, and of the webhook in it.
const CONFIGURATION: &str = "entente";
const WEBHOOK: &str = "pods.entente.dev";

/// What the endpoint works with.
#[derive(Clone)]
pub(super) struct Webhook {
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
    Json(webhook.judge(&request).into_review())
}

impl Webhook {
    fn judge(&self, request: &AdmissionRequest<Pod>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let Some(pod) = &request.object else { return response };
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let view = Arc::clone(&self.view.borrow());
        let server = view.topology.selecting(namespace, &labels);
        // A pod that names its server is injected before that server exists: Helm creates custom resources last.
        let named = labels.get(sidecar::SERVER_LABEL);
        let Some(name) = server.map(|server| &server.key.name).or(named) else { return response };
        let udp: Vec<u16> = server.into_iter().flat_map(|server| &server.ports).filter(|port| port.mode.is_none()).map(|port| port.port).collect();
        let resources = ProxyResources::default();
        let injection = Injection {
            image: &self.image,
            pull_policy: &self.pull_policy,
            control_address: &self.control_address,
            control_ca: &self.control_ca,
            server: name,
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
    let Some(webhook) = found.webhooks.as_ref().and_then(|webhooks| webhooks.iter().find(ours)) else { return Ok(false) };
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
