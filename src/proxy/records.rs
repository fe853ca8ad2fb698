//! What is left of TLS 1.3 once the handshake is over: records, sealed and opened where they lie in a buffer of the
//! thread's, without a copy and without an allocation. No input or output here, and no decision about peers.
//!
//! rustls makes the keys and every key after them; this is RFC 8446 §5, and of §4.6 what may still come: tickets, which
//! nobody keeps, and changes of keys.

mod aead;
#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz;

use std::fmt;

use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, InvalidMessage, PeerMisbehaved,
    client::ClientConnectionData, kernel::KernelConnection, server::ServerConnectionData,
};

use self::aead::Protection;

/// Bytes of a record's header.
pub(super) const HEADER: usize = 5;
/// Bytes of an authentication tag, the same for all three suites.
const TAG: usize = 16;
/// Plaintext that one record carries at most (RFC 8446 §5.1).
pub(super) const MAX_PLAINTEXT: usize = 1 << 14;
/// The same, protected (§5.2): the type, the tag, and padding.
pub(super) const MAX_PROTECTED: usize = MAX_PLAINTEXT + 256;
/// From the beginning of one full record to that of the next.
pub(super) const STRIDE: usize = HEADER + MAX_PLAINTEXT + 1 + TAG;
/// Records that one key seals: half of what AES-GCM allows (§5.5).
const MAX_SEALED: u64 = 1 << 23;
/// Records in a row that bring no data; whoever sends more wants us busy.
const MAX_IDLE: u32 = 32;
/// The longest handshake message that is read after the handshake: of tickets, nothing else is long.
const MAX_MESSAGE: usize = 1 << 14;
/// Handshake types (§4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Makes the next keys.
pub(super) enum Secrets {
    /// We called.
    Client(KernelConnection<ClientConnectionData>),
    /// We were called.
    Server(KernelConnection<ServerConnectionData>),
}

impl Secrets {
    /// What we seal with from now on.
    fn next_transmit(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(connection) => connection.update_tx_secret(),
            Self::Server(connection) => connection.update_tx_secret(),
        }
    }

    /// What the peer seals with from now on.
    fn next_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(connection) => connection.update_rx_secret(),
            Self::Server(connection) => connection.update_rx_secret(),
        }
    }
}

/// Both directions of one connection.
pub(super) struct Records {
    transmit: Protection,
    receive: Protection,
    secrets: Secrets,
    /// The beginning of a handshake message whose end has not come.
    message: Vec<u8>,
    idle: u32,
    max_sealed: u64,
    /// An alert was sealed: nothing may follow.
    ended: bool,
}

impl fmt::Debug for Records {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No keys.
        formatter.debug_struct("Records").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// What one record brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened<'a> {
    /// Data of the application's; never empty.
    Data(&'a [u8]),
    /// Nothing that concerns the application.
    Nothing,
    /// The peer changed its key and wants us to change ours: [`Records::update`].
    UpdateRequested,
    /// The peer says no more.
    Closed,
}

/// How long the record at the beginning of `buffer` is; `None` = its end has not come.
pub(super) fn whole(buffer: &[u8]) -> Result<Option<usize>, Error> {
    let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if header[0] != u8::from(ContentType::ApplicationData) {
        // After the handshake nothing is unprotected, a change of cipher spec included (§5).
        return Err(Error::InappropriateMessage {
            expect_types: vec![ContentType::ApplicationData],
            got_type: ContentType::from(header[0]),
        });
    }
    if length > MAX_PROTECTED {
        return Err(Error::PeerSentOversizedRecord);
    }
    Ok((buffer.len() >= HEADER + length).then_some(HEADER + length))
}

impl Records {
    /// Takes over from rustls.
    pub(super) fn new(keys: ExtractedSecrets, secrets: Secrets) -> Result<Self, Error> {
        Ok(Self {
            transmit: Protection::new(keys.tx)?,
            receive: Protection::new(keys.rx)?,
            secrets,
            message: Vec::new(),
            idle: 0,
            max_sealed: MAX_SEALED,
            ended: false,
        })
    }

    /// Seals `length` bytes of plaintext that lie in `buffer` in pieces of [`MAX_PLAINTEXT`], each [`HEADER`] behind a
    /// multiple of [`STRIDE`]; what comes of them lies at the beginning of `buffer`, in one piece as long as the answer.
    pub(super) fn seal(&mut self, buffer: &mut [u8], length: usize) -> Result<usize, Error> {
        if self.ended {
            return Err(Error::EncryptError);
        }
        let (mut left, mut sealed) = (length, 0);
        for slot in buffer.chunks_mut(STRIDE) {
            if left == 0 {
                break;
            }
            let now = left.min(MAX_PLAINTEXT);
            sealed += self.transmit.seal(slot, now, ContentType::ApplicationData)?;
            left -= now;
        }
        if left == 0 { Ok(sealed) } else { Err(Error::EncryptError) }
    }

