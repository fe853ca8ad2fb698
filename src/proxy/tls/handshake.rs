//! TLS 1.3 handshakes by rustls' unbuffered connections: what comes after the handshake stays ours, and so do the keys.

#[cfg(any(test, feature = "fuzz"))]
pub(in super::super) mod fuzz;

use std::{io, ops::DerefMut};

use rustls::{
    Error,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedConnectionCommon, UnbufferedStatus},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::records::{HEADER, MAX_PROTECTED, Records, Secrets};

/// What is read at a time: more than a flight has.
const READ: usize = 4096;
/// All that a caller may say before we have said anything: one record.
const FIRST: usize = HEADER + MAX_PROTECTED;
/// All that a peer may say before it is judged: a chain of the longest certificates, and what belongs to it.
const MOST: usize = 48 * 1024;

/// The content of an alert, its type and the tag.
const SEALED_ALERT: usize = 2 + 1 + 16;

/// Either role's connection; what both have in common it gives way to.
pub(in super::super) trait Endpoint:
    DerefMut<Target = UnbufferedConnectionCommon<Self::Data>>
{
    /// What rustls keeps for the role.
    type Data;

    /// Goes on with what came.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// The keys, after the handshake.
    fn into_records(self) -> Result<Records, Error>;
}

/// rustls has a type for each role, with methods of the same names.
macro_rules! endpoint {
    ($connection:ty, $data:ty, $secrets:path) => {
        impl Endpoint for $connection {
            type Data = $data;

            fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
                self.process_tls_records(incoming)
            }

            fn into_records(self) -> Result<Records, Error> {
                let (keys, connection) = self.dangerous_into_kernel_connection()?;
                Records::new(keys, $secrets(connection))
            }
        }
    };
}

endpoint!(UnbufferedClientConnection, ClientConnectionData, Secrets::Client);
endpoint!(UnbufferedServerConnection, ServerConnectionData, Secrets::Server);

/// What is left to do after a handshake.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// The last flight of a client: it may go with the first data.
    pub(super) flight: Vec<u8>,
    /// What came behind the handshake.
    pub(super) behind: Vec<u8>,
}

/// What to do next.
enum Next {
    Go,
    Send,
    Receive,
    Done,
}

/// Shakes hands over `socket`.
pub(super) async fn drive<E, S>(endpoint: &mut E, socket: &mut S) -> io::Result<Left>
where
    E: Endpoint,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut incoming = Incoming::default();
    let mut outgoing = Vec::new();
    loop {
        let UnbufferedStatus { discard, state } = endpoint.process(incoming.shown());
        let next = match state {
            Ok(state) => step(state, &mut outgoing),
            Err(error) => Err(error),
        };
        incoming.discard(discard);
        match next {
            Ok(Next::Go) => {}
            Ok(Next::Send) => {
                socket.write_all(&outgoing).await?;
                outgoing.clear();
                incoming.most = MOST;
            }
            Ok(Next::Receive) => incoming.one_more(socket).await?,
            Ok(Next::Done) => return Ok(Left { flight: kept(outgoing), behind: kept(incoming.bytes) }),
            Err(error) => {
                tell(endpoint, &mut incoming, outgoing, socket).await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// `bytes`, and no room beside them: a connection has them for long.
fn kept(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.shrink_to_fit();
    bytes
}

fn step<D>(state: ConnectionState<'_, '_, D>, outgoing: &mut Vec<u8>) -> Result<Next, Error> {
    match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let end = outgoing.len();
            if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
                outgoing.resize(end + needed.required_size, 0);
                let _ = data.encode(&mut outgoing[end..]);
            }
            Ok(Next::Go)
        }
        ConnectionState::TransmitTlsData(mut data) => {
            let last = data.may_encrypt_app_data().is_some();
            data.done();
            Ok(if last { Next::Go } else { Next::Send })
        }
        ConnectionState::BlockedHandshake => Ok(Next::Receive),
        ConnectionState::WriteTraffic(_) => Ok(Next::Done),
        _ => Err(Error::HandshakeNotComplete),
    }
}

