//! Everything that one replica sees of the cluster, as tables; together they are the observed [`World`].

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service};
use kube::{Api, Client, core::DeserializeGuard, runtime::watcher::Config};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::task::JoinSet;

use super::{
    sources::record,
    watch::{Signal, Table, keep},
};
use crate::{
    api::{FederationPartner, TrustDomain, TrustedServer},
    pki::{
        self,
        authority::Material,
        bundle,
        ledger::Ledger,
        register::{Loaded, Register},
    },
    plan::{AuthorityFacts, AuthoritySeen, LedgerSeen, World, bundles, own_keys, partners},
    sidecar,
    topology::{
        Declared, Key, PartnerKey, ServerKey,
        facts::{PodFacts, ServiceFacts},
        kept::KeptSeen,
    },
};

/// Label of every object that we write, with its part.
pub(super) const PART: &str = "entente.dev/part";
/// Prefix of an authority's Secret.
pub(super) const AUTHORITY: &str = "entente-authority-";
/// Prefix of a ledger.
pub(super) const LEDGER: &str = "entente-ledger-";
/// Name of the ConfigMap that asks for a first domain.
const FIRST_DOMAIN: &str = "entente-first-domain";

/// Registers with their authorities, by domain.
pub(super) type Authorities = BTreeMap<String, Result<(Arc<Register>, Loaded), String>>;

type Readable<T> = Result<T, (Key, String)>;

/// The tables of one replica.
#[derive(Debug)]
pub(super) struct Stores {
    domains: Arc<Table<Readable<TrustDomain>>>,
    servers: Arc<Table<Readable<TrustedServer>>>,
    partners: Arc<Table<Readable<FederationPartner>>>,
    namespaces: Arc<Table<(Option<String>, bool)>>,
    pods: Arc<Table<PodFacts>>,
    services: Arc<Table<ServiceFacts>>,
    registers: Arc<Table<Result<Arc<Register>, String>>>,
    supplied: Arc<Table<Arc<Material>>>,
    bundles: Arc<Table<BTreeMap<String, String>>>,
    partner_bundles: Arc<Table<BTreeMap<String, String>>>,
    ledgers: Arc<Table<LedgerSeen>>,
    kept: Arc<Table<(PartnerKey, KeptSeen)>>,
    first_domain: Arc<Table<TrustDomain>>,
}

impl Stores {
    /// Starts all watches.
    pub(super) fn start(client: &Client, namespace: &str, signal: &Signal, tasks: &mut JoinSet<()>) -> Self {
        let all = Config::default;
        let named = |name: &str| Config::default().fields(&format!("metadata.name={name}"));
        let own_secrets = || Api::<Secret>::namespaced(client.clone(), namespace);
        let own_maps = || Api::<ConfigMap>::namespaced(client.clone(), namespace);
        let watched = |config: Config| (config, signal.clone());
        let (config, raise) = watched(all());
        let domains =
            keep(tasks, Api::<DeserializeGuard<TrustDomain>>::all(client.clone()), config, raise, read_domain);
        let (config, raise) = watched(all());
        let servers =
            keep(tasks, Api::<DeserializeGuard<TrustedServer>>::all(client.clone()), config, raise, read_server);
        let (config, raise) = watched(all());
        let federated =
            keep(tasks, Api::<DeserializeGuard<FederationPartner>>::all(client.clone()), config, raise, read_partner);
        let (config, raise) = watched(all());
        let namespaces = keep(tasks, Api::<Namespace>::all(client.clone()), config, raise, |namespace| {
            let label = namespace.metadata.labels.unwrap_or_default().remove(sidecar::DOMAIN_LABEL);
            Some((label, namespace.metadata.deletion_timestamp.is_some()))
        });
        let (config, raise) = watched(all());
        let pods = keep(tasks, Api::<Pod>::all(client.clone()), config, raise, |pod| Some(PodFacts::of(&pod)));
        let (config, raise) = watched(all());
        let services =
            keep(tasks, Api::<Service>::all(client.clone()), config, raise, |service| Some(ServiceFacts::of(&service)));
        let (config, raise) = watched(all().labels(&format!("{PART}=authority")));
        let registers = keep(tasks, own_secrets(), config, raise, |secret| Some(read_register(&secret)));
        let (config, raise) = watched(all().fields("type=kubernetes.io/tls"));
        let supplied = keep(tasks, own_secrets(), config, raise, |secret| supplied(&secret).map(Arc::new));
        let all_maps = || Api::<ConfigMap>::all(client.clone());
        let (config, raise) = watched(named(bundles::NAME));
        let bundles = keep(tasks, all_maps(), config, raise, |map| Some(map.data.unwrap_or_default()));
        let (config, raise) = watched(named(partners::NAME));
        let partner_bundles = keep(tasks, all_maps(), config, raise, |map| Some(map.data.unwrap_or_default()));
        let (config, raise) = watched(all().labels(&format!("{PART}=ledger")));
        let ledgers = keep(tasks, own_maps(), config, raise, |map| read_ledger(&map));
        let (config, raise) = watched(all().labels(&format!("{PART}={}", record::LABEL)));
        let kept = keep(tasks, own_maps(), config, raise, |map| record::read(&map));
        let (config, raise) = watched(named(FIRST_DOMAIN));
        let first_domain = keep(tasks, own_maps(), config, raise, |map| {
            serde_json::from_str(map.data.as_ref()?.get("trustDomain")?).ok()
        });
        Self {
            domains,
            servers,
            partners: federated,
            namespaces,
            pods,
            services,
            registers,
            supplied,
            bundles,
            partner_bundles,
            ledgers,
            kept,
            first_domain,
        }
    }

