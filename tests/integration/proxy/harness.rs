//! Pods on loopback, each with an address of its own: `127.1.x.y`.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use entente::{
    brief::{Allow, Brief, Direction, EgressNetwork, Mode, Port, RefusedConnections},
    identity::SpiffeId,
    proxy::{self, Config, Intercepted},
    sidecar::Probes,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

use crate::support::{
    control::{Server, everyone},
    eventually, logs, soon,
};

/// The first declared port; further ones count up.
pub(super) const PORT: u16 = 5061;

/// An address that no other pod of this test run has.
pub(super) fn address() -> IpAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::SeqCst).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low).into()
}

pub(super) async fn control() -> Arc<Server> {
    logs();
    Server::start(Ipv4Addr::LOCALHOST.into()).await
}

/// A pod to be.
pub(super) struct Plan {
    control: Arc<Server>,
    server: String,
    uid: String,
    ip: IpAddr,
    inbound: Vec<SocketAddr>,
    ports: Vec<Port>,
    dials: Vec<(SocketAddr, Option<(SpiffeId, Mode)>)>,
    resolvers: Vec<SocketAddr>,
    has_brief: bool,
    lifetime: u32,
    adjust: Box<dyn FnOnce(&mut Brief) + Send>,
    probes: Probes,
    state: Arc<TempDir>,
}

impl Plan {
    pub(super) fn new(control: &Arc<Server>, server: &str, ip: IpAddr) -> Self {
        Self {
            control: control.clone(),
            server: server.to_owned(),
            uid: format!("uid-{ip}"),
            ip,
            inbound: vec![],
            ports: vec![],
            dials: vec![],
            resolvers: vec![],
            has_brief: true,
            lifetime: 3600,
            adjust: Box::new(|_| ()),
            probes: Probes::new(),
            state: Arc::new(tempfile::tempdir().unwrap()),
        }
    }

    /// Declares a port in front of `application`, open to every declared server.
    pub(super) fn port(self, mode: Mode, application: SocketAddr) -> Self {
        let allow = if mode == Mode::MutualTls { everyone() } else { Allow::default() };
        self.port_for(mode, application, allow)
    }

    pub(super) fn port_for(mut self, mode: Mode, application: SocketAddr, allow: Allow) -> Self {
        let port = PORT + u16::try_from(self.ports.len()).unwrap();
        let name = format!("port-{port}");
        self.ports.push(Port { name, port, target_port: application.port(), mode, allow, server_tls: None });
        let ip = self.ip;
        self.arriving_for(SocketAddr::new(ip, port))
    }

    /// One more inbound listener, for connections that were dialled to `destination`.
    pub(super) fn arriving_for(mut self, destination: SocketAddr) -> Self {
        self.inbound.push(destination);
        self
    }

    /// The application calls a declared server.
    pub(super) fn calls(mut self, address: SocketAddr, server: &SpiffeId, mode: Mode) -> Self {
        self.dials.push((address, Some((server.clone(), mode))));
        self
    }

    /// The application calls what no route knows.
    pub(super) fn calls_undeclared(mut self, address: SocketAddr) -> Self {
        self.dials.push((address, None));
        self
    }

    /// Its nameservers; with any it has a guard.
    pub(super) fn resolvers(mut self, resolvers: &[SocketAddr]) -> Self {
        self.resolvers = resolvers.to_vec();
        self
    }

