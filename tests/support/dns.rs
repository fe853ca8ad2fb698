//! A resolver that tells what a test wants, over UDP and TCP, and a client that asks one question.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::{
    base::{
        Message, MessageBuilder, Name, Rtype, Ttl,
        iana::{Class, Rcode},
    },
    rdata::{A, Aaaa, AllRecordData, Cname, Txt},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

/// How long a client waits.
const WAIT: Duration = Duration::from_secs(8);

/// What is known of one name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zone {
    /// Aliases, each of the one before; the addresses are the last one's.
    pub(crate) aliases: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Told beside the answer.
    pub(crate) additional: Vec<(String, IpAddr)>,
    /// So many TXT records, to be long.
    pub(crate) texts: usize,
}

/// How it behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    pub(crate) zones: BTreeMap<String, Zone>,
    /// Says SERVFAIL to everything.
    pub(crate) fails: bool,
    /// Says nothing.
    pub(crate) silent: bool,
    /// Sends first what answers something else: another number, another question.
    pub(crate) forges: Option<IpAddr>,
    /// What was asked, as it was spelt; `true` = over TCP.
    pub(crate) asked: Vec<(String, Rtype, bool)>,
    /// From which ports, over UDP.
    pub(crate) ports: Vec<u16>,
}

/// A running resolver; it ends with the runtime.
#[derive(Clone)]
pub(crate) struct Resolver {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl Resolver {
    /// Listens on all of `addresses`; the first one is its address.
    pub(crate) async fn start(addresses: &[SocketAddr]) -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let mut first = None;
        for address in addresses {
            let listener = TcpListener::bind(address).await.unwrap();
            let address = listener.local_addr().unwrap();
            let socket = UdpSocket::bind(address).await.unwrap();
            first.get_or_insert(address);
            tokio::spawn(datagrams(socket, script.clone()));
            tokio::spawn(streams(listener, script.clone()));
        }
        Self { address: first.unwrap(), script }
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.script.lock().unwrap())
    }

    /// From now on `name` has these addresses.
    pub(crate) fn tell(&self, name: &str, addresses: &[IpAddr]) {
        let zone = Zone { addresses: addresses.to_vec(), ..Zone::default() };
        self.change(|script| script.zones.insert(name.to_owned(), zone));
    }

    /// How often it was asked for `name`.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.change(|script| script.asked.iter().filter(|(asked, ..)| asked.eq_ignore_ascii_case(name)).count())
    }
}

async fn datagrams(socket: UdpSocket, script: Arc<Mutex<Script>>) {
    let mut buffer = vec![0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        script.lock().unwrap().ports.push(from.port());
        for answer in answers(&buffer[..length], &script, false) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn streams(listener: TcpListener, script: Arc<Mutex<Script>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let script = script.clone();
        tokio::spawn(async move {
            while let Ok(question) = read_framed(&mut stream).await {
                for answer in answers(&question, &script, true) {
                    let _ = write_framed(&mut stream, &answer).await;
                }
            }
        });
    }
}

fn answers(question: &[u8], script: &Mutex<Script>, tcp: bool) -> Vec<Vec<u8>> {
    let message = Message::from_octets(question.to_vec()).unwrap();
    let asked = message.sole_question().unwrap();
    let name = asked.qname().to_string();
    let mut script = script.lock().unwrap();
    script.asked.push((name.clone(), asked.qtype(), tcp));
    if script.silent {
        return vec![];
    }
    if script.fails {
        return vec![compose(&message, None, Rcode::SERVFAIL, 0)];
    }
    let mut all = vec![];
    if let Some(address) = script.forges.filter(|_| !tcp) {
        let zone = Zone { addresses: vec![address], ..Zone::default() };
        all.push(compose(&message, Some(&zone), Rcode::NOERROR, 1));
        let other = query("other.example", Rtype::A, message.header().id(), None);
        all.push(compose(&Message::from_octets(other).unwrap(), Some(&zone), Rcode::NOERROR, 0));
    }
    let zone = script.zones.get(&name.to_ascii_lowercase());
    let rcode = if zone.is_some() { Rcode::NOERROR } else { Rcode::NXDOMAIN };
    let mut answer = compose(&message, zone, rcode, 0);
    if !tcp && answer.len() > 1232 {
        answer = compose(&message, None, Rcode::NOERROR, 0);
        answer[2] |= 2;
    }
    all.push(answer);
    all
}

/// The answer, under a number that is `off` by so much.
fn compose(question: &Message<Vec<u8>>, zone: Option<&Zone>, rcode: Rcode, off: u16) -> Vec<u8> {
    let mut answer = MessageBuilder::new_vec().start_answer(question, rcode).unwrap();
    let asked = question.sole_question().unwrap();
    let mut owner: Name<Vec<u8>> = asked.qname().to_string().parse().unwrap();
    let ttl = 30;
    if let Some(zone) = zone {
        for alias in &zone.aliases {
            let alias: Name<Vec<u8>> = alias.parse().unwrap();
            answer.push((&owner, ttl, Cname::new(&alias))).unwrap();
            owner = alias;
        }
        for address in &zone.addresses {
            match (address, asked.qtype()) {
                (IpAddr::V4(v4), Rtype::A) => answer.push((&owner, ttl, A::new(*v4))).unwrap(),
                (IpAddr::V6(v6), Rtype::AAAA) => answer.push((&owner, ttl, Aaaa::new(*v6))).unwrap(),
                _ => {}
            }
        }
        for _ in 0..zone.texts {
            let text: Txt<Vec<u8>> = Txt::build_from_slice(&[b'x'; 200]).unwrap();
            answer.push((&owner, ttl, text)).unwrap();
        }
    }
    let mut additional = answer.additional();
    for (name, address) in zone.iter().flat_map(|zone| &zone.additional) {
        let name: Name<Vec<u8>> = name.parse().unwrap();
        match address {
            IpAddr::V4(v4) => additional.push((&name, Class::IN, Ttl::from_secs(ttl), A::new(*v4))).unwrap(),
            IpAddr::V6(v6) => additional.push((&name, Class::IN, Ttl::from_secs(ttl), Aaaa::new(*v6))).unwrap(),
        }
    }
    let mut bytes = additional.finish();
    let id = question.header().id().wrapping_add(off);
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    bytes
}

/// A question; `edns` = what the client can take.
pub(crate) fn query(name: &str, kind: Rtype, id: u16, edns: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(id);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((name.parse::<Name<Vec<u8>>>().unwrap(), kind)).unwrap();
    let mut builder = builder.additional();
    if let Some(size) = edns {
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                Ok(())
            })
            .unwrap();
    }
    builder.finish()
}

