//! Revoked serials as one piece of memory: every sidecar holds all of them, and few of their bytes are ever looked at.

/// Bytes of the longest serial that is held. RFC 5280 §4.1.2.2 allows 20; some authorities do not care.
const LONGEST: usize = 32;

/// A set of serials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Serials {
    /// One behind the other, in order.
    bytes: Box<[u8]>,
    /// Where each ends.
    ends: Box<[u32]>,
}

impl Serials {
    /// What hexadecimal `texts` say; `None` where one is no lower-case hex of whole bytes.
    pub(super) fn parse(texts: &[String]) -> Option<Self> {
        let mut all = texts.iter().map(|text| Padded::parse(text)).collect::<Option<Vec<_>>>()?;
        all.sort_unstable_by(|one, other| one.bytes().cmp(other.bytes()));
        all.dedup_by(|one, other| one.bytes() == other.bytes());
        Some(Self::packed(all.iter().map(Padded::bytes)))
    }

    /// In order, and each only once.
    fn packed<'a>(all: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for serial in all {
            bytes.extend_from_slice(serial);
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        Self { bytes: bytes.into(), ends: ends.into() }
    }

    fn at(&self, index: usize) -> &[u8] {
        let end = |index: usize| self.ends.get(index).map_or(0, |end| *end as usize);
        let start = index.checked_sub(1).map_or(0, end);
        self.bytes.get(start..end(index)).unwrap_or_default()
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len()).map(|index| self.at(index))
    }

    /// Whether `serial`, without leading zeros, is one of them.
    pub(super) fn contains(&self, serial: &[u8]) -> bool {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.at(middle).cmp(serial) {
                std::cmp::Ordering::Equal => return true,
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        false
    }

    /// Takes over what `other` holds as well.
    pub(super) fn unite(&mut self, other: &Self) {
        let all: std::collections::BTreeSet<&[u8]> = self.iter().chain(other.iter()).collect();
        *self = Self::packed(all.into_iter());
    }
}

/// A serial in memory of a fixed size.
struct Padded {
    bytes: [u8; LONGEST],
    start: u8,
    end: u8,
}

impl Padded {
    fn parse(text: &str) -> Option<Self> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.is_empty() || text.len() > 2 * LONGEST || !text.len().is_multiple_of(2) || !text.bytes().all(is_hex) {
            return None;
        }
        let mut bytes = [0; LONGEST];
        for (at, byte) in (0..text.len()).step_by(2).zip(&mut bytes) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        // Certificates hold no leading zeros.
        let end = text.len() / 2;
        let start = bytes.get(..end)?.iter().position(|byte| *byte != 0).unwrap_or(end);
        Some(Self { bytes, start: u8::try_from(start).ok()?, end: u8::try_from(end).ok()? })
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start.into()..self.end.into()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn trimmed(bytes: &[u8]) -> &[u8] {
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        &bytes[start..]
    }

    proptest! {
        #[test]
        fn exactly_what_was_listed_is_held_whatever_its_length_and_order(
            listed in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=LONGEST), 0..40),
            more in prop::collection::vec(prop::collection::vec(0..3_u8, 1..4), 0..40),
            asked in prop::collection::vec(prop::collection::vec(0..3_u8, 1..4), 0..40),
        ) {
            let texts = |all: &[Vec<u8>]| all.iter().map(|bytes| hex(bytes)).collect::<Vec<_>>();
            let mut serials = Serials::parse(&texts(&listed)).unwrap();
            serials.unite(&Serials::parse(&texts(&more)).unwrap());
            let expected: BTreeSet<&[u8]> = listed.iter().chain(&more).map(|bytes| trimmed(bytes)).collect();
            for bytes in listed.iter().chain(&more).chain(&asked) {
                prop_assert_eq!(serials.contains(trimmed(bytes)), expected.contains(trimmed(bytes)));
            }
            prop_assert_eq!(serials.iter().count(), expected.len());
        }
    }

    #[test]
    fn what_is_no_lower_case_hex_of_whole_bytes_is_no_serial() {
        for text in ["", "0", "0g", "AB", "0x01", &"00".repeat(LONGEST + 1)] {
            assert_eq!(Serials::parse(&[text.to_owned()]), None, "{text:?}");
        }
        assert!(Serials::parse(&["00ab".to_owned()]).unwrap().contains(&[0xab]));
    }
}
