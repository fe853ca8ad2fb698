//! The seam to the cluster: what is observed and how a step is applied, by Kubernetes here and by a map in tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tracing::info;

use super::{
    audit::{Audit, Line},
    sources,
    stores::{AUTHORITY, PART, read_register},
};
use crate::{
    api::{FederationPartner, TrustDomain, TrustedServer},
    pki::{authority::Serial, crl::Reason, ledger::Ledger, register::Register, rotation::Move},
    plan::{
        Step, World, bundles, partners,
        register::{self, Fresh},
    },
    telemetry,
    topology::{Key, PartnerKey, ServerKey},
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
    /// A register or a ledger cannot be used.
    #[error("{0}")]
    Register(String),
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
pub(super) async fn apply(client: &Client, namespace: &str, audit: &Audit, step: &Step) -> Result<(), ApplyError> {
    match step {
        Step::CreateDomain(domain) => {
            let api = Api::<TrustDomain>::all(client.clone());
            within(api.create(&PostParams::default(), domain)).await?;
            info!(domain = domain.metadata.name, "the first trust domain is created");
        }
        Step::CreateAuthority { domain, .. }
        | Step::PrepareAuthority { domain, .. }
        | Step::MoveAuthority { domain, .. }
        | Step::PublishLists { domain, .. } => write_register(client, namespace, domain, step).await?,
        Step::Revoke { ledger, server, marks } => revoke(client, namespace, audit, (ledger, server), marks).await?,
        // It needs the topology, which the loop has.
        Step::WriteSecret { .. } => return Err(ApplyError::Conflict),
        Step::Hold { key, version, finalizers } => {
            let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
            let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
            match key {
                Key::Server(ServerKey { namespace, name }) => {
                    let api = Api::<TrustedServer>::namespaced(client.clone(), namespace);
                    within(api.patch(name, &parameters, &patch)).await?;
                }
                Key::Partner(PartnerKey { namespace, name }) => {
                    let api = Api::<FederationPartner>::namespaced(client.clone(), namespace);
                    within(api.patch(name, &parameters, &patch)).await?;
                }
                // Nobody holds one.
                Key::Domain(_) => {}
            }
        }
        Step::WriteBundle { namespace, domain, data } => {
            write_map(client, namespace, (bundles::NAME, "bundle"), domain, data).await?;
            info!(namespace, domain, "the trust bundle is written");
        }
        Step::DeleteBundle { namespace } => {
            let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
            within(api.delete(bundles::NAME, &DeleteParams::default())).await?;
            info!(namespace, "the trust bundle is removed: the namespace left");
        }
        Step::WritePartners { namespace, domain, data } => {
            let held = write_map(client, namespace, (partners::NAME, "partners"), domain, data).await?;
            // Somebody else's keys would pass for partners: an apply leaves them, so they are removed by name.
            let foreign: BTreeMap<&String, Value> =
                held.keys().filter(|key| !data.contains_key(*key)).map(|key| (key, Value::Null)).collect();
            if !foreign.is_empty() {
                let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
                let patch = Patch::Merge(json!({"data": foreign}));
                within(api.patch(partners::NAME, &PatchParams::default(), &patch)).await?;
            }
            info!(namespace, partners = data.len(), "the roots of partners are written");
        }
        Step::DeletePartners { namespace } => {
            let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
            within(api.delete(partners::NAME, &DeleteParams::default())).await?;
            info!(namespace, "the roots of partners are removed: there is none any more");
        }
        Step::KeepTrust { key, version, record } => {
            sources::record::write(client, namespace, (key, version.clone()), record).await?;
            info!(partner = %key, failing = record.failure.is_some(), "what a partner's sources say is kept");
        }
        Step::ForgetTrust { key, name } => {
            let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
            within(api.delete(name, &DeleteParams::default())).await?;
            info!(partner = %key, "what was kept of a partner is removed: it is gone");
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
        Step::PartnerStatus { key, version, status } => {
            let patch = status_patch(version.as_deref(), &json!(status));
            let api = Api::<FederationPartner>::namespaced(client.clone(), &key.namespace);
            within(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))).await?;
        }
    }
    Ok(())
}

/// Fields inside of a status that may end.
const OPTIONAL: [(&str, &[&str]); 3] = [
    ("certificates", &["earliestNotAfter", "keyID"]),
    ("bundle", &["sequence", "lastFetchTime", "nextFetchTime", "lastError"]),
    ("crl", &["number", "thisUpdate", "nextUpdate"]),
];

/// A merge patch that says what the status is, and of which version of the object it was planned. Fields that a status
/// no longer has are removed by `null`.
fn status_patch(version: Option<&str>, status: &Value) -> Value {
    let mut status = status.clone();
    if let Value::Object(fields) = &mut status {
        for optional in ["activeKeyID", "spiffeID", "bundle", "crl"] {
            fields.entry(optional).or_insert(Value::Null);
        }
        for (part, optionals) in OPTIONAL {
            if let Some(Value::Object(inner)) = fields.get_mut(part) {
                for optional in optionals {
                    inner.entry(*optional).or_insert(Value::Null);
                }
            }
        }
    }
    json!({"metadata": {"resourceVersion": version}, "status": status})
}

