//! A peer that knows the keys and seals whatever it likes: by its own few lines, none of which are ours.

use std::{cell::RefCell, sync::Arc};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, RootCertStore, ServerConfig,
    client::UnbufferedClientConnection,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite, kx_group},
        cipher::{AeadKey, Iv},
    },
    server::UnbufferedServerConnection,
    version::TLS13,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::super::{Records, Secrets};
use crate::{proxy::tls, telemetry};

/// Cipher suites that may be agreed on.
const SUITES: usize = 3;

thread_local! {
    /// For each suite what makes further keys, client's and server's, none of it used yet. A handshake is a hundred
    /// times as long as what is tried behind it.
    static SPARE: RefCell<[Option<(Secrets, Secrets)>; SUITES]> = const { RefCell::new([const { None }; SUITES]) };
}

/// What was agreed on.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Choice {
    suite: usize,
    we_called: bool,
}

impl Choice {
    pub(in crate::proxy) fn new(byte: u8) -> Self {
        Self { suite: usize::from(byte / 2) % SUITES, we_called: byte.is_multiple_of(2) }
    }

    /// A key and an initialization vector that are the same every time.
    fn secrets(self, byte: u8) -> ConnectionTrafficSecrets {
        let (key, iv) = (AeadKey::from([byte; 32]), Iv::from([byte; 12]));
        match self.suite {
            0 => ConnectionTrafficSecrets::Aes128Gcm { key, iv },
            1 => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            _ => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
        }
    }
}

/// Both ends of a connection.
pub(in crate::proxy) fn ends(choice: Choice) -> (Records, Peer) {
    let spare = SPARE.with_borrow_mut(|spare| spare[choice.suite].take());
    let (client, server) = spare.unwrap_or_else(|| shaken(choice.suite));
    let (ours, theirs) = if choice.we_called { (client, server) } else { (server, client) };
    let keys = ExtractedSecrets { tx: (0, choice.secrets(1)), rx: (0, choice.secrets(2)) };
    let records = Records::new(keys, ours).expect("the keys are as long as the suite's");
    let [transmit, receive] = [2, 1].map(|byte| Key::new(choice.secrets(byte)));
    (records, Peer { transmit, receive, secrets: theirs, choice, changed: false })
}

/// What a real handshake leaves on both sides.
fn shaken(suite: usize) -> (Secrets, Secrets) {
    let (client, server) = configs(suite).expect("the configurations are right");
    let name = "far.example".try_into().expect("a name");
    let caller = UnbufferedClientConnection::new(client, name).expect("a caller");
    let callee = UnbufferedServerConnection::new(server).expect("a callee");
    let [caller, callee] = tls::fuzz::shake(caller, callee);
    (caller.secrets, callee.secrets)
}

fn configs(suite: usize) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), anyhow::Error> {
    let suites = [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let (cipher_suites, kx_groups) = (vec![suites[suite]], vec![kx_group::X25519]);
    let provider = Arc::new(CryptoProvider { cipher_suites, kx_groups, ..telemetry::crypto() });
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["far.example".to_owned()])?.self_signed(&key)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone())?;
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    server.send_tls13_tickets = 0;
    Ok((Arc::new(client), Arc::new(server)))
}

/// The other end.
pub(in crate::proxy) struct Peer {
    transmit: Key,
    receive: Key,
    secrets: Secrets,
    choice: Choice,
    /// Whether a key was changed.
    changed: bool,
}

impl Peer {
    /// A record with `inner` in it, under a header of any version: nobody may look at that (§5.1).
    pub(super) fn seal(&mut self, version: [u8; 2], inner: Vec<u8>) -> Vec<u8> {
        self.transmit.seal(version, inner)
    }

    /// A record of `kind` with `content`.
    pub(in crate::proxy) fn say(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        self.seal([3, 3], [content, &[kind]].concat())
    }

    /// Asks for a new key, having one.
    pub(in crate::proxy) fn ask(&mut self) -> Vec<u8> {
        let record = self.say(22, &[24, 0, 0, 1, 1]);
        self.change();
        record
    }

    /// Seals by the next key from now on.
    pub(super) fn change(&mut self) {
        self.transmit = Key::new(self.secrets.next_transmit().expect("the next key").1);
        self.changed = true;
    }

    /// Takes the whole records from the front of `wire`, which we have sealed: their types and contents.
    pub(in crate::proxy) fn hear(&mut self, wire: &mut Vec<u8>) -> Vec<(u8, Vec<u8>)> {
        let (mut heard, mut rest) = (vec![], wire.as_slice());
        while let Some((header, behind)) = rest.split_first_chunk() {
            let &[23, 3, 3, high, low] = header else { unreachable!("{header:?} is the header of no record") };
            let Some((body, behind)) = behind.split_at_checked(usize::from(u16::from_be_bytes([high, low]))) else {
                break;
            };
            let (kind, content) = self.receive.open(header, body);
            if (kind, content.as_slice()) == (22, &[24, 0, 0, 1, 0]) {
                self.follow();
            }
            heard.push((kind, content));
            rest = behind;
        }
        wire.drain(..wire.len() - rest.len());
        heard
    }

    fn follow(&mut self) {
        self.receive = Key::new(self.secrets.next_receive().expect("the next key").1);
        self.changed = true;
    }

    /// Keeps for the next connection what makes keys, unless it has made some: then the next one shakes hands.
    pub(in crate::proxy) fn give_back(self, ours: Records) {
        let Self { secrets, choice, changed, .. } = self;
        // Ours have not moved either: we change our keys when we are asked to, which changes the peer's first.
        if !changed {
            let both = if choice.we_called { (ours.secrets, secrets) } else { (secrets, ours.secrets) };
            SPARE.with_borrow_mut(|spare| spare[choice.suite] = Some(both));
        }
    }
}

/// A key, and how many records it has protected.
struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
    number: u64,
}

impl Key {
    fn new(secrets: ConnectionTrafficSecrets) -> Self {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => unreachable!("there are three suites"),
        };
        let key = UnboundKey::new(algorithm, &key.as_ref()[..algorithm.key_len()]).expect("a key of the right length");
        Self { key: LessSafeKey::new(key), iv: iv.as_ref().try_into().expect("twelve bytes"), number: 0 }
    }

    fn nonce(&mut self) -> Nonce {
        let number = u128::from(self.number).to_be_bytes();
        self.number += 1;
        Nonce::assume_unique_for_key(std::array::from_fn(|index| self.iv[index] ^ number[index + 4]))
    }

    fn seal(&mut self, version: [u8; 2], mut inner: Vec<u8>) -> Vec<u8> {
        let [high, low] = u16::try_from(inner.len() + 16).expect("a length of two bytes").to_be_bytes();
        let mut record = vec![23, version[0], version[1], high, low];
        let nonce = self.nonce();
        self.key.seal_in_place_append_tag(nonce, Aad::from(record.as_slice()), &mut inner).expect("a sealed record");
        record.extend(inner);
        record
    }

    fn open(&mut self, header: &[u8; 5], body: &[u8]) -> (u8, Vec<u8>) {
        let (nonce, mut body) = (self.nonce(), body.to_vec());
        let inner = self.key.open_in_place(nonce, Aad::from(header), &mut body).expect("what was sealed can be opened");
        let (kind, content) = inner.split_last().expect("a type");
        (*kind, content.to_vec())
    }
}