    /// Whether it is time for a new key of ours.
    pub(super) const fn is_worn(&self) -> bool {
        self.transmit.sequence() >= self.max_sealed
    }

    /// Seals the announcement of a new key behind `out`, and seals with that from now on. The peer need not follow.
    pub(super) fn update(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        if self.ended {
            return Ok(());
        }
        self.say(ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        self.transmit = Protection::new(self.secrets.next_transmit()?)?;
        Ok(())
    }

    /// Seals an alert behind `out`; after it nothing is sealed.
    pub(super) fn alert(&mut self, description: AlertDescription, out: &mut Vec<u8>) -> Result<(), Error> {
        if self.ended {
            return Ok(());
        }
        // In TLS 1.3 the level says nothing (§6).
        let level = if description == AlertDescription::CloseNotify { 1 } else { 2 };
        self.say(ContentType::Alert, &[level, u8::from(description)], out)?;
        self.ended = true;
        Ok(())
    }

    /// Seals one record of `content`, [`MAX_PLAINTEXT`] at most, behind `out`.
    pub(super) fn say(&mut self, kind: ContentType, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        if self.ended {
            return Err(Error::EncryptError);
        }
        let start = out.len();
        out.resize(start + HEADER + content.len() + 1 + TAG, 0);
        let record = out.get_mut(start..).ok_or(Error::EncryptError)?;
        record[HEADER..HEADER + content.len()].copy_from_slice(content);
        self.transmit.seal(record, content.len(), kind).map(drop)
    }

    /// Opens one [`whole`] record.
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<Opened<'a>, Error> {
        let (kind, content) = self.receive.open(record)?;
        if kind != ContentType::Handshake && !self.message.is_empty() {
            // A message may be split, but nothing may come between (§5.1).
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        if kind == ContentType::ApplicationData && !content.is_empty() {
            self.idle = 0;
            return Ok(Opened::Data(content));
        }
        self.idle += 1;
        if self.idle > MAX_IDLE {
            return Err(PeerMisbehaved::TooManyEmptyFragments.into());
        }
        match kind {
            ContentType::ApplicationData => Ok(Opened::Nothing),
            ContentType::Alert => alerted(content),
            ContentType::Handshake => self.told(content),
            _ => Err(InvalidMessage::UnexpectedMessage("a type of record that no data has").into()),
        }
    }

    /// A handshake message, or a part of one, or several.
    fn told(&mut self, content: &[u8]) -> Result<Opened<'static>, Error> {
        if content.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        self.message.extend_from_slice(content);
        // Thousands of tickets fit into one record: they are removed together.
        let mut read = 0;
        while let Some((&[kind, a, b, c], rest)) = self.message[read..].split_first_chunk() {
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if length > MAX_MESSAGE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let Some(body) = rest.get(..length) else { break };
            match (kind, body) {
                (NEW_SESSION_TICKET, _) => read += 4 + length,
                // Nothing under the old key may follow (§5.1).
                (KEY_UPDATE, &[request @ (0 | 1)]) if rest.len() == length => {
                    self.message = Vec::new();
                    self.follow()?;
                    return Ok(if request == 1 { Opened::UpdateRequested } else { Opened::Nothing });
                }
                (KEY_UPDATE, [0 | 1]) => return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into()),
                (KEY_UPDATE, _) => return Err(InvalidMessage::InvalidKeyUpdate.into()),
                _ => return Err(unexpected()),
            }
        }
        self.message.drain(..read);
        if self.message.is_empty() {
            self.message = Vec::new();
        }
        Ok(Opened::Nothing)
    }

    /// The peer seals with its next key.
    fn follow(&mut self) -> Result<(), Error> {
        self.receive = Protection::new(self.secrets.next_receive()?)?;
        Ok(())
    }
}

fn alerted(content: &[u8]) -> Result<Opened<'static>, Error> {
    let &[_, description] = content else { return Err(InvalidMessage::TrailingData("alert").into()) };
    match AlertDescription::from(description) {
        AlertDescription::CloseNotify => Ok(Opened::Closed),
        // An old habit: it cancels a handshake, and there is none (§6.1).
        AlertDescription::UserCanceled => Ok(Opened::Nothing),
        description => Err(Error::AlertReceived(description)),
    }
}

fn unexpected() -> Error {
    Error::InappropriateMessage { expect_types: vec![ContentType::ApplicationData], got_type: ContentType::Handshake }
}

/// What the peer is told of an error in what it sent (§6.2).
pub(super) const fn alert_for(error: &Error) -> Option<AlertDescription> {
    Some(match error {
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        Error::InvalidMessage(_) => AlertDescription::DecodeError,
        Error::InappropriateMessage { .. } | Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
        _ => return None,
    })
}

#[cfg(test)]
pub(super) mod tests;
