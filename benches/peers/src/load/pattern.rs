//! The bytes that are carried: each is known from its place in the stream.

use std::sync::LazyLock;

/// What is written, or read, by one call.
pub(super) const CHUNK: usize = 256 * 1024;

// A prime: no buffer of a proxy is a multiple of it, so a buffer that is sent twice or not at all shows.
const PERIOD: usize = 65_521;

// Of a chunk that is looked at by sampling, at its beginning and at its end.
const SAMPLE: usize = 64;

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let once = seeded(7, PERIOD);
    once.iter().copied().cycle().take(PERIOD + CHUNK).collect()
});

/// A chunk of the pattern as it stands at this place of a stream.
pub(super) fn at(place: u64) -> &'static [u8] {
    let begin = (place % PERIOD as u64) as usize;
    &PATTERN[begin..begin + CHUNK]
}

/// Whether these bytes are the pattern's at this place; at most a chunk.
pub(super) fn is(bytes: &[u8], place: u64) -> bool {
    *bytes == at(place)[..bytes.len()]
}

/// Whether the first and the last of these bytes are the pattern's.
pub(super) fn seems(bytes: &[u8], place: u64) -> bool {
    let last = bytes.len().saturating_sub(SAMPLE);
    is(&bytes[..bytes.len().min(SAMPLE)], place) && is(&bytes[last..], place + last as u64)
}

/// Bytes that look random and are the same for the same seed (xorshift64*).
pub(super) fn seeded(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.max(1);
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_at_any_place_is_the_pattern_there() {
        for place in [0, 1, PERIOD as u64 - 1, PERIOD as u64, 1 << 40] {
            assert!(is(at(place), place), "{place}");
        }
    }

    #[test]
    fn bytes_that_are_lost_or_changed_are_seen() {
        let mut bytes = at(1000).to_vec();
        assert!(seems(&bytes, 1000));
        assert!(!seems(&bytes, 1001));
        bytes[CHUNK / 2] ^= 1;
        assert!(!is(&bytes, 1000));
    }

    #[test]
    fn a_piece_shorter_than_a_sample_is_seen_whole() {
        assert!(seems(&at(5)[..3], 5));
        assert!(!seems(&at(6)[..3], 5));
        assert!(seems(&[], 5));
    }
}
