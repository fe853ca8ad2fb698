//! DNS messages (RFC 1035, RFC 6891): what the application asks, what resolvers answer, what the application is told.

use std::net::IpAddr;

use domain::{
    base::{
        Header, HeaderCounts, HeaderSection, Message, MessageBuilder, Name, Question, Rtype, ToName,
        iana::{Class, Opcode, Rcode},
        wire::ParseError,
    },
    dep::octseq::Octets,
    rdata::{A, Aaaa},
};

use crate::identity::DnsName;

/// What we say we can take over UDP: it arrives in one piece on every network (RFC 9715).
const PAYLOAD: u16 = 1232;
/// Without EDNS a message over UDP has at most so many bytes (RFC 1035 §4.2.1).
const PLAIN_UDP: u16 = 512;
/// More is not sent in a datagram, whatever the application can take.
const MOST_UDP: u16 = 4096;
/// How long the application may keep what we answer ourselves, in seconds.
const TTL: u32 = 5;

/// One question of the application.
#[derive(Clone, Debug)]
pub(super) struct Query {
    id: u16,
    question: Question<Name<Vec<u8>>>,
    recursion: bool,
    checking_disabled: bool,
    authentic: bool,
    edns: Option<Edns>,
}

#[derive(Clone, Copy, Debug)]
struct Edns {
    size: u16,
    dnssec: bool,
}

/// Why a message is no question that we pass on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Not even worth an answer: too short, or an answer itself.
    Nothing,
    /// To be answered so.
    Answer(Vec<u8>),
}

impl Query {
    /// Reads what the application sent.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        let message = Message::from_octets(bytes).map_err(|_| Unreadable::Nothing)?;
        let header = message.header();
        if header.qr() {
            return Err(Unreadable::Nothing);
        }
        let refuse = |rcode| {
            let mut builder = MessageBuilder::new_vec();
            let answer = builder.header_mut();
            answer.set_id(header.id());
            answer.set_qr(true);
            answer.set_opcode(header.opcode());
            answer.set_rd(header.rd());
            answer.set_rcode(rcode);
            Unreadable::Answer(builder.finish())
        };
        if header.opcode() != Opcode::QUERY {
            return Err(refuse(Rcode::NOTIMP));
        }
        let malformed = |_| refuse(Rcode::FORMERR);
        let question = message.sole_question().map_err(malformed)?;
        let name: Name<Vec<u8>> = question.qname().to_name();
        let question = Question::new(name, question.qtype(), question.qclass());
        // What cannot be read to its end is not guessed at.
        end_of_records(&message).map_err(malformed)?;
        let edns = message.opt().map(|opt| Edns { size: opt.udp_payload_size(), dnssec: opt.dnssec_ok() });
        let (recursion, checking_disabled, authentic) = (header.rd(), header.cd(), header.ad());
        Ok(Self { id: header.id(), question, recursion, checking_disabled, authentic, edns })
    }

    /// A question of our own.
    pub(super) fn of(name: &DnsName, kind: Rtype) -> Option<Self> {
        let question = Question::new(name.as_str().parse().ok()?, kind, Class::IN);
        Some(Self { id: 0, question, recursion: true, checking_disabled: false, authentic: false, edns: None })
    }

    /// The name asked for, where it has the form of one that we know; letters do not differ by case (RFC 4343).
    pub(super) fn name(&self) -> Option<DnsName> {
        dns_name(self.question.qname())
    }

    /// The name that this asks for how to connect (`HTTPS`, `SVCB`): labels of port and protocol come before it.
    pub(super) fn service_name(&self) -> Option<DnsName> {
        let suffix =
            self.question.qname().iter_suffixes().find(|name| name.first().as_slice().first() != Some(&b'_'))?;
        dns_name(&suffix)
    }

    /// The record type asked for.
    pub(super) fn kind(&self) -> Rtype {
        self.question.qtype()
    }

    /// What a resolver is asked: the question alone under this number, nothing of the application's options.
    pub(super) fn compose(&self, id: u16) -> Option<Vec<u8>> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(self.recursion);
        header.set_cd(self.checking_disabled);
        header.set_ad(self.authentic);
        let mut builder = builder.question();
        builder.push(&self.question).ok()?;
        let mut builder = builder.additional();
        let dnssec = self.edns.is_some_and(|edns| edns.dnssec);
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(PAYLOAD);
                opt.set_dnssec_ok(dnssec);
                Ok(())
            })
            .ok()?;
        Some(builder.finish())
    }

    /// An answer of our own: these addresses, or none.
    pub(super) fn reply(&self, rcode: Rcode, addresses: &[IpAddr]) -> Option<Vec<u8>> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(self.id);
        header.set_qr(true);
        header.set_rd(self.recursion);
        header.set_cd(self.checking_disabled);
        header.set_ra(true);
        header.set_rcode(rcode);
        let mut builder = builder.question();
        builder.push(&self.question).ok()?;
        let mut builder = builder.answer();
        for address in addresses {
            let name = self.question.qname();
            match address {
                IpAddr::V4(address) => builder.push((name, TTL, A::new(*address))).ok()?,
                IpAddr::V6(address) => builder.push((name, TTL, Aaaa::new(*address))).ok()?,
            }
        }
        self.with_options(builder.finish())
    }

    /// The answer of a resolver as the application gets it: without its additional section, which nobody asked for.
    pub(super) fn relay(&self, answer: &Answer) -> Option<Vec<u8>> {
        let message = &answer.0;
        let end = message.additional().ok()?.pos();
        let mut bytes = message.as_slice().get(..end)?.to_vec();
        // The question in the application's own spelling.
        let asked = self.question.qname().as_slice();
        let at = size_of::<HeaderSection>();
        bytes.get_mut(at..at + asked.len())?.copy_from_slice(asked);
        let header = Header::for_message_slice_mut(&mut bytes);
        header.set_id(self.id);
        header.set_tc(false);
        HeaderCounts::for_message_slice_mut(&mut bytes).set_arcount(0);
        self.with_options(bytes)
    }

    /// Adds our own OPT record where the application sent one.
    fn with_options(&self, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        if let Some(edns) = self.edns {
            HeaderCounts::for_message_slice_mut(&mut bytes).set_arcount(1);
            let [high, low] = PAYLOAD.to_be_bytes();
            let flags = if edns.dnssec { 0x80 } else { 0 };
            bytes.extend_from_slice(&[0, 0, 41, high, low, 0, 0, flags, 0, 0, 0]);
        }
        (bytes.len() <= usize::from(u16::MAX)).then_some(bytes)
    }

    /// What fits into a datagram to the application: the message, or that it must ask again over TCP.
    pub(super) fn datagram(&self, message: Vec<u8>) -> Option<Vec<u8>> {
        let most = self.edns.map_or(PLAIN_UDP, |edns| edns.size).clamp(PLAIN_UDP, MOST_UDP);
        if message.len() <= usize::from(most) {
            return Some(message);
        }
        let mut short = self.reply(Message::from_slice(&message).ok()?.header().rcode(), &[])?;
        Header::for_message_slice_mut(&mut short).set_tc(true);
        Some(short)
    }
}

