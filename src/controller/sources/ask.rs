//! Asking the sources of one partner, and making its next record of what they say. Whatever they say, it ends in a
//! record; what others sent is parsed where a panic costs that attempt alone.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};

use super::{Asker, fetch::FetchError, proof::Proof};
use crate::{
    api::{ConfigMapKey, EndpointProfile, FederationPartner, SpiffeEndpoint},
    pki::{lists, spiffe},
    topology::kept::{Failure, FailureKind, Kept, map_source},
};

/// The API server is not waited for longer.
const ANSWER: Duration = Duration::from_secs(2);
/// Bytes that roots in a ConfigMap may have, as in `caBundle`.
const LONGEST_ROOTS: usize = 65_536;

/// What is asked in one attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// What stands in the spec and in ConfigMaps.
    pub(super) maps: bool,
    /// The bundle endpoint.
    pub(super) endpoint: bool,
    /// Addresses of revocation lists.
    pub(super) lists: bool,
}

impl Parts {
    pub(super) const fn any(self) -> bool {
        self.maps || self.endpoint || self.lists
    }
}

/// One attempt.
pub(super) struct Job {
    pub(super) object: FederationPartner,
    pub(super) parts: Parts,
    /// The record so far.
    pub(super) record: Kept,
    /// SHA-256 of the public keys of our own authorities.
    pub(super) ours: Arc<BTreeSet<String>>,
    /// Addresses of pods and Services.
    pub(super) known: Arc<HashSet<IpAddr>>,
}

/// How an attempt ended.
pub(super) struct Outcome {
    pub(super) record: Kept,
    /// Whether the bundle endpoint gave a good bundle.
    pub(super) endpoint: bool,
    /// Whether every address gave a good list.
    pub(super) lists: bool,
}

impl Job {
    pub(super) async fn run(self, asker: &Asker, now: Timestamp) -> Outcome {
        let Self { object, parts, mut record, ours, known } = self;
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let trust = &object.spec.trust;
        if parts.maps {
            maps(asker, &object, &mut record, &ours, now).await;
        }
        let call = Call { asker, namespace: &namespace, known };
        if let Some(endpoint) = trust.spiffe_endpoint.as_ref().filter(|_| parts.endpoint) {
            call.bundle(endpoint, &mut record, &ours, now).await;
        }
        if parts.maps || parts.lists {
            record.retain_lists(&object.spec.revocation);
        }
        let revocation = &object.spec.revocation;
        if let Some(wanted) = revocation.config_map_ref.as_ref().filter(|_| parts.maps)
            && let Some(said) = read(&asker.client, &namespace, wanted, lists::LONGEST).await
        {
            let said = said.map(Bytes::from);
            record = taken(record, map_source(wanted), said, &ours, now).await;
        }
        if parts.lists {
            let fetched = revocation
                .crl_urls
                .iter()
                .map(|url| async { (url.clone(), call.get(url, None, lists::LONGEST).await) });
            for (url, said) in futures::future::join_all(fetched).await {
                record = taken(record, url, said, &ours, now).await;
            }
        }
        let endpoint = record.failure.is_none();
        let lists = !revocation.crl_urls.iter().any(|url| record.list_failures.contains_key(url));
        Outcome { record, endpoint, lists }
    }
}

/// What stands in the spec or in a ConfigMap: roots.
async fn maps(asker: &Asker, object: &FederationPartner, record: &mut Kept, ours: &BTreeSet<String>, now: Timestamp) {
    let trust = &object.spec.trust;
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(pem) = &trust.ca_bundle {
        record.take_text(Ok(pem), ours, now);
    } else if let Some(wanted) = &trust.config_map_ref {
        // No answer says nothing: what was read before stays.
        if let Some(said) = read(&asker.client, namespace, wanted, LONGEST_ROOTS).await {
            let said = said.as_deref().map_err(Clone::clone);
            record.take_text(said, ours, now);
            if let Some(failure) = &mut record.failure {
                let message = format!("ConfigMap {}, key {}: {}", wanted.name, wanted.key, failure.message);
                *failure = Failure::new(failure.kind, message);
            }
        }
    }
}