/// What a client was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Nothing at all, where it is `None`.
    pub(crate) rcode: Option<u8>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Records of the answer section.
    pub(crate) records: usize,
    /// Records of the additional section but OPT.
    pub(crate) additional: usize,
    pub(crate) truncated: bool,
    /// The name as the answer spells it.
    pub(crate) question: String,
}

/// One question of a client; it hears only what the address that it asked answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) server: SocketAddr,
    pub(crate) name: String,
    /// Number of the record type.
    pub(crate) kind: u16,
    pub(crate) tcp: bool,
    pub(crate) edns: Option<u16>,
}

impl Ask {
    /// For addresses, over UDP, with EDNS.
    pub(crate) fn new(server: SocketAddr, name: &str) -> Self {
        Self { server, name: name.to_owned(), kind: Rtype::A.to_int(), tcp: false, edns: Some(1232) }
    }

    pub(crate) fn kind(mut self, kind: Rtype) -> Self {
        self.kind = kind.to_int();
        self
    }

    pub(crate) fn over_tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn play(&self) -> Told {
        let question = query(&self.name, Rtype::from_int(self.kind), 4711, self.edns);
        match timeout(WAIT, exchange(self.server, &question, self.tcp)).await {
            Ok(Ok(answer)) => read(answer),
            Ok(Err(_)) | Err(_) => Told::default(),
        }
    }
}

/// Sends these bytes and reads what comes.
pub(crate) async fn exchange(server: SocketAddr, question: &[u8], tcp: bool) -> io::Result<Vec<u8>> {
    if tcp {
        let mut stream = TcpStream::connect(server).await?;
        write_framed(&mut stream, question).await?;
        return read_framed(&mut stream).await;
    }
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).await?;
    buffer.truncate(length);
    Ok(buffer)
}

pub(crate) fn read(answer: Vec<u8>) -> Told {
    let message = Message::from_octets(answer).unwrap();
    assert!(message.header().qr());
    assert_eq!(message.header().id(), 4711);
    let question = message.sole_question().map(|question| question.qname().to_string()).unwrap_or_default();
    let mut told = Told {
        rcode: Some(message.header().rcode().to_int()),
        truncated: message.header().tc(),
        question,
        ..Told::default()
    };
    for record in message.answer().unwrap() {
        told.records += 1;
        match record.unwrap().to_any_record::<AllRecordData<_, _>>().unwrap().into_data() {
            AllRecordData::A(a) => told.addresses.push(a.addr().into()),
            AllRecordData::Aaaa(aaaa) => told.addresses.push(aaaa.addr().into()),
            _ => {}
        }
    }
    let kinds = message.additional().unwrap().map(|record| record.unwrap().rtype());
    told.additional = kinds.filter(|kind| *kind != Rtype::OPT).count();
    told
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, message].concat()).await
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
