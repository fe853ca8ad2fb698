//! A hub with a bridge, and pods on it: each a network namespace with the rules loaded and the sidecar running.

use std::{
    fs,
    future::Future,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use entente::{
    brief::{Allow, Brief, Mode, Port},
    sidecar,
};
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};

use super::{
    roles::{Act, Fared, PART, Part},
    support::{PATIENCE, UNSHARE, control::Server, eventually, place, place_programs, soon},
};

/// Environment: set in the process that lives in its own namespaces.
const INSIDE: &str = "ENTENTE_NET_INSIDE";

/// The hub's addresses; the control server and everybody outside the pods are there.
pub(crate) const HUB: &str = "10.77.0.1";
pub(crate) const HUB6: &str = "fd77::1";

/// Runs `body` in namespaces of its own: network, mounts, processes. All that it makes ends with it.
pub(crate) fn in_own_network<F: Future<Output = ()>>(name: &str, body: impl FnOnce(Hub) -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { body(Hub::new().await).await });
        return;
    }
    assert_eq!(fs::metadata("/proc/self").unwrap().uid(), 0, "the tests in network namespaces need root");
    let output = std::process::Command::new(UNSHARE[0])
        .args(&UNSHARE[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(told.contains("1 passed"), "{told}");
    println!("{told}");
}

/// Goes into the control group whose list of processes is the first word, then becomes what the rest says. `ip netns
/// exec` would hide control groups, by which a sidecar knows its memory.
const ENTER: &str = "echo 0 > \"$1\"; shift; exec \"$@\"";

pub(crate) struct Hub {
    pub(crate) control: Arc<Server>,
    /// Readable by the sidecar's user.
    folder: tempfile::TempDir,
    results: AtomicUsize,
}

impl Hub {
    async fn new() -> Self {
        // Names of namespaces are files; a file system of our own keeps them from the machine's.
        fs::create_dir_all("/run/netns").unwrap();
        run("mount -t tmpfs none /run/netns").await;
        // libfaketime's shared memory is named by process id, and ours begin at 1.
        run("mount -t tmpfs none /dev/shm").await;
        for command in [
            "ip link set lo up",
            "ip link add hub type bridge",
            "ip addr add 10.77.0.1/24 dev hub",
            "ip -6 addr add fd77::1/64 dev hub nodad",
            "ip link set hub up",
        ] {
            run(command).await;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The sidecar's user may not be able to reach the build folder.
        place_programs(Path::new(env!("CARGO_BIN_EXE_entente")), folder.path()).unwrap();
        let resolv_conf = folder.path().join("resolv.conf");
        fs::write(&resolv_conf, format!("nameserver {HUB}\nnameserver {HUB6}\n")).unwrap();
        // What software in the pods reads; the mounts are ours alone.
        run(&format!("mount --bind {} /etc/resolv.conf", resolv_conf.display())).await;
        let control = Server::start(HUB.parse().unwrap()).await;
        Self { control, folder, results: AtomicUsize::new(0) }
    }

    /// Addresses of the hub's own, `10.78.0.0` to `10.78.255.255`, from which anybody outside of the pods may call.
    pub(crate) async fn has_many_addresses(&self) {
        run("ip addr add 10.78.0.1/16 dev lo").await;
    }

    /// Where files of the test's own go.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A namespace on the hub with the addresses `10.77.0.NUMBER` and `fd77::NUMBER`; no rules, no sidecar.
    pub(crate) async fn bare(&self, number: u8) -> Pod<'_> {
        let pod = self.without_ipv6(number).await;
        pod.add_ipv6().await;
        pod
    }

    /// The same with its IPv4 address only.
    pub(crate) async fn without_ipv6(&self, number: u8) -> Pod<'_> {
        let pod = Pod {
            hub: self,
            name: format!("pod{number}"),
            number,
            descriptors: 4096,
            memory: None,
            clock: false,
            sidecar: None,
        };
        let name = &pod.name;
        for command in [
            format!("ip netns add {name}"),
            format!("ip link add {name} type veth peer name eth0 netns {name}"),
            format!("ip link set {name} master hub up"),
            format!("ip -n {name} link set lo up"),
            format!("ip -n {name} addr add 10.77.0.{number}/24 dev eth0"),
            format!("ip -n {name} link set eth0 up"),
            format!("ip -n {name} route add default via 10.77.0.1"),
        ] {
            run(&command).await;
        }
        pod
    }

    /// A pod with rules and a ready sidecar, declared with `ports`.
    pub(crate) async fn pod(&self, number: u8, server: &str, ports: &[(u16, Mode)], udp: &str) -> Pod<'_> {
        let mut pod = self.bare(number).await;
        pod.intercept(udp).await;
        let allow = Allow::all_declared();
        let port = |(port, mode): &(u16, Mode)| Port {
            name: format!("port-{port}"),
            port: *port,
            target_port: *port,
            mode: *mode,
            allow: if *mode == Mode::MutualTls { allow.clone() } else { Allow::default() },
            server_tls: None,
        };
        let brief: Brief = self.control.brief(server, ports.iter().map(port).collect());
        self.control.declare(&pod.name, server, Some(brief));
        pod.start_sidecar().await;
        pod
    }

    /// Plays `act` at the hub, outside of all pods.
    pub(crate) async fn act(&self, act: Act) -> Fared {
        self.play(&[], act, None).await
    }

    /// Starts `act` at the hub.
    pub(crate) async fn start(&self, act: Act) -> Playing {
        self.begin(&[], act, None).await
    }

    async fn play(&self, prefix: &[&str], act: Act, user: Option<(u32, u32)>) -> Fared {
        let mut playing = self.spawn(prefix, act, user);
        soon("a client's end", playing.child.wait()).await.unwrap();
        playing.told()
    }

    async fn begin(&self, prefix: &[&str], act: Act, user: Option<(u32, u32)>) -> Playing {
        let playing = self.spawn(prefix, act, user);
        eventually("a part to begin", || async { playing.result.exists().then_some(()) }).await;
        playing
    }

    fn spawn(&self, prefix: &[&str], act: Act, user: Option<(u32, u32)>) -> Playing {
        let index = self.results.fetch_add(1, Ordering::SeqCst);
        let (uid, gid) = user.unwrap_or((0, 0));
        let folder = self.path(&format!("part-{index}"));
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(uid), Some(gid)).unwrap();
        let result = folder.join("result");
        let part = Part { act, result: result.clone() };
        let own = self.path("parts");
        if !own.exists() {
            place(&std::env::current_exe().unwrap(), &own).unwrap();
        }
        let user = format!("setpriv --reuid {uid} --regid {gid} --clear-groups");
        let words: Vec<&str> = prefix.iter().copied().chain(user.split(' ')).collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .arg(own)
            .args(["--exact", "roles::part"])
            .env(PART, serde_json::to_string(&part).unwrap())
            .current_dir(&folder)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Playing { child, result }
    }
}