    /// What is mounted to be shown to `partner`.
    pub(super) fn mounts(self, partner: &str, files: [&str; 2]) -> Self {
        let folder = self.state.path().join("presented").join(partner);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, content) in ["tls.crt", "tls.key"].iter().zip(files) {
            std::fs::write(folder.join(name), content).unwrap();
        }
        self
    }

    pub(super) fn egress(self, network: EgressNetwork) -> Self {
        self.brief(move |brief| brief.egress.networks.push(network))
    }

    pub(super) fn brief(mut self, change: impl FnOnce(&mut Brief) + Send + 'static) -> Self {
        let before = self.adjust;
        self.adjust = Box::new(move |brief| {
            before(brief);
            change(brief);
        });
        self
    }

    pub(super) fn without_brief(mut self) -> Self {
        self.has_brief = false;
        self
    }

    /// Its certificates live so many seconds.
    pub(super) fn lives(mut self, seconds: u32) -> Self {
        self.lifetime = seconds;
        self
    }

    pub(super) fn probes(mut self, probes: Probes) -> Self {
        self.probes = probes;
        self
    }

    /// Declares the pod at the control server and starts its sidecar; does not wait for it to be ready.
    pub(super) fn launch(self) -> Sidecar {
        let mut brief = self.control.brief(&self.server, self.ports.clone());
        (self.adjust)(&mut brief);
        self.control.declare(&self.uid, &self.server, self.has_brief.then_some(brief));
        self.control.change(|world| world.pods.get_mut(&self.uid).unwrap().lifetime = self.lifetime);
        for (address, declared) in &self.dials {
            if let Some((server, mode)) = declared {
                self.control.route(&self.uid, *address, server, *mode);
            }
        }
        Sidecar::start(Home {
            control: self.control,
            uid: self.uid,
            ip: self.ip,
            inbound: self.inbound,
            dials: self.dials.into_iter().map(|(address, _)| address).collect(),
            resolvers: self.resolvers,
            probes: self.probes,
            state: self.state,
        })
    }

    pub(super) async fn start(self) -> Sidecar {
        let sidecar = self.launch();
        sidecar.ready().await;
        sidecar
    }
}

/// All that a restarted sidecar finds again.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) control: Arc<Server>,
    pub(super) uid: String,
    pub(super) ip: IpAddr,
    inbound: Vec<SocketAddr>,
    dials: Vec<SocketAddr>,
    resolvers: Vec<SocketAddr>,
    probes: Probes,
    pub(super) state: Arc<TempDir>,
}

impl Home {
    pub(super) fn config(&self) -> Config {
        let token_file = self.state.path().join("token");
        std::fs::write(&token_file, self.control.look(|world| format!("{}\n", world.pods[&self.uid].token))).unwrap();
        Config {
            inbound: self.inbound.iter().map(|_| SocketAddr::new(self.ip, 0)).collect(),
            outbound: self.dials.iter().map(|_| SocketAddr::new(self.ip, 0)).collect(),
            health: vec![SocketAddr::new(self.ip, 0)],
            pod_ips: vec![self.ip],
            pod_uid: self.uid.clone(),
            dns: self.resolvers.iter().map(|_| SocketAddr::new(self.ip, 0)).take(1).collect(),
            resolvers: self.resolvers.clone(),
            search: vec![],
            control: self.control.control(),
            token_file,
            state_dir: self.state.path().to_owned(),
            server_certificate: self.state.path().join("server-certificate"),
            presented_certificates: self.state.path().join("presented"),
            probes: self.probes.clone(),
            intercepted: Intercepted::OriginalDestination,
            drain_grace: Duration::from_millis(50),
            shards: 2,
        }
    }
}

/// A running sidecar.
pub(super) struct Sidecar {
    pub(super) home: Home,
    /// One listener per declared port, in order.
    pub(super) inbound: Vec<SocketAddr>,
    /// One listener per dialled address, in order.
    pub(super) outbound: Vec<SocketAddr>,
    pub(super) health: SocketAddr,
    /// Where its application asks for names.
    pub(super) dns: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    pub(super) task: JoinHandle<anyhow::Result<()>>,
}

impl Sidecar {
    pub(super) fn start(home: Home) -> Self {
        let bound = proxy::bind(home.config()).unwrap();
        let (inbound, outbound) = (bound.inbound(), bound.outbound());
        let pairs: HashMap<_, _> =
            inbound.iter().zip(&home.inbound).chain(outbound.iter().zip(&home.dials)).map(|(a, b)| (*a, *b)).collect();
        let (health, dns) = (bound.health()[0], bound.dns().first().copied());
        let (stop, stopped) = oneshot::channel();
        let run = bound.intercepted(Intercepted::Fixed(pairs)).run(async {
            let _ = stopped.await;
        });
        let task = tokio::spawn(run);
        Self { home, inbound, outbound, health, dns, stop, task }
    }

    pub(super) async fn ready(&self) {
        eventually("sidecar ready", || async { (self.fetch("/ready").await.0 == 200).then_some(()) }).await;
    }

