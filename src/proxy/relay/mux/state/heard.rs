//! What the peer says: records are opened, their frames told to their streams, and what came for applications given to them.

use std::io::IoSlice;

use rustls::Error;

use super::{
    super::{
        super::{
            super::records::{self, Opened},
            PIECES,
        },
        entry::{Begun, Entry},
        frame::Frame,
        window::Window,
    },
    MOST, MOST_CREDIT, Role, State, violation,
};

/// What came in one read: of which stream, and what.
type Came<'a> = Vec<(u32, &'a [u8])>;

impl State {
    /// Reads the records in `buffer`; answers whether the peer goes on.
    pub(in super::super) fn receive(&mut self, buffer: &mut [u8]) -> Result<bool, Error> {
        let mut came = Vec::new();
        let outcome = self.read(buffer, &mut came);
        // Also what came before an error.
        self.deliver(came);
        outcome
    }

    fn read<'a>(&mut self, mut buffer: &'a mut [u8], came: &mut Came<'a>) -> Result<bool, Error> {
        while let Some(length) = records::whole(buffer)? {
            let (record, behind) = buffer.split_at_mut(length);
            buffer = behind;
            match self.records.open(record)? {
                Opened::Data(data) => {
                    let (id, frame) = Frame::parse(data).ok_or_else(violation)?;
                    self.heard(id, frame, came)?;
                }
                Opened::Nothing => {}
                Opened::UpdateRequested => self.answer()?,
                Opened::Closed => return Ok(false),
            }
            if self.unwritten().len() > MOST {
                return Err(violation());
            }
        }
        self.partial = if buffer.is_empty() { Vec::new() } else { buffer.to_vec() };
        Ok(true)
    }

    fn heard<'a>(&mut self, id: u32, frame: Frame<'a>, came: &mut Came<'a>) -> Result<(), Error> {
        if frame == Frame::Open {
            return self.asked(id);
        }
        if id == 0 || id > self.last {
            return Err(violation());
        }
        // What crossed with our own end of it is passed over.
        let Some(entry) = self.streams.get_mut(&id) else { return Ok(()) };
        match (frame, entry.begun) {
            (Frame::Accepted, Begun::Waiting) if self.role == Role::Caller => entry.begun = Begun::Accepted,
            (Frame::Refused, Begun::Waiting) if self.role == Role::Caller => entry.begun = Begun::Refused,
            (Frame::Reset, _) => entry.reset = true,
            (Frame::Data(data), Begun::Accepted) if !entry.ended && entry.window.came(data.len()) => {
                came.push((id, data));
                return Ok(());
            }
            (Frame::End, Begun::Accepted) if !entry.ended => entry.ended = true,
            (Frame::Credit(more), Begun::Accepted) => {
                let credit = entry.credit.checked_add(more).filter(|credit| *credit <= MOST_CREDIT);
                entry.credit = credit.ok_or_else(violation)?;
                self.lent |= entry.credit > Window::FIRST;
            }
            (Frame::Return(less), Begun::Accepted) if entry.window.returned(less) => {}
            _ => return Err(violation()),
        }
        entry.wake();
        Ok(())
    }

    fn asked(&mut self, id: u32) -> Result<(), Error> {
        // A number is used once, and they count up.
        if self.role == Role::Caller || id <= self.last {
            return Err(violation());
        }
        self.last = id;
        if self.has_room() {
            self.streams.insert(id, Entry::new());
            self.begun.push(id);
        } else {
            let _ = self.say(id, Frame::Refused);
        }
        Ok(())
    }

    /// What came is given to the applications, that of each stream together.
    fn deliver(&mut self, mut came: Came<'_>) {
        came.sort_by_key(|(id, _)| *id);
        for of_one in came.chunk_by(|(one, _), (other, _)| one == other) {
            for some in of_one.chunks(PIECES) {
                let mut pieces = [IoSlice::new(&[]); PIECES];
                pieces.iter_mut().zip(some).for_each(|(piece, (_, data))| *piece = IoSlice::new(data));
                let (id, pieces) = (some[0].0, &pieces[..some.len()]);
                let taken = self.streams.get_mut(&id).map_or(0, |entry| entry.put(pieces));
                if taken > 0 {
                    self.took(id, taken, true);
                }
            }
        }
    }
}
