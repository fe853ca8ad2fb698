use super::*;

/// Inputs beside the seeds, of each target.
const INPUTS: usize = 300;

/// A generator of our own, so that a failure is the same everywhere (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    /// A seed of which a few bytes are others, with a part of another one behind it.
    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.throw(seeds.len())].clone();
        for _ in 0..self.throw(6) {
            let at = self.throw(input.len());
            input[at] = self.throw(256) as u8;
        }
        let other = &seeds[self.throw(seeds.len())];
        input.extend(&other[self.throw(other.len())..]);
        input
    }
}

/// Shows `input` to `target`; where that fails, it says by which input.
fn check(target: fn(&[u8]), input: &[u8]) {
    let shown = std::panic::catch_unwind(|| target(input));
    assert!(shown.is_ok(), "with the input {input:?}");
}

#[test]
fn whatever_a_peer_does_what_is_promised_of_the_data_path_holds() {
    for (name, target) in TARGETS.into_iter().zip([records as fn(&[u8]), tunnel, mux, handshake]) {
        let seeds = seeds(name);
        assert!(!seeds.is_empty() && seeds.len() < 50, "{name}");
        for seed in &seeds {
            check(target, seed);
            (0..seed.len()).for_each(|length| check(target, &seed[..length]));
        }
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        for _ in 0..INPUTS {
            check(target, &dice.mutate(&seeds));
        }
    }
}