/// What a resolver answered; it was read to its end.
#[derive(Clone, Debug)]
pub(super) struct Answer(Message<Vec<u8>>);

/// An address that an answer tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Of which name, where it is one that could be declared.
    pub(super) owner: Option<DnsName>,
    /// Which.
    pub(super) address: IpAddr,
}

impl Answer {
    /// Reads the answer to what `query` asked under `id`; `None` = it is none.
    pub(super) fn parse(bytes: Vec<u8>, query: &Query, id: u16) -> Option<Self> {
        let message = Message::from_octets(bytes).ok()?;
        let header = message.header();
        if !header.qr() || header.id() != id || header.opcode() != Opcode::QUERY {
            return None;
        }
        let question = message.sole_question().ok()?;
        if question != query.question || question.qname().is_compressed() {
            return None;
        }
        if header.tc() {
            // What was cut off anywhere is asked for again and never passed on.
            return Some(Self(message));
        }
        end_of_records(&message).ok()?;
        let answer = Self(message);
        answer.addresses()?;
        Some(answer)
    }

    /// Whether it did not fit.
    pub(super) fn is_truncated(&self) -> bool {
        self.0.header().tc()
    }

    /// How it went, the extension of EDNS included; `None` = in a way that the application is not told.
    pub(super) fn rcode(&self) -> Option<Rcode> {
        let code = self.0.opt_rcode().to_int();
        (code < 16).then(|| self.0.header().rcode())
    }

    /// Every address of its answer and authority sections; `None` = one cannot be read.
    pub(super) fn addresses(&self) -> Option<Vec<Told>> {
        let answer = self.0.answer().ok()?;
        let authority = answer.next_section().ok()??;
        let mut found = Vec::new();
        for section in [answer, authority] {
            for record in section.limit_to_in::<A>() {
                let record = record.ok()?;
                let address = record.data().addr().into();
                found.push(Told { owner: dns_name(record.owner()), address });
            }
            for record in section.limit_to_in::<Aaaa>() {
                let record = record.ok()?;
                let address = IpAddr::from(record.data().addr()).to_canonical();
                found.push(Told { owner: dns_name(record.owner()), address });
            }
        }
        Some(found)
    }
}

/// Reads all records; answers where they end.
fn end_of_records<Octs: Octets>(message: &Message<Octs>) -> Result<usize, ParseError> {
    let mut section = message.additional()?;
    for record in &mut section {
        record?;
    }
    Ok(section.pos())
}

fn dns_name(name: &impl ToName) -> Option<DnsName> {
    let mut text = String::new();
    for label in name.iter_labels().filter(|label| !label.is_root()) {
        let label = std::str::from_utf8(label.as_slice()).ok()?;
        // A dot inside a label is no border between two.
        if label.contains('.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&label.to_ascii_lowercase());
    }
    DnsName::parse(&text).ok()
}
