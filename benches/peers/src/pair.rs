//! A and B of one peer: ours by the real program under a small control server, the others by their configurations.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use entente::{
    brief::{Allow, AllowedServer, Brief, Mode, Port},
    sidecar,
};

use crate::{
    network::{self, CLIENT, CONTROL, Network, SERVED, SERVER},
    peer::{Peer, Places, Role, Running},
    support::{control::Server, eventually, place, place_programs},
    trust::{self, Revocations},
};

/// Everything that peers are started from.
pub(crate) struct Laboratory {
    pub(crate) network: Network,
    pub(crate) control: Arc<Server>,
    pub(crate) revocations: Revocations,
    pub(crate) places: Places,
    entente: PathBuf,
    resolv_conf: PathBuf,
    /// Removed when dropped.
    _folder: tempfile::TempDir,
}

impl Laboratory {
    /// Makes the network and the trust domain. `entente` and `envoy` are programs.
    pub(crate) async fn new(entente: &Path, envoy: &Path) -> anyhow::Result<Self> {
        let temporary = tempfile::tempdir()?;
        let folder = temporary.path().to_owned();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(folder.join("run"))?;
        chown(folder.join("run"), Some(sidecar::UID), Some(sidecar::UID))?;
        // The peers' user may not be able to reach where the programs are.
        let entente = place_programs(entente, &folder)
            .with_context(|| format!("cannot use {} and what lies beside it", entente.display()))?;
        let program = folder.join("envoy");
        place(envoy, &program).with_context(|| format!("cannot use {}", envoy.display()))?;
        let envoy = program;
        let resolv_conf = folder.join("resolv.conf");
        fs::write(&resolv_conf, format!("nameserver {CONTROL}\n"))?;
        let network = Network::new(&entente, &resolv_conf).await?;
        let control = Server::start(CONTROL.parse()?).await;
        let revocations = Revocations::new();
        trust::write(&folder, &control.domain, &revocations)?;
        let [client, server] = ["client", "server"].map(|server| control.domain.id(server));
        let fillings = vec![
            ("FOLDER", folder.display().to_string()),
            ("CLIENT_NAME", trust::name(&client)),
            ("SERVER_NAME", trust::name(&server)),
            ("CLIENT_ID", client.to_string()),
            ("SERVER_ID", server.to_string()),
        ];
        let places = Places { folder, envoy, fillings };
        let laboratory = Self { network, control, revocations, places, entente, resolv_conf, _folder: temporary };
        laboratory.declare();
        Ok(laboratory)
    }

    /// Tells the control server of both pods.
    fn declare(&self) {
        let allowed = AllowedServer { id: self.control.domain.id("client"), target_port: None };
        let port = Port {
            name: "served".to_owned(),
            port: 8080,
            target_port: 8080,
            mode: Mode::MutualTls,
            allow: Allow { servers: vec![allowed], ..Allow::default() },
            server_tls: None,
        };
        self.control.declare(CLIENT, "client", Some(self.brief("client", vec![])));
        self.control.declare(SERVER, "server", Some(self.brief("server", vec![port])));
        if let Ok(served) = SERVED.parse() {
            self.control.route(CLIENT, served, &self.control.domain.id("server"), Mode::MutualTls);
            self.control.owned(CLIENT, served.ip(), SERVER);
        }
    }

    /// Whether the next sidecars know each other as such, and so let connections share a handshake.
    pub(crate) fn shares(&self, known: bool) {
        self.control.change(|world| {
            for route in world.pods.get_mut(CLIENT).into_iter().flat_map(|pod| pod.routes.values_mut()) {
                route.sidecar = known;
            }
        });
    }

    fn brief(&self, server: &str, ports: Vec<Port>) -> Brief {
        let mut brief = self.control.brief(server, ports);
        let issuer = self.control.domain.issuer();
        if let Some(revocation) = &mut brief.scopes[0].revocation {
            revocation.serials = BTreeMap::from([(issuer, self.revocations.hex())]);
        }
        brief
    }

    /// Starts both proxies of a peer and waits until they serve; `None` where there are none.
    pub(crate) async fn pair(&self, peer: Peer) -> anyhow::Result<Option<Pair>> {
        self.network.intercept(peer != Peer::Direct).await?;
        if peer == Peer::Direct {
            return Ok(None);
        }
        Ok(Some(Pair { b: self.start(peer, Role::B).await?, a: self.start(peer, Role::A).await? }))
    }

    /// Starts one proxy of a peer and waits until it serves.
    pub(crate) async fn start(&self, peer: Peer, role: Role) -> anyhow::Result<Running> {
        if peer != Peer::Entente {
            let mut running = Running::start(peer, role, &self.places)?;
            running.listens().await?;
            return Ok(running);
        }
        let mut running = self.sidecar(role)?;
        eventually("a sidecar to be ready", || async {
            fetch(role.pod(), "/ready").await?.contains(" 200 ").then_some(())
        })
        .await;
        running.must_run()?;
        Ok(running)
    }

    /// The sidecar as an injected pod runs it.
    fn sidecar(&self, role: Role) -> anyhow::Result<Running> {
        let (pod, folder) = (role.pod(), &self.places.folder);
        let state = folder.join(format!("state-{pod}"));
        if !state.exists() {
            fs::create_dir(&state)?;
            chown(&state, Some(sidecar::UID), Some(sidecar::UID))?;
        }
        let token = folder.join(format!("token-{pod}"));
        fs::write(&token, self.control.look(|world| world.pods[pod].token.clone()))?;
        let text = |path: &Path| path.display().to_string();
        let words = [
            text(&self.entente),
            "proxy".to_owned(),
            "--state-dir".to_owned(),
            text(&state),
            "--token-file".to_owned(),
            text(&token),
            "--resolv-conf".to_owned(),
            text(&self.resolv_conf),
        ];
        let environment = [
            (sidecar::ENV_CONTROL_ADDRESS, self.control.address.to_string()),
            (sidecar::ENV_CONTROL_CA, self.control.authority.clone()),
            (sidecar::ENV_POD_IPS, format!("10.78.0.{}", network::number(pod))),
            (sidecar::ENV_POD_UID, pod.to_owned()),
        ];
        Running::spawn(Peer::Entente, role, folder, &words, &environment)
    }
}

/// Both proxies under way.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) a: Running,
    pub(crate) b: Running,
}

impl Pair {
    pub(crate) async fn end(self) {
        self.a.end().await;
        self.b.end().await;
    }

    /// Fails if one of them has ended.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        self.a.must_run()?;
        self.b.must_run()
    }
}

/// A GET on a sidecar's health port.
async fn fetch(pod: &str, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(network::health(pod)).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: pod\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}
