//! Secrets for software that holds its key itself. The operator makes the key, records, signs and writes; it never
//! takes over a Secret that somebody else wrote.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use rcgen::KeyPair;
use serde_json::json;
use tracing::warn;

use super::{
    apply::{ApplyError, within},
    audit::{Audit, Line},
    ledgers::{Ledgers, NotRecorded},
    stores::{AUTHORITY, PART, read_register},
};
use crate::{
    identity::DnsName,
    pki::{
        authority::{Authority, Serial},
        bundle::Bundle,
        csr::{self, Csr, Names},
        intake::{Recorded, Unrecorded},
        ledger::{Holder, LedgerError, Record, key_text, names_text},
    },
    plan::secrets::{FINGERPRINT_ANNOTATION, SERIAL_ANNOTATION, SecretSeen},
    telemetry,
    topology::{Domain, Server, ServerKey},
};

/// A Secret is looked at again after this time, in seconds: somebody may have removed it.
const LOOK_SECONDS: i64 = 60;
/// Secrets that one round looks at.
const AT_ONCE: usize = 16;
/// Part of the objects that are such Secrets.
pub(super) const CERTIFICATE: &str = "certificate";

/// What was last seen of the Secrets, and when.
#[derive(Debug, Default)]
pub(super) struct Secrets(BTreeMap<ServerKey, (String, Timestamp, SecretSeen)>);

impl Secrets {
    /// Looks at those that were not looked at lately.
    pub(super) async fn look<'a>(
        &mut self,
        client: &Client,
        servers: impl Iterator<Item = &'a Server>,
        now: Timestamp,
    ) -> BTreeMap<ServerKey, SecretSeen> {
        let asked: Vec<_> = servers.filter_map(|server| Some((&server.key, server.secret_name.clone()?))).collect();
        self.0.retain(|key, (name, _, _)| asked.iter().any(|(asked, wanted)| *asked == key && wanted == name));
        let stale = |at: Timestamp| now.as_second() - at.as_second() >= LOOK_SECONDS || at > now;
        let due = asked.iter().filter(|(key, _)| self.0.get(key).is_none_or(|(_, at, _)| stale(*at)));
        let due: Vec<_> = due.take(AT_ONCE).cloned().collect();
        for (key, name) in due {
            if let Some(seen) = seen(client, &key.namespace, &name).await {
                let blocked = matches!(seen, SecretSeen::Foreign | SecretSeen::Denied);
                if blocked && self.0.get(key).is_none_or(|(_, _, before)| *before != seen) {
                    warn!(server = %key, secret = name, ?seen, "the Secret of a server is somebody else's or may not be written");
                }
                self.0.insert(key.clone(), (name, now, seen));
            }
        }
        self.0.iter().map(|(key, (_, _, seen))| (key.clone(), seen.clone())).collect()
    }

    /// What was written is looked at anew.
    pub(super) fn forget(&mut self, key: &ServerKey) {
        self.0.remove(key);
    }
}

/// A patch that changes nothing answers what there is: the operator need not have the right to read Secrets.
async fn seen(client: &Client, namespace: &str, name: &str) -> Option<SecretSeen> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    let answer =
        within(async { Ok::<_, ApplyError>(api.patch(name, &PatchParams::default(), &Patch::Merge(json!({}))).await) });
    match answer.await.ok()? {
        Ok(secret) => {
            let ours = secret.metadata.labels.as_ref().and_then(|labels| labels.get(PART));
            if ours.map(String::as_str) != Some(CERTIFICATE) {
                return Some(SecretSeen::Foreign);
            }
            let said = |key: &str| secret.metadata.annotations.as_ref()?.get(key).cloned();
            Some(SecretSeen::Ours {
                serial: said(SERIAL_ANNOTATION).unwrap_or_default(),
                fingerprint: said(FINGERPRINT_ANNOTATION).unwrap_or_default(),
            })
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Some(SecretSeen::Absent),
        Err(kube::Error::Api(status)) if status.code == 403 => Some(SecretSeen::Denied),
        // Not known is not absent.
        Err(_) => None,
    }
}

/// Makes key and certificate of `server` and writes them: the record first, then the signature, then the Secret.
pub(super) async fn write(
    client: &Client,
    namespace: &str,
    (audit, ledgers): (&Audit, &Ledgers),
    (server, domain, names): (&Server, &Domain, BTreeSet<DnsName>),
    fingerprint: &str,
) -> Result<(), ApplyError> {
    let register = |error: &dyn std::fmt::Display| ApplyError::Register(error.to_string());
    let name = server.secret_name.clone().ok_or(ApplyError::Conflict)?;
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let held = within(secrets.get(&format!("{AUTHORITY}{}", domain.name))).await?;
    let loaded = read_register(&held).map_err(ApplyError::Register)?;
    let loaded = loaded.load(telemetry::now()).map_err(|error| register(&error))?;
    let key = KeyPair::generate()?;
    let csr = Csr::parse(&csr::request(&key)?).map_err(|error| register(&error))?;
    let key_id = key_text(csr.key_sha256());
    let Recorded { serial, validity, occasion } =
        record(ledgers, (server, domain), &name, (key_id.clone(), names_text(&names)), &loaded.active).await?;
    let told = names.clone();
    let names = Names { id: server.id.clone(), dns_names: names, pod_uid: None };
    let signed = loaded.active.sign(&csr.grant(names), serial, validity).map_err(|error| register(&error))?;
    let roots = Bundle::of(loaded.members.iter().map(|(_, authority)| authority.root_pem())).render();
    let data = [("tls.crt", signed.chain.concat()), ("tls.key", key.serialize_pem()), ("ca.crt", roots)];
    let annotations = [(SERIAL_ANNOTATION, serial.to_string()), (FINGERPRINT_ANNOTATION, fingerprint.to_owned())];
    put(client, server, &name, data, annotations).await?;
    let mut line = Line {
        code: occasion.word().to_owned(),
        serial: Some(serial.to_string()),
        namespace: Some(server.key.namespace.clone()),
        secret: Some(name),
        key: Some(key_id),
        issuer: Some(loaded.active.key_id().to_owned()),
        not_after: Some(validity.not_after.to_string()),
        server: Some(server.key.to_string()),
        server_uid: Some(server.uid.clone()),
        ..Line::default()
    };
    line.names(&server.id, &told);
    audit.tell(line);
    Ok(())
}

