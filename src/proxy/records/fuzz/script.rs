//! What a peer sends on one connection, made up of the input; and what must be made of it.

use super::{
    model::{Model, Said},
    peer::Peer,
};
use crate::proxy::fuzz::Input;

/// Content types.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

/// The bytes that a peer sends.
#[derive(Debug)]
pub(in crate::proxy) struct Script {
    pub(in crate::proxy) wire: Vec<u8>,
    /// One for each record; nothing behind an error counts.
    pub(in crate::proxy) said: Vec<Said>,
}

impl Script {
    /// Nothing but `bytes`, of somebody who has no keys.
    pub(super) fn raw(bytes: &[u8]) -> Self {
        Self { wire: bytes.to_vec(), said: vec![Said::Garbage] }
    }

    /// Records sealed by `peer`, about `most` bytes of them.
    pub(in crate::proxy) fn seal(input: &mut Input<'_>, peer: &mut Peer, most: usize) -> Self {
        let script = Self { wire: vec![], said: vec![] };
        let mut writing = Writing { script, peer, model: Model::new(), version: [3, 3], padding: 0 };
        while !input.is_empty() && writing.script.wire.len() < most && !writing.is_over() {
            writing.go_on(input);
        }
        if writing.is_over() {
            // Somebody whose error was overlooked could say this.
            writing.record(DATA, b"nobody reads this");
            writing.script.said.pop();
        }
        writing.script
    }
}

struct Writing<'a> {
    script: Script,
    peer: &'a mut Peer,
    model: Model,
    version: [u8; 2],
    padding: usize,
}

impl Writing<'_> {
    /// Whether something was said after which nothing is read.
    fn is_over(&self) -> bool {
        self.script.said.last().is_some_and(|said| matches!(said, Said::Wrong | Said::Garbage))
    }

    fn go_on(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        // Every second record is padded.
        self.padding = if what >= 0x80 { input.number() % 300 } else { 0 };
        match what % 12 {
            0 | 1 => self.record(DATA, &input.content()),
            2 => self.record(DATA, &[]),
            3 => self.record(ALERT, &[input.byte(), input.byte()]),
            4 => self.record(HANDSHAKE, &input.content()),
            5 => self.ticket(input),
            6 => self.record(HANDSHAKE, &[24, 0, 0, 1, input.byte()]),
            7 => self.record(input.byte(), &input.content()),
            8 => self.meddle(input),
            9 => self.garbage(input.content()),
            10 => (0..input.byte() % 40).for_each(|_| self.record(DATA, &[])),
            _ => {
                self.version = [input.byte(), input.byte()];
                (0..input.byte() % 80).for_each(|index| self.record(DATA, &[index]));
            }
        }
    }

    fn record(&mut self, kind: u8, content: &[u8]) {
        let mut inner = content.to_vec();
        inner.push(kind);
        inner.resize(inner.len() + self.padding, 0);
        if self.is_over() {
            self.script.wire.extend(self.peer.seal(self.version, inner));
            self.script.said.push(Said::Wrong);
            return;
        }
        let said = self.model.say(&inner);
        self.script.wire.extend(self.peer.seal(self.version, inner));
        if matches!(said, Said::Update { .. }) {
            self.peer.change();
        }
        self.script.said.push(said);
    }

    /// A session ticket, in pieces.
    fn ticket(&mut self, input: &mut Input<'_>) {
        let body = input.content();
        let mut message = vec![4];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        let piece = input.number() % 16_384 + 1;
        message.chunks(piece).take(40).for_each(|piece| self.record(HANDSHAKE, piece));
    }

    /// A record of which one byte is changed on its way, length and all.
    fn meddle(&mut self, input: &mut Input<'_>) {
        let start = self.script.wire.len();
        self.record(DATA, &input.content());
        let length = self.script.wire.len() - start;
        let (at, change) = (input.number() % length, input.byte().max(1));
        self.script.wire[start + at] ^= change;
        if let Some(said) = self.script.said.last_mut() {
            *said = Said::Garbage;
        }
    }

    fn garbage(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.script.wire.extend(bytes);
            self.script.said.push(Said::Garbage);
        }
    }
}