/// A part under way.
pub(crate) struct Playing {
    pub(crate) child: Child,
    result: PathBuf,
}

impl Playing {
    /// What it told last.
    pub(crate) fn told<T: DeserializeOwned>(&self) -> T {
        let text = fs::read_to_string(&self.result).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text:?}"))
    }
}

pub(crate) struct Pod<'a> {
    hub: &'a Hub,
    pub(crate) name: String,
    number: u8,
    /// How many descriptors the sidecar may hold.
    pub(crate) descriptors: usize,
    /// Whether its sidecar goes by a wall clock of its own.
    clock: bool,
    sidecar: Option<Child>,
    /// What bounds the sidecar's memory; dropped behind it.
    pub(crate) memory: Option<Memory>,
}

impl Pod<'_> {
    pub(crate) fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::from([10, 77, 0, self.number]), port)
    }

    pub(crate) fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(format!("fd77::{}", self.number).parse().unwrap(), port)
    }

    /// Declares a route of this pod's sidecar, in both families.
    pub(crate) fn knows(&self, other: &Pod<'_>, server: &str, port: u16, mode: Mode) {
        self.finds(other, server, port, mode);
        for address in [other.v4(port), other.v6(port)] {
            self.hub.control.owned(&self.name, address.ip(), &other.name);
        }
    }

    /// Is told only that `server` is there, as at a Service's address: each connection has its own handshake.
    pub(crate) fn finds(&self, other: &Pod<'_>, server: &str, port: u16, mode: Mode) {
        for address in [other.v4(port), other.v6(port)] {
            self.hub.control.route(&self.name, address, &self.hub.control.domain.id(server), mode);
        }
    }

    /// Gives the pod its IPv6 address and a way out.
    pub(crate) async fn add_ipv6(&self) {
        let (name, number) = (&self.name, self.number);
        run(&format!("ip -n {name} -6 addr add fd77::{number}/64 dev eth0 nodad")).await;
        run(&format!("ip -n {name} -6 route add default via fd77::1")).await;
    }

    fn inside(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// `entente intercept` in the pod, as its init container runs it.
    pub(crate) async fn intercept(&self, udp: &str) {
        let status = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .arg(self.hub.path("entente"))
            .arg("intercept")
            .arg("--resolv-conf")
            .arg(self.hub.path("resolv.conf"))
            .env(sidecar::ENV_UDP_PORTS, udp)
            .status()
            .await
            .unwrap();
        assert!(status.success(), "rules in {}", self.name);
    }

    /// Whether `entente intercept` succeeds for a user without rights.
    pub(crate) async fn intercepts_as(&self, uid: u32) -> bool {
        let user = uid.to_string();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"]);
        command.arg(self.hub.path("entente")).arg("intercept").arg("--resolv-conf");
        command.arg(self.hub.path("resolv.conf")).stderr(Stdio::null()).status().await.unwrap().success()
    }

    pub(crate) async fn start_sidecar(&mut self) {
        let hub = self.hub;
        let state = hub.path(&format!("state-{}", self.name));
        if !state.exists() {
            fs::create_dir(&state).unwrap();
            chown(&state, Some(sidecar::UID), Some(sidecar::UID)).unwrap();
        }
        let token = hub.path(&format!("token-{}", self.name));
        fs::write(&token, hub.control.look(|world| world.pods[&self.name].token.clone())).unwrap();
        let user = sidecar::UID.to_string();
        let log = fs::File::create(hub.path(&format!("log-{}", self.name))).unwrap();
        let limit = format!("--nofile={0}:{0}", self.descriptors);
        let net = format!("--net=/run/netns/{}", self.name);
        let mut command = Command::new("sh");
        command
            .args(["-c", ENTER, "sh"])
            .arg(self.memory.as_ref().map_or_else(|| Path::new("/dev/null"), Memory::processes))
            .args([
                "nsenter",
                &net,
                "prlimit",
                &limit,
                "setpriv",
                "--reuid",
                &user,
                "--regid",
                &user,
                "--clear-groups",
                "env",
            ])
            .args(self.faked().iter().map(|(name, value)| format!("{name}={value}")))
            .arg(hub.path("entente"))
            .arg("proxy")
            .args([Path::new("--state-dir"), &state, Path::new("--token-file"), &token])
            .arg("--resolv-conf")
            .arg(hub.path("resolv.conf"))
            .env(sidecar::ENV_CONTROL_ADDRESS, hub.control.address.to_string())
            .env(sidecar::ENV_CONTROL_CA, &hub.control.authority)
            .env(sidecar::ENV_POD_IPS, format!("{},{}", self.v4(0).ip(), self.v6(0).ip()))
            .env(sidecar::ENV_POD_UID, &self.name)
            .stderr(log)
            .kill_on_drop(true);
        self.sidecar = Some(command.spawn().unwrap());
        eventually(&format!("sidecar of {} ready", self.name), || async {
            (self.fetch("/ready").await?.contains(" 200 ")).then_some(())
        })
        .await;
    }

    /// What makes the sidecar's wall clock one of its own; its monotonic clock and everybody else's stay as they are.
    fn faked(&self) -> Vec<(&str, String)> {
        if !self.clock {
            return vec![];
        }
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
        assert!(Path::new(&library).exists(), "{library} is missing: apt-get install libfaketime");
        let file = self.hub.path(&format!("clock-{}", self.name)).display().to_string();
        vec![
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", file),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Restarts the sidecar with a wall clock of its own.
    pub(crate) async fn gets_a_clock(&mut self) {
        self.set_clock(0);
        self.end_sidecar().await;
        self.clock = true;
        self.start_sidecar().await;
    }

    /// Steps the sidecar's clock: so many seconds ahead of everybody else's.
    pub(crate) fn set_clock(&self, ahead: i64) {
        let file = self.hub.path(&format!("clock-{}", self.name));
        let beside = file.with_extension("new");
        fs::write(&beside, format!("{ahead:+}\n")).unwrap();
        fs::rename(beside, file).unwrap();
    }

    /// What the sidecar has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.hub.path(&format!("log-{}", self.name))).unwrap()
    }

    fn process(&self) -> u32 {
        self.sidecar.as_ref().unwrap().id().expect("the sidecar lives")
    }

    /// Whether the sidecar lives.
    pub(crate) fn lives(&mut self) -> bool {
        self.sidecar.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// The sidecar's resident memory in KiB, now (`VmRSS`) or at most so far (`VmHWM`).
    pub(crate) fn resident(&self, which: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many descriptors the sidecar holds.
    pub(crate) fn held(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process())).unwrap().count()
    }

    /// Changes how many descriptors the running sidecar may hold, at once and for good.
    pub(crate) async fn limit_descriptors(&self, most: usize) {
        // Who has the same ids needs no privilege.
        let user = format!("setpriv --reuid {0} --regid {0} --clear-groups", sidecar::UID);
        run(&format!("{user} prlimit --pid {} --nofile={most}:{}", self.process(), self.descriptors)).await;
    }

    /// The processor time that the sidecar has used, in ticks: hundredths of a second.
    pub(crate) fn ticks(&self) -> u64 {
        let id = self.process();
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        // utime and stime, after the name in parentheses (proc(5)).
        let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
        fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// `kill -9`.
    pub(crate) async fn kill_sidecar(&mut self) {
        let mut child = self.sidecar.take().unwrap();
        child.kill().await.unwrap();
    }

    /// SIGTERM; answers the exit status.
    pub(crate) async fn end_sidecar(&mut self) -> std::process::ExitStatus {
        let mut child = self.sidecar.take().unwrap();
        run(&format!("kill -TERM {}", child.id().unwrap())).await;
        soon("sidecar's end", child.wait()).await.unwrap()
    }

    /// A GET on the sidecar's health port, from the hub, as the kubelet does it.
    pub(crate) async fn fetch(&self, path: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.v4(sidecar::HEALTH_PORT)).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: pod\r\n\r\n").as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// Waits until the sidecar has counted refusals with `reason`.
    pub(crate) async fn refused(&self, direction: &str, reason: &str) {
        let some = || async { self.refusals(direction, reason).await.filter(|count| *count > 0.0) };
        eventually(&format!("{direction} refusals with {reason}"), some).await;
    }

    /// How many refusals with `reason` the sidecar has counted, if it can be asked.
    pub(crate) async fn refusals(&self, direction: &str, reason: &str) -> Option<f64> {
        let series = format!("entente_refusals_total{{direction=\"{direction}\",reason=\"{reason}\"}} ");
        let text = self.fetch("/metrics").await?;
        let count = text.lines().find_map(|line| line.strip_prefix(&series));
        Some(count.map_or(0.0, |count| count.trim().parse().unwrap()))
    }

    /// Plays `act` in the pod, as root: not exempt from the rules.
    pub(crate) async fn act(&self, act: Act) -> Fared {
        self.hub.play(&self.inside(), act, None).await
    }

    /// Plays `act` as another user.
    pub(crate) async fn act_as(&self, user: (u32, u32), act: Act) -> Fared {
        self.hub.play(&self.inside(), act, Some(user)).await
    }

    /// Starts `act` in the pod.
    pub(crate) async fn start(&self, act: Act) -> Playing {
        self.hub.begin(&self.inside(), act, None).await
    }
}

/// A memory bound of the kernel's for one sidecar: a control group below our own, removed with this.
pub(crate) struct Memory {
    folder: PathBuf,
    processes: PathBuf,
}

impl Memory {
    /// A group of its own named `name` that may hold `bytes`.
    pub(crate) fn bound(name: &str, bytes: u64) -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = |controller: &str| {
            let path = |line: &str| {
                let mut parts = line.splitn(3, ':').skip(1);
                let found = parts.next()?.split(',').any(|one| one == controller);
                found.then(|| parts.next().map(|path| path.trim_start_matches('/').to_owned())).flatten()
            };
            groups.lines().find_map(path)
        };
        let unique = format!("entente-{name}-{}", std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos());
        let (folder, file) = match own("memory") {
            Some(path) => (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"),
            None => (Path::new("/sys/fs/cgroup").join(own("").unwrap()), "memory.max"),
        };
        let folder = folder.join(unique);
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("no memory control group: {error}"));
        let memory = Self { processes: folder.join("cgroup.procs"), folder };
        fs::write(memory.folder.join(file), bytes.to_string()).unwrap();
        memory
    }

    fn processes(&self) -> &Path {
        &self.processes
    }

    /// A figure that the kernel keeps of it.
    pub(crate) fn figure(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Its process has been told to end, and the group can be removed when it has.
        for _ in 0..1000 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        println!("{} is left behind", self.folder.display());
    }
}

async fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status();
    assert!(tokio::time::timeout(PATIENCE, status).await.unwrap().unwrap().success(), "{command}");
}
