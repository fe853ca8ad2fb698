//! A control server in one file: issues certificates, hands out briefs and routes, remembers what it was told.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use entente::{
    brief::{
        Allow, Brief, CertificateRequest, Cursor, Denied, Egress, MAX_SYNC_REQUEST, OnPeerExpiry, POLL_HOLD_SECONDS,
        PartnerContact, Port, RefusedConnections, Route, RouteCursor, RouteDelta, Standing, SyncRequest, SyncResponse,
        VERSION,
    },
    identity::{DnsName, Identity, SpiffeId},
    pki::{self, authority::Material},
    proxy::Control,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, header::AUTHORIZATION, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;

use super::{
    domain::{Domain, answer, pkcs8},
    wire::provider,
};

/// What the server knows of one pod, and what the pod said.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) server: String,
    pub(crate) token: String,
    pub(crate) lifetime: u32,
    pub(crate) brief: Option<Brief>,
    pub(crate) routes: BTreeMap<IpAddr, Route>,
    pub(crate) routes_version: u64,
    pub(crate) on_demand: bool,
    pub(crate) certificates: usize,
    /// Serials of its certificates, hex, in order.
    pub(crate) serials: Vec<String>,
    /// Whether it gets none, with this code.
    pub(crate) uncertified: Option<&'static str>,
    /// UIDs of pods whose addresses it wants.
    pub(crate) wanted: Vec<String>,
    pub(crate) asked: Vec<IpAddr>,
    pub(crate) asked_names: Vec<DnsName>,
    pub(crate) refusals: Vec<RefusedConnections>,
    /// The last contact with each partner, as it was told last.
    pub(crate) contacts: BTreeMap<String, PartnerContact>,
    pub(crate) acknowledged: Option<Cursor>,
    /// Serial of the certificate that it last said to hold.
    pub(crate) holds: String,
}

/// The control server's world; tests change it, polls wake up.
#[derive(Clone, Default)]
pub(crate) struct World {
    pub(crate) pods: BTreeMap<String, Pod>,
    /// Answers requests whose path begins so with this status and code instead.
    pub(crate) denied: Option<(&'static str, u16, &'static str)>,
    /// Signs instead of the domain's own authority.
    pub(crate) authority: Option<Material>,
    /// Answers with briefs break off.
    pub(crate) truncated: bool,
    /// Requests that were denied.
    pub(crate) denials: usize,
}

pub(crate) struct Server {
    pub(crate) domain: Domain,
    pub(crate) address: SocketAddr,
    pub(crate) authority: String,
    world: Mutex<World>,
    changed: watch::Sender<()>,
}

impl Server {
    /// Starts a server on `address`, which its certificate names.
    pub(crate) async fn start(address: IpAddr) -> Arc<Self> {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        Self::serve(listener)
    }

    pub(crate) fn serve(listener: TcpListener) -> Arc<Self> {
        let domain = Domain::new();
        let address = listener.local_addr().unwrap();
        let (config, authority) = serving(&domain, address.ip());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let changed = watch::Sender::new(());
        let server = Arc::new(Self { domain, address, authority, world: Mutex::default(), changed });
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, server) = (acceptor.clone(), serving.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let leaf = stream.get_ref().1.peer_certificates().map(|chain| chain[0].clone());
                    let service = service_fn(|request| {
                        let (server, leaf) = (server.clone(), leaf.clone());
                        async move { server.answer(request, leaf).await }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        server
    }

    pub(crate) fn control(&self) -> Control {
        Control { address: self.address.to_string(), authority: self.authority.clone() }
    }

    /// Changes the world and wakes held polls.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let answer = change(&mut self.world.lock().unwrap());
        self.changed.send_replace(());
        answer
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.world.lock().unwrap())
    }

    /// Declares a pod with this brief.
    pub(crate) fn declare(&self, uid: &str, server: &str, brief: Option<Brief>) {
        let pod = Pod {
            server: server.to_owned(),
            token: format!("token of {uid}"),
            lifetime: 3600,
            brief,
            routes: BTreeMap::new(),
            routes_version: 1,
            on_demand: false,
            certificates: 0,
            serials: vec![],
            uncertified: None,
            wanted: vec![],
            asked: vec![],
            asked_names: vec![],
            refusals: vec![],
            contacts: BTreeMap::new(),
            acknowledged: None,
            holds: String::new(),
        };
        self.change(|world| world.pods.insert(uid.to_owned(), pod));
    }