    /// Whether every table has its first list.
    pub(super) fn are_synced(&self) -> bool {
        self.domains.is_synced()
            && self.servers.is_synced()
            && self.partners.is_synced()
            && self.namespaces.is_synced()
            && self.pods.is_synced()
            && self.services.is_synced()
            && self.registers.is_synced()
            && self.supplied.is_synced()
            && self.bundles.is_synced()
            && self.partner_bundles.is_synced()
            && self.ledgers.is_synced()
            && self.kept.is_synced()
            && self.first_domain.is_synced()
    }

    /// Pods of our own namespace.
    pub(super) fn pods_in(&self, namespace: &str) -> Vec<PodFacts> {
        self.pods.read(|rows| rows.values().filter(|pod| pod.namespace == namespace).cloned().collect())
    }

    /// The registers with their authorities loaded, by domain; why not, where they cannot be.
    pub(super) fn authorities(&self, now: Timestamp) -> Authorities {
        let name = |key: String| key.split_once(AUTHORITY).map(|(_, domain)| domain.to_owned());
        let load = |register: Result<Arc<Register>, String>| {
            let register = register?;
            let loaded = register.load(now).map_err(|error| error.to_string())?;
            Ok((register, loaded))
        };
        let rows = self.registers.rows().into_iter();
        rows.filter_map(|(key, register)| Some((name(key)?, load(register)))).collect()
    }

