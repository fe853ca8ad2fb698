//! Software of others as the peer: OpenSSL's and GnuTLS's own clients and servers, outside of all pods or in one.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::support::{
    domain::{Certified, pem},
    eventually, soon,
};

/// A line that is the same backwards, since OpenSSL's server sends back what it reads in reverse.
pub(crate) const WORD: &str = "THE TERCES SECRET EHT\n";
/// So long a client waits for its answer.
const WAIT: Duration = Duration::from_secs(4);

/// Whose programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    OpenSsl,
    GnuTls,
}

/// A certificate in files.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    leaf: PathBuf,
    /// What stands above the leaf, where anything does.
    above: Option<PathBuf>,
    chain: PathBuf,
    key: PathBuf,
}

impl Files {
    pub(crate) fn write(folder: &Path, name: &str, certified: &Certified) -> Self {
        let file = |end: &str, content: &str| {
            let path = folder.join(format!("{name}.{end}"));
            fs::write(&path, content).unwrap();
            path
        };
        let [chain, key] = pem(certified);
        let leaf: String = chain.split_inclusive("-----END CERTIFICATE-----\n").take(1).collect();
        let above = chain.strip_prefix(leaf.as_str()).filter(|above| !above.is_empty());
        Self {
            leaf: file("leaf", &leaf),
            above: above.map(|above| file("above", above)),
            chain: file("chain", &chain),
            key: file("key", &key),
        }
    }

    fn arguments(&self, stack: Stack) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        match stack {
            Stack::OpenSsl => {
                let mut all = vec!["-cert".to_owned(), text(&self.leaf), "-key".to_owned(), text(&self.key)];
                if let Some(above) = &self.above {
                    all.extend(["-cert_chain".to_owned(), text(above)]);
                }
                all
            }
            Stack::GnuTls => {
                vec!["--x509certfile".to_owned(), text(&self.chain), "--x509keyfile".to_owned(), text(&self.key)]
            }
        }
    }
}

/// A client under way.
pub(crate) struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    pub(crate) fn start(stack: Stack, address: SocketAddr, name: &str, files: &Files, more: &[&str]) -> Self {
        let mut command = match stack {
            Stack::OpenSsl => {
                let mut command = Command::new("openssl");
                command.args(["s_client", "-quiet", "-verify_quiet", "-connect", &address.to_string()]);
                command.args(["-servername", name]);
                command
            }
            Stack::GnuTls => {
                let mut command = Command::new("gnutls-cli");
                command.args(["--insecure", "--port", &address.port().to_string(), "--sni-hostname", name]);
                command.arg(address.ip().to_string());
                command
            }
        };
        command.args(files.arguments(stack)).args(more);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = spawned.spawn().unwrap_or_else(|error| panic!("{stack:?}: {error}"));
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// Says the word; whether it comes back.
    pub(crate) async fn echo(&mut self) -> bool {
        // A client that has ended takes nothing.
        if self.input.write_all(WORD.as_bytes()).await.is_err() || self.input.flush().await.is_err() {
            return false;
        }
        let answered = async {
            let mut line = vec![];
            loop {
                line.clear();
                match self.output.read_until(b'\n', &mut line).await {
                    Ok(1..) if line == WORD.as_bytes() => return true,
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return false,
                }
            }
        };
        timeout(WAIT, answered).await.unwrap_or(false)
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(mut self) {
        let read = async {
            let mut line = vec![];
            while matches!(self.output.read_until(b'\n', &mut line).await, Ok(1..)) {}
        };
        soon("the client's end", read).await;
        drop(self.input);
        let _ = self.child.kill().await;
    }
}

/// A server of the test's own that sends back each line; it ends when dropped.
pub(crate) struct Echoes {
    child: Child,
}

impl Echoes {
    /// Begins in the namespace `inside` on all its addresses, and listens when this answers.
    pub(crate) async fn start(stack: Stack, inside: &str, address: SocketAddr, files: &Files, more: &[&str]) -> Self {
        let port = address.port().to_string();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", inside]);
        match stack {
            Stack::OpenSsl => command.args(["openssl", "s_server", "-accept", &port, "-rev", "-Verify", "1"]),
            Stack::GnuTls => command.args(["gnutls-serv", "--echo", "--port", &port, "--require-client-cert"]),
        };
        command.args(files.arguments(stack)).args(more);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child = spawned.spawn().unwrap_or_else(|error| panic!("{stack:?}: {error}"));
        eventually("a server that listens", || async { tokio::net::TcpStream::connect(address).await.ok().map(drop) })
            .await;
        Self { child }
    }

    pub(crate) async fn end(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// OpenSSL's client or server with somebody at its keyboard, who may also change its keys.
pub(crate) struct Typist {
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Key updates that it sent and got.
    pub(crate) updates: [usize; 2],
}

impl Typist {
    /// A client of `address`.
    pub(crate) fn client(address: SocketAddr, name: &str, files: &Files) -> Self {
        Self::start(&[], &["s_client", "-connect", &address.to_string(), "-servername", name], files)
    }

    /// A server in the namespace `inside`; it takes one caller at a time.
    pub(crate) async fn server(inside: &str, port: u16, files: &Files) -> Self {
        let port = port.to_string();
        let prefix = ["ip", "netns", "exec", inside];
        let mut server = Self::start(&prefix, &["s_server", "-accept", &port, "-Verify", "1"], files);
        server.until("ACCEPT").await;
        server
    }

    fn start(prefix: &[&str], words: &[&str], files: &Files) -> Self {
        // What it says of its keys goes where the rest goes, so that one reader sees both in order.
        let both = ["sh", "-c", "exec openssl \"$@\" 2>&1", "openssl"];
        let all = [prefix, &both, words].concat();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).args(files.arguments(Stack::OpenSsl)).arg("-msg");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = spawned.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { _child: child, input, output, updates: [0; 2] }
    }

    /// Reads on until a line that contains `part`.
    pub(crate) async fn until(&mut self, part: &str) {
        let reading = async {
            let mut line = vec![];
            loop {
                line.clear();
                assert_ne!(self.output.read_until(b'\n', &mut line).await.unwrap(), 0, "it ended");
                let text = String::from_utf8_lossy(&line);
                for (count, arrow) in self.updates.iter_mut().zip([">>>", "<<<"]) {
                    *count += usize::from(text.starts_with(arrow) && text.contains("KeyUpdate"));
                }
                if text.contains(part) {
                    return;
                }
            }
        };
        soon(part, reading).await;
    }

    /// Types a line.
    pub(crate) async fn types(&mut self, line: &str) {
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.input.flush().await.unwrap();
    }
}
