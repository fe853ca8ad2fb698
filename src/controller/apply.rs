//! The seam to the cluster: what is observed and how a step is applied, by Kubernetes here and by a map in tests.

use std::{collections::BTreeMap, future::Future, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tracing::info;

use super::stores::{AUTHORITY, BUNDLE, PART, material};
use crate::{
    api::{TrustDomain, TrustedServer},
    pki::authority::{self, AuthorityError, Material, Serial, Terms},
    plan::{Step, World},
    telemetry,
};

/// No call to the API server takes longer.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Why a step was not applied. The next round sees the world as it then is and plans anew.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Somebody else wrote first.
    #[error("the object changed meanwhile")]
    Conflict,
    /// The API server refused or was not reached.
    #[error("the API server: {0}")]
    Api(#[source] Box<kube::Error>),
    /// No answer in time.
    #[error("the API server did not answer within {DEADLINE:?}")]
    Deadline,
    /// An authority could not be made.
    #[error("{0}")]
    Authority(#[from] AuthorityError),
    /// A key could not be made.
    #[error("could not make a key: {0}")]
    Key(#[from] rcgen::Error),
}

impl From<kube::Error> for ApplyError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.is_conflict() || status.is_not_found() || status.is_already_exists() => {
                Self::Conflict
            }
            _ => Self::Api(Box::new(error)),
        }
    }
}

/// A cluster: Kubernetes, or a test's map.
pub trait Cluster {
    /// What there is now.
    fn observe(&self) -> impl Future<Output = Result<World, ApplyError>> + Send;
    /// Does one step. Done already is done.
    fn apply(&self, step: &Step) -> impl Future<Output = Result<(), ApplyError>> + Send;
}

/// Waits for a call, but not for ever.
pub(super) async fn within<T, E: Into<ApplyError>>(call: impl Future<Output = Result<T, E>>) -> Result<T, ApplyError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(ApplyError::Deadline),
    }
}

/// Applies one step to Kubernetes.
pub(super) async fn apply(client: &Client, namespace: &str, step: &Step) -> Result<(), ApplyError> {
    match step {
        Step::CreateDomain(domain) => {
            let api = Api::<TrustDomain>::all(client.clone());
            within(api.create(&PostParams::default(), domain)).await?;
            info!(domain = domain.metadata.name, "the first trust domain is created");
        }
        Step::CreateAuthority { domain, terms } => create_authority(client, namespace, domain, terms).await?,
        Step::RenewIssuer { domain, terms, replaces } => {
            renew_issuer(client, namespace, domain, terms, replaces).await?;
        }
        Step::WriteBundle { namespace, domain, data } => write_bundle(client, namespace, domain, data).await?,
        Step::DeleteBundle { namespace } => {
            let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
            within(api.delete(BUNDLE, &DeleteParams::default())).await?;
            info!(namespace, "the trust bundle is removed: the namespace left");
        }
        Step::DeleteLedger { name } => {
            let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
            within(api.delete(name, &DeleteParams::default())).await?;
            info!(ledger = name, "the ledger is removed: its server is gone and its certificates have ended");
        }
        Step::DomainStatus { name, version, status } => {
            let patch = status_patch(version.as_deref(), &json!(status));
            let api = Api::<TrustDomain>::all(client.clone());
            within(api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))).await?;
        }
        Step::ServerStatus { key, version, status } => {
            let patch = status_patch(version.as_deref(), &json!(status));
            let api = Api::<TrustedServer>::namespaced(client.clone(), &key.namespace);
            within(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))).await?;
        }
    }
    Ok(())
}

/// A merge patch that says what the status is, and of which version of the object it was planned. Fields that a status
/// no longer has are removed by `null`.
fn status_patch(version: Option<&str>, status: &Value) -> Value {
    let mut status = status.clone();
    if let Value::Object(fields) = &mut status {
        for optional in ["activeKeyID", "spiffeID"] {
            fields.entry(optional).or_insert(Value::Null);
        }
        if let Some(Value::Object(certificates)) = fields.get_mut("certificates") {
            certificates.entry("earliestNotAfter").or_insert(Value::Null);
        }
    }
    json!({"metadata": {"resourceVersion": version}, "status": status})
}

fn serial() -> Serial {
    Serial::from_random(telemetry::random())
}

fn secret(name: String, data: &Material) -> Secret {
    let Material { root_certificate, root_key, issuer_certificate, issuer_key } = data;
    let parts = [
        ("ca.crt", root_certificate),
        ("ca.key", root_key),
        ("issuer.crt", issuer_certificate),
        ("issuer.key", issuer_key),
    ];
    let labels = [(PART, "authority"), ("app.kubernetes.io/managed-by", "entente")];
    Secret {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        data: Some(parts.map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes()))).into()),
        ..Secret::default()
    }
}

/// Creates the Secret, and never replaces one: two leaders at once make one authority.
async fn create_authority(client: &Client, namespace: &str, domain: &str, terms: &Terms) -> Result<(), ApplyError> {
    let keys = [KeyPair::generate()?, KeyPair::generate()?];
    let made = authority::create(terms, keys, [serial(), serial()], telemetry::now())?;
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    within(api.create(&PostParams::default(), &secret(format!("{AUTHORITY}{domain}"), &made))).await?;
    info!(domain, "an authority is made");
    Ok(())
}

async fn renew_issuer(
    client: &Client,
    namespace: &str,
    domain: &str,
    terms: &Terms,
    replaces: &str,
) -> Result<(), ApplyError> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let name = format!("{AUTHORITY}{domain}");
    let held = within(api.get(&name)).await?;
    let now = telemetry::now();
    let Some(old) = material(&held) else { return Err(ApplyError::Conflict) };
    // The Secret may be newer than the plan: then this was done already.
    if authority::Authority::load(&old, now)?.key_id() != replaces {
        return Err(ApplyError::Conflict);
    }
    let next = authority::renew_issuer(&old, terms, &KeyPair::generate()?, serial(), now)?;
    let mut changed = held.clone();
    changed.data = secret(name.clone(), &next).data;
    within(api.replace(&name, &PostParams::default(), &changed)).await?;
    info!(domain, "the issuing certificate is renewed under the same root");
    Ok(())
}

async fn write_bundle(
    client: &Client,
    namespace: &str,
    domain: &str,
    data: &BTreeMap<String, String>,
) -> Result<(), ApplyError> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {"name": BUNDLE, "namespace": namespace, "labels": {
            PART: "bundle", "app.kubernetes.io/managed-by": "entente", crate::sidecar::DOMAIN_LABEL: domain,
        }},
    });
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let manager = PatchParams::apply("entente/topology").force();
    within(api.patch(BUNDLE, &manager, &Patch::Apply(map))).await?;
    info!(namespace, domain, "the trust bundle is written");
    Ok(())
}
