//! The peers: how each is configured and started as A or B, and ended with all its processes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use entente::sidecar;
use tokio::process::{Child, Command};

use crate::{
    network::{CLIENT, SERVER},
    process,
};

/// What lies between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Peer {
    /// Nothing: no rules, no proxies.
    Direct,
    Entente,
    Envoy,
    Haproxy,
    Nginx,
    Stunnel,
}

/// The two roles of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Beside the client: originates TLS.
    A,
    /// Beside the server: ends it.
    B,
}

impl Role {
    pub(crate) const fn pod(self) -> &'static str {
        match self {
            Self::A => CLIENT,
            Self::B => SERVER,
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::A => sidecar::OUTBOUND_PORT,
            Self::B => sidecar::INBOUND_PORT,
        }
    }
}

impl Peer {
    pub(crate) const ALL: [Self; 6] =
        [Self::Direct, Self::Entente, Self::Envoy, Self::Haproxy, Self::Nginx, Self::Stunnel];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Entente => "entente",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Stunnel => "stunnel",
        }
    }

    /// The template of its configuration; two workers each.
    const fn template(self, role: Role) -> Option<&'static str> {
        Some(match (self, role) {
            (Self::Direct | Self::Entente, _) => return None,
            (Self::Envoy, Role::A) => include_str!("../peers/envoy-out.yaml"),
            (Self::Envoy, Role::B) => include_str!("../peers/envoy-in.yaml"),
            (Self::Haproxy, Role::A) => include_str!("../peers/haproxy-out.cfg"),
            (Self::Haproxy, Role::B) => include_str!("../peers/haproxy-in.cfg"),
            (Self::Nginx, Role::A) => include_str!("../peers/nginx-out.conf"),
            (Self::Nginx, Role::B) => include_str!("../peers/nginx-in.conf"),
            (Self::Stunnel, Role::A) => include_str!("../peers/stunnel-out.conf"),
            (Self::Stunnel, Role::B) => include_str!("../peers/stunnel-in.conf"),
        })
    }

    /// Its program with the arguments that end in its configuration's path.
    fn words(self, envoy: &Path) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Direct | Self::Entente => &[],
            Self::Envoy => &["", "--concurrency", "2", "--disable-hot-restart", "-l", "error", "-c"],
            Self::Haproxy => &["/usr/sbin/haproxy", "-db", "-f"],
            Self::Nginx => &["/usr/sbin/nginx", "-e", "stderr", "-c"],
            Self::Stunnel => &["/usr/bin/stunnel4"],
        };
        let program = |word: &&str| if word.is_empty() { envoy.display().to_string() } else { (*word).to_owned() };
        words.iter().map(program).collect()
    }

    /// How it tells its version.
    pub(crate) fn version_words(self, envoy: &Path, entente: &Path) -> Vec<String> {
        let (program, flag) = match self {
            Self::Direct => return vec![],
            Self::Entente => (entente.display().to_string(), "--version"),
            Self::Envoy => (envoy.display().to_string(), "--version"),
            Self::Haproxy => ("/usr/sbin/haproxy".to_owned(), "-v"),
            Self::Nginx => ("/usr/sbin/nginx".to_owned(), "-v"),
            Self::Stunnel => ("/usr/bin/stunnel4".to_owned(), "-version"),
        };
        vec![program, flag.to_owned()]
    }
}

/// What the configurations are filled with.
#[derive(Debug)]
pub(crate) struct Places {
    /// Certificates and keys; `run` below it is writable by the peers.
    pub(crate) folder: PathBuf,
    /// Envoy's program, where its user can reach it.
    pub(crate) envoy: PathBuf,
    /// What stands in a template, and what takes its place.
    pub(crate) fillings: Vec<(&'static str, String)>,
}

/// One proxy under way.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    process: u32,
    role: Role,
    log: PathBuf,
}

impl Running {
    /// A proxy of somebody else's.
    pub(crate) fn start(peer: Peer, role: Role, places: &Places) -> anyhow::Result<Self> {
        let template = peer.template(role).context("a peer without a configuration")?;
        let text = places.fillings.iter().fold(template.to_owned(), |text, (from, to)| text.replace(from, to));
        let file = places.folder.join(format!("{}-{role:?}", peer.name()));
        // Envoy goes by the ending.
        let file = if peer == Peer::Envoy { file.with_extension("yaml") } else { file };
        fs::write(&file, text)?;
        let mut words = peer.words(&places.envoy);
        words.push(file.display().to_string());
        Self::spawn(peer, role, &places.folder, &words, &[])
    }

    /// Starts a program as the sidecar's user in the pod of its role.
    pub(crate) fn spawn(
        peer: Peer,
        role: Role,
        folder: &Path,
        words: &[String],
        environment: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let user = sidecar::UID.to_string();
        let log = folder.join(format!("{}-{role:?}.log", peer.name()));
        let output = fs::File::create(&log)?;
        let child = Command::new("ip")
            .args(["netns", "exec", role.pod(), "prlimit", "--nofile=20000:20000", "setpriv"])
            .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
            .args(words)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir(folder.join("run"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()?;
        // Each of the programs above runs the next in its own place.
        let process = child.id().context("it ended at once")?;
        Ok(Self { child, process, role, log })
    }

    /// Waits until it listens.
    pub(crate) async fn listens(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        while !process::listens(self.process, self.role.port()) {
            self.must_run()?;
            if Instant::now() > deadline {
                bail!("{:?} does not listen: {}", self.role, self.said());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{:?} ended with {status}: {}", self.role, self.said()),
            None => Ok(()),
        }
    }

    /// The end of its log.
    pub(crate) fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        process::tree(self.process)
    }

    /// Ends it and all its processes.
    pub(crate) async fn end(mut self) {
        for process in self.processes() {
            let process = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(process) = process {
                // It may have ended by itself.
                let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.wait().await;
    }
}