    /// Tells it that the pod ends, and leaves the rest to it.
    pub(super) fn terminate(self) -> (Home, JoinHandle<anyhow::Result<()>>) {
        let _ = self.stop.send(());
        (self.home, self.task)
    }

    /// Ends at once, as a killed container does.
    pub(super) async fn kill(self) -> Home {
        self.task.abort();
        let _ = self.task.await;
        self.home
    }

    /// What the application gets when it dials its `index`th address.
    pub(super) async fn open(&self, index: usize) -> TcpStream {
        // A call that waits: a refusal may be faster than a runtime that looks whether it is connected.
        let stream = std::net::TcpStream::connect(self.outbound[index]).unwrap();
        stream.set_nonblocking(true).unwrap();
        TcpStream::from_std(stream).unwrap()
    }

    /// Status and body of a GET on the health port.
    pub(super) async fn fetch(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.health).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("health answers", stream.read_to_string(&mut answer)).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// The value of the metric whose line starts with `series`; 0 where there is none.
    pub(super) async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.fetch("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::to_owned);
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until `count` refusals with `reason` are in the metric *and* in a report at the control server.
    pub(super) async fn refused(&self, direction: &str, reason: &str, count: u32) {
        let series = format!("entente_refusals_total{{direction=\"{direction}\",reason=\"{reason}\"}}");
        let what = format!("{count} × {reason} {direction}");
        eventually(&what, || async { (self.metric(&series).await == f64::from(count)).then_some(()) }).await;
        eventually(&format!("{what} reported"), || async {
            let told = self.home.control.look(|world| {
                let refusals = &world.pods[&self.home.uid].refusals;
                let same = |told: &&RefusedConnections| {
                    told.reason.code() == reason && (told.direction == Direction::Inbound) == (direction == "inbound")
                };
                refusals.iter().filter(same).map(|told| told.count).sum::<u64>()
            });
            (told == u64::from(count)).then_some(())
        })
        .await;
    }

    /// All reasons counted so far, by code.
    pub(super) async fn reasons(&self) -> BTreeMap<String, u32> {
        let (_, text) = self.fetch("/metrics").await;
        let lines = text.lines().filter_map(|line| line.strip_prefix("entente_refusals_total{"));
        lines
            .map(|line| {
                let (labels, value) = line.rsplit_once(' ').unwrap();
                let reason = labels.split("reason=\"").nth(1).unwrap().split('"').next().unwrap();
                (reason.to_owned(), value.parse().unwrap())
            })
            .collect()
    }

    /// Waits until the sidecar has acknowledged its current brief.
    pub(super) async fn acknowledges(&self) {
        eventually("brief acknowledged", || async {
            self.home.control.look(|world| {
                let pod = &world.pods[&self.home.uid];
                (pod.acknowledged.as_ref() == pod.brief.as_ref().map(|brief| &brief.cursor)).then_some(())
            })
        })
        .await;
    }
}

/// Says `word` and expects it back.
pub(super) async fn echo(stream: &mut TcpStream, word: &[u8]) -> std::io::Result<()> {
    let talk = async {
        stream.write_all(word).await?;
        let mut answer = vec![0; word.len()];
        stream.read_exact(&mut answer).await?;
        assert_eq!(answer, word);
        Ok(())
    };
    soon("echo", talk).await
}

/// How the application sees the end of its connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// An orderly end.
    End,
    /// A reset.
    Reset,
}

/// Says `word` and reads to the end. A reset may be there before the word, and is told only once.
pub(super) async fn say_and_read_out(stream: &mut TcpStream, word: &[u8]) -> (Vec<u8>, Seen) {
    match stream.write_all(word).await {
        Ok(()) => read_out(stream).await,
        Err(_) => (vec![], Seen::Reset),
    }
}

/// Reads to the end; answers what came, and how it ended.
pub(super) async fn read_out(stream: &mut TcpStream) -> (Vec<u8>, Seen) {
    let mut all = vec![];
    match soon("the connection's end", stream.read_to_end(&mut all)).await {
        Ok(_) => (all, Seen::End),
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            (all, Seen::Reset)
        }
    }
}