    /// Changes a pod's brief; its cursor moves on.
    pub(crate) fn change_brief(&self, uid: &str, change: impl FnOnce(&mut Brief)) -> Cursor {
        self.change(|world| {
            let brief = world.pods.get_mut(uid).unwrap().brief.as_mut().unwrap();
            brief.cursor.revision += 1;
            brief.cursor.hash = format!("hash {}", brief.cursor.revision);
            change(brief);
            brief.cursor.clone()
        })
    }

    /// Adds a serial to what a pod's brief says is revoked; the next CRL.
    pub(crate) fn revoke(&self, uid: &str, serial: &str) -> Cursor {
        let issuer = self.domain.issuer();
        self.change_brief(uid, |brief| {
            let revocation = brief.scopes[0].revocation.as_mut().unwrap();
            revocation.number += 1;
            revocation.serials.get_mut(&issuer).unwrap().push(serial.to_owned());
        })
    }

    /// The serial of the certificate that a pod holds.
    pub(crate) fn serial(&self, uid: &str) -> String {
        self.look(|world| world.pods[uid].serials.last().unwrap().clone())
    }

    /// Says whose own address `address` is.
    pub(crate) fn owned(&self, uid: &str, address: IpAddr, pod: &str) {
        self.change(|world| {
            let table = world.pods.get_mut(uid).unwrap();
            table.routes.get_mut(&address).unwrap().pod = Some(pod.to_owned());
            table.routes_version += 1;
        });
    }

    /// Says which DNS names may lead to `address`.
    pub(crate) fn named(&self, uid: &str, address: IpAddr, names: &[&str]) {
        self.change(|world| {
            let table = world.pods.get_mut(uid).unwrap();
            let names = names.iter().map(|name| DnsName::parse(name).unwrap()).collect();
            table.routes.get_mut(&address).unwrap().names = names;
            table.routes_version += 1;
        });
    }

    /// Adds a port to a pod's route at `address`.
    pub(crate) fn route(&self, uid: &str, address: SocketAddr, server: &SpiffeId, mode: entente::brief::Mode) {
        self.change(|world| {
            let pod = world.pods.get_mut(uid).unwrap();
            let route = pod.routes.entry(address.ip()).or_insert_with(|| Route {
                address: address.ip(),
                server: server.clone(),
                pod: None,
                sidecar: true,
                ports: BTreeMap::new(),
                names: vec![],
            });
            route.server = server.clone();
            route.ports.insert(address.port(), mode);
            pod.routes_version += 1;
        });
    }

