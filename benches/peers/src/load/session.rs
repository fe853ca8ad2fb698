//! One connection at the server: its first byte chooses what it is for.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    sync::LazyLock,
};

use mio::net::TcpStream;

use super::{REQUEST, pattern};

/// Reads or writes of one connection before others have their turn.
const BURST: usize = 16;

/// What an HTTP request is answered with: headers and a body of 1 KiB.
pub(super) static ANSWER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n".to_vec();
    answer.extend(pattern::seeded(11, 1024).iter().map(|byte| b'a' + byte % 26));
    answer
});

/// A request of the paced load.
pub(super) const PACED_REQUEST: usize = 64;

/// What a connection is for, by its first byte.
enum Role {
    /// Not known yet: the first bytes so far
    Unknown { head: [u8; 9], have: usize },
    /// `G`: keep-alive HTTP
    Requests,
    /// `D` and how many bytes (0 = no end): the pattern, then FIN
    Source,
    /// `U` and `V`: counts until FIN and answers the count; `V` compares every byte, `U` samples
    Sink { whole: bool, harmed: bool },
    /// `E`: what comes is sent back, FIN too
    Echo,
    /// `P` and a size: each 64 bytes are answered with so many
    Paced { size: u64 },
    /// `C`: one byte back, then FIN
    Connect,
}

/// What follows once everything owed is written.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Stay,
    HalfClose,
    Close,
}

/// What a connection needs next.
pub(super) enum Turn {
    /// To be read again when there is something
    Wait,
    /// To be written to when there is room
    Full,
    /// Another turn; it has had its share
    Again,
    Done,
}

/// One connection.
pub(super) struct Session {
    pub(super) stream: TcpStream,
    /// Whether room for writing is waited for; nobody else needs to be woken for it.
    pub(super) writes: bool,
    /// Whether it stands among those that get another turn.
    pub(super) queued: bool,
    role: Role,
    read: u64,
    written: u64,
    owed: u64,
    then: Then,
    /// What is owed, where that is neither the answer nor the pattern.
    kept: Vec<u8>,
}

impl Session {
    pub(super) fn new(stream: TcpStream) -> Self {
        let role = Role::Unknown { head: [0; 9], have: 0 };
        let (read, written, owed) = (0, 0, 0);
        Self { stream, writes: false, queued: false, role, read, written, owed, then: Then::Stay, kept: Vec::new() }
    }

    /// Reads and writes what is possible now. `ended`: the peer's FIN is known to be there.
    pub(super) fn turn(&mut self, buffer: &mut [u8], ended: bool) -> io::Result<Turn> {
        for _ in 0..BURST {
            if let Some(turn) = self.write()? {
                return Ok(turn);
            }
            let length = match self.stream.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Wait),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if length == 0 {
                self.peer_ended();
            } else {
                self.take(&buffer[..length])?;
            }
            if let Some(turn) = self.write()? {
                return Ok(turn);
            }
            // Less than asked for means that nothing is left; only a FIN would not be told again.
            if length < buffer.len() && !ended {
                return Ok(Turn::Wait);
            }
        }
        Ok(Turn::Again)
    }

    /// Writes what is owed; none if all of it is written and the connection stays.
    fn write(&mut self) -> io::Result<Option<Turn>> {
        for _ in 0..BURST {
            if self.owed == 0 {
                return self.owes_nothing();
            }
            let chunk = match self.role {
                Role::Requests => &ANSWER[(self.written % ANSWER.len() as u64) as usize..],
                Role::Source | Role::Paced { .. } => pattern::at(self.written),
                _ => &self.kept[self.kept.len() - self.owed as usize..],
            };
            let length = chunk.len().min(usize::try_from(self.owed).unwrap_or(usize::MAX));
            match self.stream.write(&chunk[..length]) {
                Ok(written) => {
                    self.written += written as u64;
                    self.owed -= written as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Some(Turn::Full)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Turn::Again))
    }

    fn owes_nothing(&mut self) -> io::Result<Option<Turn>> {
        match self.then {
            Then::Stay => Ok(None),
            Then::HalfClose => {
                self.then = Then::Stay;
                self.stream.shutdown(Shutdown::Write)?;
                Ok(None)
            }
            Then::Close => Ok(Some(Turn::Done)),
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Role::Unknown { .. } = self.role {
            bytes = self.choose(bytes)?;
        }
        let before = self.read;
        self.read += bytes.len() as u64;
        match &mut self.role {
            Role::Requests => {
                let length = REQUEST.len() as u64;
                if !bytes.iter().zip(before..).all(|(byte, place)| *byte == REQUEST[(place % length) as usize]) {
                    return Err(io::Error::new(ErrorKind::InvalidData, "not the request"));
                }
                self.owed += (self.read / length - before / length) * ANSWER.len() as u64;
            }
            Role::Paced { size } => {
                let length = PACED_REQUEST as u64;
                self.owed += (self.read / length - before / length) * *size;
            }
            Role::Sink { whole, harmed } => {
                *harmed |= !if *whole { pattern::is(bytes, before) } else { pattern::seems(bytes, before) };
            }
            Role::Echo => self.owe(bytes),
            Role::Source | Role::Connect | Role::Unknown { .. } => {}
        }
        Ok(())
    }

    fn owe(&mut self, bytes: &[u8]) {
        self.kept.clear();
        self.kept.extend_from_slice(bytes);
        self.owed = bytes.len() as u64;
    }

    /// Reads the first bytes and answers what is left of them once they are enough to know the role.
    fn choose<'a>(&mut self, bytes: &'a [u8]) -> io::Result<&'a [u8]> {
        let Role::Unknown { head, have } = &mut self.role else { return Ok(bytes) };
        let needs = match if *have > 0 { head[0] } else { bytes[0] } {
            b'D' => 9,
            b'P' => 5,
            b'G' => 0,
            _ => 1,
        };
        let more = bytes.len().min(needs - *have);
        head[*have..*have + more].copy_from_slice(&bytes[..more]);
        *have += more;
        let (head, have) = (*head, *have);
        if have == needs {
            self.begin(if needs == 0 { b'G' } else { head[0] }, head)?;
        }
        Ok(&bytes[more..])
    }

    fn begin(&mut self, kind: u8, head: [u8; 9]) -> io::Result<()> {
        let [_, a, b, c, d, e, f, g, h] = head;
        self.role = match kind {
            b'G' => Role::Requests,
            b'D' => {
                let length = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                self.owed = if length == 0 { u64::MAX } else { length };
                self.then = Then::HalfClose;
                Role::Source
            }
            b'U' | b'V' => Role::Sink { whole: kind == b'V', harmed: false },
            b'E' => Role::Echo,
            b'P' => Role::Paced { size: u64::from(u32::from_le_bytes([a, b, c, d])) },
            b'C' => {
                self.owe(b"C");
                // The server closes first, so that the client's ports are free again at once.
                self.then = Then::Close;
                Role::Connect
            }
            _ => return Err(io::Error::new(ErrorKind::InvalidData, "no load begins with this byte")),
        };
        if !matches!(self.role, Role::Connect) {
            self.stream.set_nodelay(true)?;
        }
        Ok(())
    }

    fn peer_ended(&mut self) {
        if let Role::Sink { harmed, .. } = self.role {
            // No count can be so large: the client sees that its bytes were not the pattern.
            self.owe(&if harmed { u64::MAX } else { self.read }.to_le_bytes());
        }
        self.then = Then::Close;
    }
}
