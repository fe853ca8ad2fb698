//! What a record must be opened as, said once more and as plainly as can be: RFC 8446 §4.6, §5 and §6, and our bounds.

use super::super::Opened;

/// Records in a row that may bring no data.
const IDLE: u32 = 32;
/// The longest content, the longest message behind its header, and the longest protected record.
const CONTENT: usize = 16_384;
const PROTECTED: usize = CONTENT + 256;

/// What the receiver must make of what was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Said {
    Data(Vec<u8>),
    Nothing,
    /// The sender's key changes; the receiver's too where it is `asked`.
    Update {
        asked: bool,
    },
    Closed,
    /// An error.
    Wrong,
    /// An error, or the beginning of what never ends.
    Garbage,
}

impl Said {
    /// Whether it is what was opened.
    pub(super) fn is(&self, opened: &Opened<'_>) -> bool {
        match self {
            Self::Data(data) => *opened == Opened::Data(data),
            Self::Nothing | Self::Update { asked: false } => *opened == Opened::Nothing,
            Self::Update { asked: true } => *opened == Opened::UpdateRequested,
            Self::Closed => *opened == Opened::Closed,
            Self::Wrong | Self::Garbage => false,
        }
    }
}

/// What of the records so far matters for the next one.
#[derive(Debug)]
pub(super) struct Model {
    message: Vec<u8>,
    idle: u32,
}

impl Model {
    pub(super) const fn new() -> Self {
        Self { message: vec![], idle: 0 }
    }

    /// What is said by a record with `inner` in it: content, type, zeros.
    pub(super) fn say(&mut self, inner: &[u8]) -> Said {
        let Some(end) = (0..inner.len()).rev().find(|index| inner[*index] != 0) else { return Said::Wrong };
        if inner.len() + 16 > PROTECTED || end > CONTENT {
            return Said::Wrong;
        }
        let (kind, content) = (inner[end], &inner[..end]);
        if kind != 22 && !self.message.is_empty() {
            return Said::Wrong;
        }
        if kind == 23 && !content.is_empty() {
            self.idle = 0;
            return Said::Data(content.to_vec());
        }
        self.idle += 1;
        if self.idle > IDLE {
            return Said::Wrong;
        }
        match (kind, content) {
            (21, [_, 0]) => Said::Closed,
            (21, [_, 90]) => Said::Nothing,
            (22, [_, ..]) => self.tell(content),
            (23, []) => Said::Nothing,
            _ => Said::Wrong,
        }
    }

    /// Handshake messages go on.
    fn tell(&mut self, content: &[u8]) -> Said {
        self.message.extend_from_slice(content);
        let mut rest = self.message.as_slice();
        while let [kind, high, middle, low, behind @ ..] = rest {
            let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            if length > CONTENT {
                return Said::Wrong;
            }
            if behind.len() < length {
                break;
            }
            match (kind, &behind[..length], behind.len() == length) {
                (4, _, _) => rest = &behind[length..],
                (24, [asked @ (0 | 1)], true) => {
                    let asked = *asked == 1;
                    self.message = vec![];
                    return Said::Update { asked };
                }
                _ => return Said::Wrong,
            }
        }
        self.message = rest.to_vec();
        Said::Nothing
    }
}