    /// The world as the tables have it; what the sidecars say is not in them.
    pub(super) fn world(&self, authorities: &Authorities) -> World {
        let mut unreadable = vec![];
        let domains = readable(self.domains.rows(), &mut unreadable);
        let servers = readable(self.servers.rows(), &mut unreadable);
        let partners = readable(self.partners.rows(), &mut unreadable);
        let bare = |key: &str| key.rsplit('/').next().unwrap_or_default().to_owned();
        let rows = self.namespaces.rows();
        let ending = rows.iter().filter(|(_, (_, ending))| *ending).map(|(key, _)| bare(key)).collect();
        let namespaces = rows.into_iter().map(|(key, (label, _))| (bare(&key), label)).collect();
        let by_namespace = |table: &Table<BTreeMap<String, String>>| {
            let rows = table.rows().into_iter();
            rows.map(|(key, data)| (key.split('/').next().unwrap_or_default().to_owned(), data)).collect()
        };
        let sound = authorities.values().flatten();
        let seen = authorities.iter().map(|(domain, loaded)| {
            let seen = match loaded {
                Ok((register, loaded)) => AuthoritySeen::Sound(AuthorityFacts::of(register, loaded)),
                Err(why) => AuthoritySeen::Broken(why.clone()),
            };
            (domain.clone(), seen)
        });
        World {
            declared: Declared {
                domains,
                servers,
                partners,
                kept: self.kept.rows().into_values().collect(),
                web_roots: Arc::default(),
                own_keys: sound.flat_map(|(_, loaded)| own_keys(loaded)).collect(),
                namespaces,
                pods: self.pods.rows().into_values().collect(),
                services: self.services.rows().into_values().collect(),
            },
            unreadable,
            ending_namespaces: ending,
            first_domain: self.first_domain.rows().into_values().next(),
            authorities: seen.collect(),
            bundles: by_namespace(&self.bundles),
            partner_bundles: by_namespace(&self.partner_bundles),
            supplied: self.supplied.rows().into_iter().map(|(key, material)| (bare(&key), material)).collect(),
            ledgers: self.ledgers.rows().into_iter().map(|(key, ledger)| (bare(&key), ledger)).collect(),
            ..World::default()
        }
    }
}

fn readable<T>(rows: BTreeMap<String, Readable<T>>, unreadable: &mut Vec<(Key, String)>) -> Vec<T> {
    let keep = |row| match row {
        Ok(object) => Some(object),
        Err(problem) => {
            unreadable.push(problem);
            None
        }
    };
    rows.into_values().filter_map(keep).collect()
}

fn read_domain(guard: DeserializeGuard<TrustDomain>) -> Option<Readable<TrustDomain>> {
    Some(guard.0.map_err(|error| (Key::Domain(error.metadata.name.unwrap_or_default()), error.error)))
}

fn read_server(guard: DeserializeGuard<TrustedServer>) -> Option<Readable<TrustedServer>> {
    Some(guard.0.map_err(|error| {
        let namespace = error.metadata.namespace.unwrap_or_default();
        (Key::Server(ServerKey { namespace, name: error.metadata.name.unwrap_or_default() }), error.error)
    }))
}

fn read_partner(guard: DeserializeGuard<FederationPartner>) -> Option<Readable<FederationPartner>> {
    Some(guard.0.map_err(|error| {
        let namespace = error.metadata.namespace.unwrap_or_default();
        (Key::Partner(PartnerKey { namespace, name: error.metadata.name.unwrap_or_default() }), error.error)
    }))
}

/// Reads a register's Secret.
pub(super) fn read_register(secret: &Secret) -> Result<Arc<Register>, String> {
    let data = secret.data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())).collect();
    Register::parse(&data).map(Arc::new).map_err(|error| error.to_string())
}

/// An owner's authority; what is missing is empty, and found broken when it is loaded.
fn supplied(secret: &Secret) -> Option<Material> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| data.get(key).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
    let root_certificate = text("ca.crt").unwrap_or_default();
    let root = pki::certificate(&root_certificate);
    let chain = text("tls.crt").unwrap_or_default();
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).filter_map(Result::ok);
    // Some tools put the root at the end of the chain as well.
    let mut chain = chain.map(|der| (root.as_ref() == Some(&der), bundle::encode(&der)));
    let issuer_certificate = chain.next().map(|(_, pem)| pem).unwrap_or_default();
    Some(Material {
        root_certificate,
        root_key: None,
        between: chain.filter(|(is_root, _)| !is_root).map(|(_, pem)| pem).collect(),
        issuer_certificate,
        issuer_key: text("tls.key").unwrap_or_default(),
        root_crl: text("ca.crl"),
    })
}

fn read_ledger(map: &ConfigMap) -> Option<LedgerSeen> {
    let owner = map.metadata.annotations.as_ref()?.get(sidecar::SERVER_LABEL)?;
    let (namespace, name) = owner.split_once('/')?;
    let ledger = Ledger::parse(map.data.as_ref().unwrap_or(&BTreeMap::new())).ok().map(Arc::new);
    let server = ServerKey { namespace: namespace.to_owned(), name: name.to_owned() };
    Some(LedgerSeen { server, ledger })
}
