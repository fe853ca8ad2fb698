//! What one record of a multiplexed connection says: of which stream, and what. A record is a frame: nothing has to be
//! put together again.

use super::super::super::records::MAX_PLAINTEXT;

/// Bytes before the data: the stream's number, big-endian, and what is said of it.
pub(super) const PREFIX: usize = 5;
/// Data that one frame carries at most.
pub(super) const MAX_DATA: usize = MAX_PLAINTEXT - PREFIX;

const OPEN: u8 = 0;
const ACCEPTED: u8 = 1;
const REFUSED: u8 = 2;
const DATA: u8 = 3;
const END: u8 = 4;
const RESET: u8 = 5;
const CREDIT: u8 = 6;
const RETURN: u8 = 7;

/// What is said of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// The caller begins it.
    Open,
    /// The callee has judged it and reached its application.
    Accepted,
    /// The callee does not take it: the caller comes again by a handshake, and hears why there.
    Refused,
    /// Bytes, one at least.
    Data(&'a [u8]),
    /// No more bytes.
    End,
    /// It broke.
    Reset,
    /// So many more bytes may be sent.
    Credit(u32),
    /// So many fewer bytes will be sent than might.
    Return(u32),
}

impl<'a> Frame<'a> {
    /// The frame that a record brought; `None` = it is none.
    pub(super) fn parse(record: &'a [u8]) -> Option<(u32, Self)> {
        let (&[a, b, c, d, kind], rest) = record.split_first_chunk::<PREFIX>()?;
        let frame = match (kind, rest) {
            (OPEN, []) => Self::Open,
            (ACCEPTED, []) => Self::Accepted,
            (REFUSED, []) => Self::Refused,
            (DATA, [_, ..]) => Self::Data(rest),
            (END, []) => Self::End,
            (RESET, []) => Self::Reset,
            (CREDIT, &[e, f, g, h]) => Self::Credit(u32::from_be_bytes([e, f, g, h])),
            (RETURN, &[e, f, g, h]) => Self::Return(u32::from_be_bytes([e, f, g, h])),
            _ => return None,
        };
        Some((u32::from_be_bytes([a, b, c, d]), frame))
    }

    /// What stands before the data of stream `id`.
    pub(super) fn prefix(id: u32) -> [u8; PREFIX] {
        header(id, DATA)
    }

    /// The whole of a frame that has no data.
    pub(super) fn write(self, id: u32) -> Vec<u8> {
        let (kind, rest) = match self {
            Self::Open => (OPEN, vec![]),
            Self::Accepted => (ACCEPTED, vec![]),
            Self::Refused => (REFUSED, vec![]),
            Self::Data(data) => (DATA, data.to_vec()),
            Self::End => (END, vec![]),
            Self::Reset => (RESET, vec![]),
            Self::Credit(more) => (CREDIT, more.to_be_bytes().to_vec()),
            Self::Return(less) => (RETURN, less.to_be_bytes().to_vec()),
        };
        [header(id, kind).as_slice(), &rest].concat()
    }
}

fn header(id: u32, kind: u8) -> [u8; PREFIX] {
    let [a, b, c, d] = id.to_be_bytes();
    [a, b, c, d, kind]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is_a_frame() {
        let data = [7; 300];
        for frame in [
            Frame::Open,
            Frame::Accepted,
            Frame::Refused,
            Frame::Data(&data),
            Frame::End,
            Frame::Reset,
            Frame::Credit(70_000),
            Frame::Return(70_000),
        ] {
            let written = frame.write(0x0102_0304);
            assert_eq!(Frame::parse(&written), Some((0x0102_0304, frame)));
            // Without its last byte it is another frame of data, or none.
            let shorter = Frame::parse(&written[..written.len() - 1]);
            assert!(shorter.is_none_or(|(_, frame)| matches!(frame, Frame::Data(_))), "{shorter:?}");
        }
        for nonsense in [&[][..], &[0, 0, 0, 1], &[0, 0, 0, 1, 3], &[0, 0, 0, 1, 8], &[0, 0, 0, 1, 0, 0]] {
            assert_eq!(Frame::parse(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(Frame::Data(&data).write(9)[..PREFIX], Frame::prefix(9));
    }
}