/// Takes lists over in a task of its own: a parser that panics costs that one source its answer.
async fn taken(
    record: Kept,
    source: String,
    said: Result<Bytes, Failure>,
    ours: &Arc<BTreeSet<String>>,
    now: Timestamp,
) -> Kept {
    let (mut next, name, ours) = (record.clone(), source.clone(), Arc::clone(ours));
    let work = move || {
        let roots = next.roots(&ours);
        next.take_lists(&name, said.as_deref().map_err(Clone::clone), &roots, now);
        next
    };
    guarded(work).await.unwrap_or_else(|failure| {
        let mut record = record;
        record.said_of_lists(&source, Some(failure));
        record
    })
}

/// Runs what parses bytes of others.
pub(super) async fn guarded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|_| {
        Failure::new(FailureKind::Unparsable, "reading it failed in a way that must not be: please report it")
    })
}

/// What calls of one partner share.
struct Call<'a> {
    asker: &'a Asker,
    namespace: &'a str,
    known: Arc<HashSet<IpAddr>>,
}

impl Call<'_> {
    async fn get(&self, url: &str, proof: Option<&Proof>, longest: usize) -> Result<Bytes, Failure> {
        let denied = self.asker.denied.with(Arc::clone(&self.known));
        self.asker.fetcher.get(url, proof, longest, &denied).await.map_err(|error| {
            let kind = match &error {
                FetchError::Identity(_) => FailureKind::EndpointIdentityMismatch,
                _ => FailureKind::FetchFailed,
            };
            Failure::new(kind, error.to_string())
        })
    }

    async fn bundle(&self, endpoint: &SpiffeEndpoint, record: &mut Kept, ours: &Arc<BTreeSet<String>>, now: Timestamp) {
        let proof = match endpoint.profile {
            EndpointProfile::HTTPSWeb => Proof::Web,
            EndpointProfile::HTTPSSPIFFE => {
                self.bootstrap(endpoint, record, ours, now).await;
                let roots: Vec<String> = record.roots(ours).into_iter().map(|root| root.pem).collect();
                if roots.is_empty() {
                    // What is wrong with the first bundle is said already.
                    record.failure.get_or_insert_with(|| Failure::fetch("bootstrapRef has not been read yet"));
                    return;
                }
                Proof::Spiffe { id: endpoint.endpoint_spiffe_id.clone().unwrap_or_default(), roots }
            }
        };
        let said = self.get(&endpoint.url, Some(&proof), spiffe::LONGEST).await;
        let (mut next, ours) = (record.clone(), Arc::clone(ours));
        let work = move || {
            next.take_bundle(said.as_deref().map_err(Clone::clone), &ours, now);
            next
        };
        match guarded(work).await {
            Ok(next) => *record = next,
            Err(failure) => record.failure = Some(failure),
        }
    }

    async fn bootstrap(&self, endpoint: &SpiffeEndpoint, record: &mut Kept, ours: &BTreeSet<String>, now: Timestamp) {
        let Some(wanted) = &endpoint.bootstrap_ref else { return };
        match read(&self.asker.client, self.namespace, wanted, spiffe::LONGEST).await {
            Some(Ok(text)) => record.take_bootstrap(&text, ours, now),
            // Once there is a bundle, it proves the next one.
            Some(Err(failure)) if record.pem.is_empty() => record.failure = Some(failure),
            Some(Err(_)) | None => {}
        }
    }
}

/// One key of a ConfigMap of a partner's namespace, by its name: the operator may list none. `None` = there was no answer.
async fn read(
    client: &Client,
    namespace: &str,
    wanted: &ConfigMapKey,
    longest: usize,
) -> Option<Result<String, Failure>> {
    let ConfigMapKey { name, key } = wanted;
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let said = match tokio::time::timeout(ANSWER, api.get_opt(name)).await.ok()? {
        Ok(None) => Err(format!("ConfigMap {name} does not exist in namespace {namespace}: create it again")),
        Ok(Some(map)) => match map.data.and_then(|mut data| data.remove(key)) {
            Some(text) if text.len() <= longest => Ok(text),
            Some(_) => Err(format!("ConfigMap {name}: {key} must have at most {longest} bytes")),
            None => Err(format!("ConfigMap {name} has no key {key}: write it")),
        },
        Err(kube::Error::Api(status)) if status.code == 403 => Err(format!(
            "the operator may not read ConfigMap {name}: install the chart with partnerConfigMaps.enabled=true, and {namespace} among its namespaces"
        )),
        Err(_) => return None,
    };
    Some(said.map_err(Failure::fetch))
}
