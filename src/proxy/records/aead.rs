//! One direction's key: records are sealed and opened where they lie (RFC 8446 §5.2, §5.3).

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ContentType, Error};

use super::{HEADER, MAX_PLAINTEXT, TAG};

/// A traffic key, and how many records it has protected.
#[derive(Debug)]
pub(super) struct Protection {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Protection {
    /// What rustls agreed on with the peer, from record number `sequence` on.
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher that was not offered".to_owned())),
        };
        let unusable = |_| Error::General("unusable traffic secrets".to_owned());
        let key = key.as_ref().get(..algorithm.key_len()).ok_or(Error::EncryptError)?;
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).map_err(unusable)?);
        let iv = iv.as_ref().try_into().map_err(|_| Error::EncryptError)?;
        Ok(Self { key, iv, sequence })
    }

    /// How many records this key has protected.
    pub(super) const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Seals the record at the beginning of `buffer`, whose `length` bytes of plaintext lie behind the room for its
    /// header; answers its whole length.
    pub(super) fn seal(&mut self, buffer: &mut [u8], length: usize, kind: ContentType) -> Result<usize, Error> {
        let sealed = HEADER + length + 1 + TAG;
        if length > MAX_PLAINTEXT {
            return Err(Error::EncryptError);
        }
        let record = buffer.get_mut(..sealed).ok_or(Error::EncryptError)?;
        let (header, body) = record.split_at_mut(HEADER);
        let covered = u16::try_from(length + 1 + TAG).map_err(|_| Error::EncryptError)?.to_be_bytes();
        header.copy_from_slice(&[u8::from(ContentType::ApplicationData), 3, 3, covered[0], covered[1]]);
        let (plaintext, tag) = body.split_at_mut(length + 1);
        plaintext[length] = u8::from(kind);
        let nonce = self.nonce()?;
        let made = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(&*header), plaintext)
            .map_err(|_| Error::EncryptError)?;
        tag.copy_from_slice(made.as_ref());
        Ok(sealed)
    }

    /// Opens one whole record where it lies: what was in it, padding removed, and of which type.
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<(ContentType, &'a [u8]), Error> {
        let (header, body) = record.split_at_mut_checked(HEADER).ok_or(Error::DecryptError)?;
        let nonce = self.nonce()?;
        let inner = self.key.open_in_place(nonce, Aad::from(&*header), body).map_err(|_| Error::DecryptError)?;
        // TLSInnerPlaintext (§5.2): the content, its type, zeros.
        let end = inner.iter().rposition(|byte| *byte != 0);
        let end = end.ok_or(Error::PeerMisbehaved(rustls::PeerMisbehaved::IllegalTlsInnerPlaintext))?;
        if end > MAX_PLAINTEXT {
            return Err(Error::PeerSentOversizedRecord);
        }
        let kind = ContentType::from(inner[end]);
        Ok((kind, &inner[..end]))
    }

    /// The nonce of the next record (§5.3). A number is never used twice: it moves here and nowhere else.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(Error::EncryptError)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}