fn secret(name: String, data: BTreeMap<String, Vec<u8>>) -> Secret {
    let labels = [(PART, "authority"), ("app.kubernetes.io/managed-by", "entente")];
    Secret {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        data: Some(data.into_iter().map(|(key, bytes)| (key, ByteString(bytes))).collect()),
        ..Secret::default()
    }
}

/// Writes a domain's register as it is after `step`. A Secret that is there is never replaced by a first one, and one
/// that somebody else wrote meanwhile is not overwritten: two leaders at once do what one does.
async fn write_register(client: &Client, namespace: &str, domain: &str, step: &Step) -> Result<(), ApplyError> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let name = format!("{AUTHORITY}{domain}");
    let held = within(api.get_opt(&name)).await?;
    let before = held.as_ref().map(|secret| read_register(secret).map_err(ApplyError::Register)).transpose()?;
    if let (Step::MoveAuthority { step, known, .. }, Some(register)) = (step, &before) {
        nothing_in_the_way(client, namespace, register, step, known).await?;
    }
    let serial = || Serial::from_random(telemetry::random());
    let fresh = Fresh { keys: [KeyPair::generate()?, KeyPair::generate()?], serials: [serial(), serial()] };
    let before = before.map(Arc::unwrap_or_clone);
    let after = register::after(step, before, fresh, telemetry::now());
    let after = after.map_err(|error| ApplyError::Register(error.to_string()))?.ok_or(ApplyError::Conflict)?;
    let data = after.render().map_err(|error| ApplyError::Register(error.to_string()))?;
    let next = secret(name.clone(), data);
    match held {
        None => drop(within(api.create(&PostParams::default(), &next)).await?),
        // A replace names the version that was read.
        Some(held) => {
            let next = Secret { data: next.data, ..held };
            within(api.replace(&name, &PostParams::default(), &next)).await?;
        }
    }
    let number = after.published().number;
    match step {
        Step::CreateAuthority { .. } => info!(domain, "an authority is made"),
        Step::PrepareAuthority { .. } => info!(domain, "the next authority is prepared"),
        Step::MoveAuthority { step, .. } => info!(domain, ?step, "an authority moves on"),
        _ => info!(domain, number, "revocation lists are signed"),
    }
    Ok(())
}

/// A move rests on what the ledgers say now, not on what a cache says.
async fn nothing_in_the_way(
    client: &Client,
    namespace: &str,
    register: &Register,
    step: &Move,
    known: &BTreeSet<String>,
) -> Result<(), ApplyError> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let held = within(api.list(&ListParams::default().labels(&format!("{PART}=ledger")))).await?;
    let mut ledgers = vec![];
    for map in held {
        // What cannot be read may say anything.
        let ledger = Ledger::parse(map.data.as_ref().unwrap_or(&BTreeMap::new()));
        ledgers.push(ledger.map_err(|error| ApplyError::Register(format!("{}: {error}", map.name_any())))?);
    }
    if register::stands_in_the_way(register, &ledgers, step, known, telemetry::now()) {
        info!(?step, "a certificate was issued meanwhile that stands in the way; looking again");
        return Err(ApplyError::Conflict);
    }
    Ok(())
}

/// Marks certificates as taken back, each with a line in the audit log.
async fn revoke(
    client: &Client,
    namespace: &str,
    audit: &Audit,
    (ledger, server): (&str, &ServerKey),
    marks: &[(Serial, Reason)],
) -> Result<(), ApplyError> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let held = within(api.get(ledger)).await?;
    let mut record = Ledger::parse(held.data.as_ref().unwrap_or(&BTreeMap::new()))
        .map_err(|error| ApplyError::Register(error.to_string()))?;
    let done = record.revoke(marks, telemetry::now());
    if done.is_empty() {
        return Err(ApplyError::Conflict);
    }
    let next = ConfigMap { data: Some(record.render()), ..held };
    within(api.replace(ledger, &PostParams::default(), &next)).await?;
    let owner = record.owner();
    for record in record.records().iter().filter(|record| done.iter().any(|one| one.serial == record.serial)) {
        audit.tell(Line::revoked(server, owner, record));
    }
    Ok(())
}

/// Writes a ConfigMap of ours; answers what is in it then.
async fn write_map(
    client: &Client,
    namespace: &str,
    (name, part): (&str, &str),
    domain: &str,
    data: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, ApplyError> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {"name": name, "namespace": namespace, "labels": {
            PART: part, "app.kubernetes.io/managed-by": "entente", crate::sidecar::DOMAIN_LABEL: domain,
        }},
    });
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let manager = PatchParams::apply("entente/topology").force();
    let held = within(api.patch(name, &manager, &Patch::Apply(map))).await?;
    Ok(held.data.unwrap_or_default())
}