    pub(crate) fn brief(&self, server: &str, ports: Vec<Port>) -> Brief {
        let identity = self.domain.id(server);
        Brief {
            version: VERSION,
            cursor: Cursor { domain: "domain 1".to_owned(), revision: 1, hash: "hash 1".to_owned() },
            names: vec![identity.topology_name().unwrap()],
            identity,
            standing: Standing::Active,
            lifetime_seconds: 3600,
            ports,
            edges: vec![],
            egress: Egress::default(),
            issuer: self.domain.issuer(),
            renew_within_seconds: 0,
            on_peer_expiry: OnPeerExpiry::default(),
            scopes: vec![self.domain.scope()],
            drain_seconds: 30,
            partners: vec![],
            web_roots: vec![],
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        leaf: Option<CertificateDer<'static>>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let path = request.uri().path().to_owned();
        let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = Limited::new(request.into_body(), MAX_SYNC_REQUEST).collect().await.unwrap().to_bytes();
        if let Some(denied) = self.denied(&path) {
            return Ok(denied);
        }
        Ok(match path.as_str() {
            "/v1/certificate" => self.certify(token.as_deref(), &serde_json::from_slice(&body).unwrap()),
            "/v1/sync" => self.sync(leaf, serde_json::from_slice(&body).unwrap()).await,
            _ => deny(404, "NoSuchPath"),
        })
    }

    fn denied(&self, asked: &str) -> Option<Response<Full<Bytes>>> {
        let mut world = self.world.lock().unwrap();
        let (_, status, code) = world.denied.filter(|(path, _, _)| asked.starts_with(path))?;
        world.denials += 1;
        Some(deny(status, code))
    }

    fn certify(&self, token: Option<&str>, request: &CertificateRequest) -> Response<Full<Bytes>> {
        let mut world = self.world.lock().unwrap();
        let presented = token.and_then(|token| token.strip_prefix("Bearer "));
        let Some((uid, pod)) = world.pods.iter_mut().find(|(_, pod)| Some(pod.token.as_str()) == presented) else {
            return deny(401, "TokenInvalid");
        };
        pod.certificates += 1;
        if let Some(code) = pod.uncertified {
            return deny(403, code);
        }
        let mut names = self.domain.names(&pod.server, uid);
        if let Some(brief) = &pod.brief {
            names.dns_names = brief.names.iter().cloned().collect();
        }
        let (uid, lifetime) = (uid.clone(), pod.lifetime);
        let answer = match &world.authority {
            Some(material) => answer(material, &request.csr, names, lifetime),
            None => self.domain.answer(&request.csr, names, lifetime),
        };
        let leaf = Identity::of(&pki::certificate(&answer.chain[0]).unwrap()).unwrap();
        world.pods.get_mut(&uid).unwrap().serials.push(pki::hex(&leaf.serial));
        json(&answer)
    }

    async fn sync(&self, leaf: Option<CertificateDer<'static>>, request: SyncRequest) -> Response<Full<Bytes>> {
        let Some(uid) = leaf.and_then(|leaf| Identity::of(&leaf).ok()).and_then(|identity| identity.pod_uid) else {
            return deny(401, "NoCertificate");
        };
        let asks = !request.ask.is_empty() || !request.ask_names.is_empty();
        let at_once = asks || !request.report.refusals.is_empty();
        {
            let mut world = self.world.lock().unwrap();
            let Some(pod) = world.pods.get_mut(&uid) else { return deny(403, "PodNotFound") };
            pod.acknowledged.clone_from(&request.after);
            pod.holds.clone_from(&request.report.leaf_serial);
            pod.refusals.extend(request.report.refusals.iter().cloned());
            pod.contacts.clone_from(&request.report.contacts);
            pod.asked.extend(&request.ask);
            pod.asked_names.extend(request.ask_names.iter().cloned());
            pod.wanted.clone_from(&request.pods);
        }
        let mut changed = self.changed.subscribe();
        let hold = tokio::time::sleep(Duration::from_secs(POLL_HOLD_SECONDS));
        tokio::pin!(hold);
        loop {
            if let Some(denied) = self.denied("/v1/sync") {
                return denied;
            }
            let news = self.look(|world| news(world.pods.get(&uid)?, &request));
            match news {
                Some(news) if news.brief.is_some() && self.look(|world| world.truncated) => {
                    self.world.lock().unwrap().denials += 1;
                    return broken_off(&news);
                }
                Some(news) => return json(&news),
                None if at_once => return json(&SyncResponse::default()),
                None => {}
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = &mut hold => return json(&SyncResponse::default()),
            }
        }
    }
}

fn news(pod: &Pod, request: &SyncRequest) -> Option<SyncResponse> {
    let brief = pod.brief.clone().filter(|brief| request.after.as_ref() != Some(&brief.cursor));
    let cursor = RouteCursor { epoch: 1, version: pod.routes_version };
    let stale = request.routes != Some(cursor);
    let wanted = |route: &&Route| {
        let asked = request.ask.contains(&route.address) || request.keep.contains(&route.address);
        let named = route.names.iter().any(|name| request.ask_names.contains(name));
        !pod.on_demand || asked || named || route.pod.as_ref().is_some_and(|uid| request.pods.contains(uid))
    };
    let put: Vec<_> = pod.routes.values().filter(wanted).cloned().collect();
    let named = |name| pod.routes.values().any(|route| route.names.contains(name));
    let asked =
        request.ask.iter().any(|address| pod.routes.contains_key(address)) || request.ask_names.iter().any(named);
    let routes = (stale || asked).then(|| RouteDelta {
        cursor,
        reset: !pod.on_demand,
        on_demand: pod.on_demand,
        put,
        remove: vec![],
    });
    (brief.is_some() || routes.is_some()).then_some(SyncResponse { brief, routes })
}

pub(crate) fn everyone() -> Allow {
    Allow::all_declared()
}

fn json(message: &impl serde::Serialize) -> Response<Full<Bytes>> {
    Response::new(Full::new(serde_json::to_vec(message).unwrap().into()))
}

/// Half of it, as if it were all.
fn broken_off(message: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let whole = serde_json::to_vec(message).unwrap();
    Response::new(Full::new(whole[..whole.len() / 2].to_vec().into()))
}

fn deny(status: u16, code: &str) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(&Denied { code: code.to_owned(), message: "as the test wants it".to_owned() });
    let mut response = Response::new(Full::new(body.unwrap().into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// A serving certificate under an authority of its own; clients may present a leaf of the domain.
fn serving(domain: &Domain, address: IpAddr) -> (ServerConfig, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = ca.self_signed(&ca_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::IpAddress(address)];
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(pki::certificate(&domain.material.root_certificate).unwrap()).unwrap();
    let callers = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(callers)
        .with_single_cert(vec![leaf], pkcs8(&key))
        .unwrap();
    (config, authority)
}
