//! Another organisation outside the cluster: an authority made by OpenSSL, clients and servers that know nothing of us.

use std::{
    io::Write,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::cluster::{node, suffix};

/// So long an answer is waited for.
const SOON: Duration = Duration::from_secs(10);

/// Its folder, removed at the end.
pub(crate) struct Organisation {
    name: String,
    folder: PathBuf,
}

impl Organisation {
    /// With an authority called `name`; `test` tells its folder from those of other tests.
    pub(crate) fn new(name: &str, test: &str) -> Self {
        let folder = node().join(format!("{name}-{test}"));
        std::fs::create_dir_all(&folder).unwrap();
        let made = Self { name: name.to_owned(), folder };
        made.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.crt -days 30 \
             -subj /O={name}/CN=root -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign"
        ));
        made
    }

    fn openssl(&self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let out = Command::new("openssl").args(&words).current_dir(&self.folder).output().expect("openssl is there");
        assert!(out.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Its root, PEM.
    pub(crate) fn root(&self) -> String {
        self.file("root.crt")
    }

    /// What is in a file of its folder.
    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap()
    }

    /// Learns our roots.
    pub(crate) fn trusts(&self, ours: &str) {
        std::fs::write(self.folder.join("ours.crt"), ours).unwrap();
    }

    /// Certifies `name`, whosever it is; answers the files' name.
    pub(crate) fn certifies(&self, name: &str) -> String {
        let extensions = format!(
            "subjectAltName=DNS:{name}\nextendedKeyUsage=clientAuth,serverAuth\nkeyUsage=critical,digitalSignature\n\
             basicConstraints=critical,CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        );
        std::fs::write(self.folder.join(format!("{name}.ext")), extensions).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /O={}",
            self.name
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA root.crt -CAkey root.key -CAcreateserial -days 30 -extfile {name}.ext -out {name}.crt"
        ));
        name.to_owned()
    }

    /// Takes back what it certified for `name`; answers its list, PEM. Whatever it took back before stays.
    pub(crate) fn revokes(&self, name: &str) -> String {
        let config = "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\ncrlnumber = number\ncertificate = root.crt\n\
                      private_key = root.key\ndefault_md = sha256\ndefault_crl_days = 7\ncrl_extensions = list\n\
                      [list]\nauthorityKeyIdentifier = keyid:always\n";
        for (file, text) in [("ca.cnf", config), ("index.txt", ""), ("number", "01\n")] {
            if !self.folder.join(file).exists() {
                std::fs::write(self.folder.join(file), text).unwrap();
            }
        }
        self.openssl(&format!("ca -config ca.cnf -revoke {name}.crt"));
        self.openssl("ca -config ca.cnf -gencrl -out list.pem");
        std::fs::read_to_string(self.folder.join("list.pem")).unwrap()
    }

    /// Makes itself another root; what it certifies from now on is signed by that.
    pub(crate) fn changes_its_root(&self) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.crt -days 30 \
             -subj /O={}/CN=next -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
            self.name
        ));
    }

    /// A program outside the topology: in the node's own network, in this organisation's folder.
    pub(crate) fn runs(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/entente-node{}", suffix())).arg(program).args(arguments);
        command.current_dir(&self.folder);
        command
    }

    /// OpenSSL's client with the certificate of `name`; an empty name = with none.
    pub(crate) fn dials(&self, name: &str, to: &str) -> Child {
        let (certificate, key) = (format!("{name}.crt"), format!("{name}.key"));
        let mut arguments = vec!["s_client", "-quiet", "-connect", to, "-CAfile", "ours.crt", "-verify_return_error"];
        if !name.is_empty() {
            arguments.extend(["-cert", certificate.as_str(), "-key", key.as_str()]);
        }
        let mut client = self.runs("openssl", &arguments);
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// What `name` is answered to one request; nothing = it was refused.
    pub(crate) fn calls(&self, name: &str, to: &str) -> String {
        let mut child = self.dials(name, to);
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(b"GET / HTTP/1.0\r\n\r\n");
        ends(&mut child, SOON);
        drop(stdin);
        let _ = child.kill();
        String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
    }

    /// A server of its own at an address of its own: mutual TLS with the certificate of `name`, for whom our roots vouch.
    /// It says who it is, and keeps what it is told in the file `heard`.
    pub(crate) fn serves(&self, name: &str, address: &str, port: u16) -> Server {
        let listen = format!(
            "OPENSSL-LISTEN:{port},bind={address},reuseaddr,fork,cert={name}.crt,key={name}.key,cafile=ours.crt,verify=1"
        );
        let says = format!("SYSTEM:echo {name}; cat >>{}", self.folder.join("heard").display());
        Server::new(self, address, &[&listen, &says])
    }

    /// What its servers were told.
    pub(crate) fn heard(&self) -> String {
        std::fs::read_to_string(self.folder.join("heard")).unwrap_or_default()
    }
}

impl Drop for Organisation {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A socat that listens on an address which the node's network gets for it.
pub(crate) struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Listens as socat's `arguments` say, as soon as it is there.
    pub(crate) fn new(place: &Organisation, address: &str, arguments: &[&str]) -> Self {
        alias("add", address);
        let mut socat = place.runs("socat", arguments);
        let child = socat.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, address: address.to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        alias("del", &self.address);
    }
}

fn alias(verb: &str, address: &str) {
    let network = format!("entente-node{}", suffix());
    let address = format!("{address}/32");
    let _ = Command::new("ip").args(["-n", &network, "address", verb, &address, "dev", "lo"]).output();
}

/// Waits for the end of a client; answers how long it took.
pub(crate) fn ends(child: &mut Child, at_most: Duration) -> Option<Duration> {
    let began = Instant::now();
    while began.elapsed() < at_most {
        if child.try_wait().unwrap().is_some() {
            return Some(began.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}