/// The record of what will be signed, in the server's ledger.
async fn record(
    ledgers: &Ledgers,
    (server, domain): (&Server, &Domain),
    secret: &str,
    (key, names): (String, String),
    authority: &Authority,
) -> Result<Recorded, ApplyError> {
    let now = telemetry::now();
    let validity = authority.leaf_validity(domain.lifetime_seconds, domain.skew_seconds, now);
    let record = Record {
        serial: Serial::from_random(telemetry::random()),
        holder: Holder::Secret(secret.to_owned()),
        key,
        names,
        issuer: authority.key_id().to_owned(),
        validity: validity.map_err(|error| ApplyError::Register(error.to_string()))?,
        recorded: now,
        revoked: None,
    };
    ledgers.record(server, record, secret).await.map_err(|why| match why {
        NotRecorded::Refused(Unrecorded::Conflict | Unrecorded::Ledger(LedgerError::CreatedAnew)) => {
            ApplyError::Conflict
        }
        why => ApplyError::Register(why.to_string()),
    })
}

/// Whose end is the Secret's: the server's, or the domain's whose bundle endpoint it is for.
fn owner(server: &Server) -> OwnerReference {
    let (kind, name) =
        if server.built_in { ("TrustDomain", &server.domain) } else { ("TrustedServer", &server.key.name) };
    OwnerReference {
        api_version: "entente.dev/v1alpha1".to_owned(),
        kind: kind.to_owned(),
        name: name.clone(),
        uid: server.uid.clone(),
        ..OwnerReference::default()
    }
}

/// Creates the Secret, or replaces the content of one that is ours.
async fn put(
    client: &Client,
    server: &Server,
    name: &str,
    data: [(&str, String); 3],
    annotations: [(&str, String); 2],
) -> Result<(), ApplyError> {
    let api = Api::<Secret>::namespaced(client.clone(), &server.key.namespace);
    let data: BTreeMap<_, _> =
        data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect();
    let annotations: BTreeMap<_, _> = annotations.into_iter().map(|(key, text)| (key.to_owned(), text)).collect();
    let labels = [(PART, CERTIFICATE), ("app.kubernetes.io/managed-by", "entente")];
    let fresh = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            annotations: Some(annotations.clone()),
            owner_references: Some(vec![owner(server)]),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data.clone()),
        ..Secret::default()
    };
    match within(api.create(&PostParams::default(), &fresh)).await {
        Err(ApplyError::Conflict) => {}
        other => return other.map(drop),
    }
    let label = format!("/metadata/labels/{}", PART.replace('/', "~1"));
    let patch: json_patch::Patch = serde_json::from_value(json!([
        {"op": "test", "path": label, "value": CERTIFICATE},
        {"op": "add", "path": "/metadata/annotations", "value": annotations},
        {"op": "replace", "path": "/data", "value": data},
    ]))
    .map_err(|error| ApplyError::Register(error.to_string()))?;
    within(api.patch(name, &PatchParams::default(), &Patch::<Secret>::Json(patch))).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Declared, Topology};

    #[test]
    fn a_secret_goes_with_its_server_and_that_of_a_bundle_endpoint_with_its_domain() {
        let object = |kind: &str, meta, spec| json!({"apiVersion": "entente.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec});
        let domain = json!({"spiffeTrustDomain": "contoso.example", "dnsSuffixes": ["contoso.example"]});
        let server = json!({"selector": {"matchLabels": {"app": "web"}}, "serviceAccountName": "web"});
        let domain = object("TrustDomain", json!({"name": "contoso", "uid": "d1"}), domain);
        let server = object("TrustedServer", json!({"name": "web", "namespace": "shop", "uid": "s1"}), server);
        let declared = Declared {
            domains: vec![serde_json::from_value(domain).unwrap()],
            servers: vec![serde_json::from_value(server).unwrap()],
            namespaces: [("shop".to_owned(), Some("contoso".to_owned()))].into(),
            bundle_endpoint: Some("entente-system".to_owned()),
            ..Declared::default()
        };
        let (topology, _) = Topology::resolve(&declared);
        let owners = topology.servers().chain(topology.endpoints()).map(owner);
        let owners: Vec<_> = owners.map(|owner| format!("{} {} {}", owner.kind, owner.name, owner.uid)).collect();
        assert_eq!(owners, ["TrustedServer web s1", "TrustDomain contoso d1"]);
    }
}