/// Sends the alert that says why, as far as it can be sent.
async fn tell<E, S>(endpoint: &mut E, incoming: &mut Incoming, mut outgoing: Vec<u8>, socket: &mut S)
where
    E: Endpoint,
    S: AsyncWrite + Unpin,
{
    // After an error a connection gives what it has to say, and then the error again. It must still be shown what it was
    // shown: it remembers where in it the next message began.
    while let UnbufferedStatus { discard, state: Ok(state @ ConnectionState::EncodeTlsData(_)) } =
        endpoint.process(incoming.shown())
    {
        let start = outgoing.len();
        let said = step(state, &mut outgoing);
        incoming.discard(discard);
        // Asked once more than that, it would look at what it could not read again, and complain again.
        if said.is_err() || is_alert(&outgoing[start..]) {
            break;
        }
    }
    // Whether it arrives makes no difference.
    let _ = socket.write_all(&outgoing).await;
}

/// Whether a record can be nothing else: no other content has two bytes (RFC 8446 §4, §6), sealed or not.
const fn is_alert(record: &[u8]) -> bool {
    matches!(record.len().saturating_sub(HEADER), 2 | SEALED_ALERT)
}

/// What came. rustls is shown whole records only, one more each time, so that it never takes what is not its own.
struct Incoming {
    bytes: Vec<u8>,
    shown: usize,
    most: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { bytes: Vec::new(), shown: 0, most: FIRST }
    }
}

impl Incoming {
    fn shown(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.shown]
    }

    fn discard(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.shown -= count;
    }

    async fn one_more<S: AsyncRead + Unpin>(&mut self, socket: &mut S) -> io::Result<()> {
        loop {
            if let Some(length) = record(&self.bytes[self.shown..]) {
                self.shown += length;
                return Ok(());
            }
            if self.bytes.len() >= self.most {
                return Err(io::Error::new(io::ErrorKind::InvalidData, Error::PeerSentOversizedRecord));
            }
            // No more room than that takes: a thousand peers may all be slow.
            self.bytes.reserve_exact(missing(&self.bytes[self.shown..]));
            if socket.read_buf(&mut self.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// How much of the first record has not come, as far as that is known.
fn missing(bytes: &[u8]) -> usize {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return READ };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    (HEADER + length).saturating_sub(bytes.len()).max(1)
}

/// The length of the first record, once it is whole. What is none is shown to rustls as it is, which says why.
fn record(bytes: &[u8]) -> Option<usize> {
    // From a change of cipher spec to data (RFC 8446 §5.1).
    if !(0x14..=0x17).contains(bytes.first()?) {
        return Some(bytes.len());
    }
    let header = bytes.first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length > MAX_PROTECTED {
        return Some(bytes.len());
    }
    (bytes.len() >= HEADER + length).then_some(HEADER + length)
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, ClientConnection};

    use super::{
        super::super::records::tests::{configs, name},
        *,
    };

    #[tokio::test]
    async fn a_record_that_cannot_be_opened_ends_a_handshake_with_one_alert() {
        let (client, server) = configs();
        let mut caller = ClientConnection::new(client, name()).unwrap();
        let mut wire = vec![];
        caller.write_tls(&mut wire).unwrap();
        wire.extend([0x17, 3, 3, 0, 32]);
        wire.extend([7; 32]);
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(&wire).await.unwrap();
        let mut endpoint = UnbufferedServerConnection::new(server).unwrap();
        assert!(drive(&mut endpoint, &mut near).await.is_err());
        drop(near);
        let mut answer = vec![];
        far.read_to_end(&mut answer).await.unwrap();
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            caller.read_tls(&mut rest).unwrap();
        }
        let told = caller.process_new_packets().unwrap_err();
        assert_eq!(told, Error::AlertReceived(AlertDescription::BadRecordMac));
    }

    #[test]
    fn of_a_first_message_no_more_room_is_taken_than_it_says_to_need() {
        assert_eq!(missing(&[]), READ);
        assert_eq!(missing(&[0x16, 3, 1, 2]), READ);
        assert_eq!(missing(&[0x16, 3, 1, 2, 0, 1]), 511);
        assert_eq!(missing(&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc]), 16_380);
    }
}
