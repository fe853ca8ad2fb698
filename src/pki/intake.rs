//! How certificates that are asked for together come into a ledger: one compare-and-swap for all of them. The machine
//! says what to do next; the shell reads and writes, a test's map too. What it answers stands in the ledger already.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{
    authority::{Serial, Validity},
    ledger::{Ledger, LedgerError, Owner, Record},
};

/// Records that one write takes.
pub const MOST: usize = 256;
/// Tries to write to a ledger that others write to as well.
const TRIES: u32 = 5;

/// What stands in the ledger for a certificate that may now be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its serial.
    pub serial: Serial,
    /// Its validity.
    pub validity: Validity,
    /// Why it is signed.
    pub occasion: Occasion,
}

/// Why a certificate is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occasion {
    /// Its holder had none.
    Issued,
    /// Its holder has one already.
    Renewed,
    /// It was asked for again, and is the same again.
    Repeated,
}

impl Occasion {
    /// The stable word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Issued => "Issued",
            Self::Renewed => "Renewed",
            Self::Repeated => "Repeated",
        }
    }
}

/// Why nothing is recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrecorded {
    /// The ledger does not take it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Others wrote first, each time.
    #[error("the ledger changes too often; try again")]
    Conflict,
}

impl Unrecorded {
    /// The stable code of the issuance stage.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Ledger(error) => error.code(),
            Self::Conflict => "LedgerConflict",
        }
    }

    /// Whether the same request may succeed later.
    pub const fn may_pass(&self) -> bool {
        !matches!(self, Self::Ledger(LedgerError::KeyReused))
    }
}

/// An answer for each that waited, in their order.
pub type Answers = Vec<Result<Recorded, Unrecorded>>;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read the ledger and tell [`Intake::was_read`].
    Read,
    /// Replace the version that was read with this, and tell [`Intake::was_written`] or [`Intake::was_lost`].
    Write(Ledger),
    /// Answer.
    Answer(Answers),
}

/// Requests for one ledger that are written together.
#[derive(Clone, Debug)]
pub struct Intake {
    owner: Owner,
    wanted: Vec<(Owner, Record)>,
    held: Option<Held>,
    answers: Answers,
    tries: u32,
}

#[derive(Clone, Debug)]
struct Held {
    ledger: Ledger,
    /// Remembered from the write before, not read for this one.
    remembered: bool,
}

impl Intake {
    /// For `wanted`, in the order in which they came; `remembered` is the ledger as it was last written.
    pub fn new(wanted: Vec<(Owner, Record)>, remembered: Option<Ledger>) -> Option<Self> {
        // Some may have come before their server was created anew. Of two that are equally old the last one counts.
        let owner = wanted.iter().map(|(owner, _)| owner).max_by_key(|owner| owner.created)?.clone();
        let held = remembered.map(|ledger| Held { ledger, remembered: true });
        Some(Self { owner, wanted, held, answers: vec![], tries: 0 })
    }

    /// What to do next.
    pub fn next(&mut self, now: Timestamp) -> Next {
        if self.tries >= TRIES {
            return Next::Answer(self.refuse(&Unrecorded::Conflict));
        }
        let Some(Held { ledger, remembered }) = &self.held else { return Next::Read };
        let mut after = ledger.clone();
        self.answers = self.wanted.iter().map(|wanted| self.take(&mut after, wanted, now)).collect();
        if after.sequence() != ledger.sequence() {
            return Next::Write(after);
        }
        if *remembered {
            // Without a write nothing proves that the ledger still is what we remember.
            self.held = None;
            return Next::Read;
        }
        Next::Answer(std::mem::take(&mut self.answers))
    }

    /// The ledger as it is.
    pub fn was_read(&mut self, ledger: Ledger) {
        self.held = Some(Held { ledger, remembered: false });
    }

    /// What is taken back by writing `after`, with whose it was.
    pub fn taken(&self, after: &Ledger) -> Vec<(Owner, Record)> {
        let before = self.held.as_ref().map(|held| &held.ledger);
        let Some((before, owner)) = before.and_then(|before| Some((before, before.owner()?))) else { return vec![] };
        let is_revoked = |record: &&Record| record.revoked.is_some();
        let known: BTreeSet<Serial> = before.records().iter().filter(is_revoked).map(|record| record.serial).collect();
        let new = after.records().iter().filter(is_revoked).filter(|record| !known.contains(&record.serial));
        new.map(|record| (owner.clone(), record.clone())).collect()
    }

    /// What was to be written is durable.
    pub fn was_written(self) -> Answers {
        self.answers
    }

    /// The same answer for everybody.
    pub fn refuse(&self, why: &Unrecorded) -> Answers {
        self.wanted.iter().map(|_| Err(why.clone())).collect()
    }

    /// Somebody else wrote first.
    pub fn was_lost(&mut self) {
        self.held = None;
        self.tries += 1;
    }

    fn take(
        &self,
        ledger: &mut Ledger,
        (owner, record): &(Owner, Record),
        now: Timestamp,
    ) -> Result<Recorded, Unrecorded> {
        if *owner != self.owner {
            return Err(LedgerError::CreatedAnew.into());
        }
        if let Some(Record { serial, validity, .. }) = ledger.repeated(record, now)? {
            return Ok(Recorded { serial: *serial, validity: *validity, occasion: Occasion::Repeated });
        }
        let before = ledger.records().iter().any(|one| one.holder == record.holder);
        let occasion = if before { Occasion::Renewed } else { Occasion::Issued };
        let Record { serial, validity, .. } = *record;
        ledger.append(owner, Record { recorded: now, ..record.clone() }, now)?;
        Ok(Recorded { serial, validity, occasion })
    }
}

#[cfg(test)]
mod tests;
