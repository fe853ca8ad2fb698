//! What all targets begin with.

use std::{env, fs, io, path::PathBuf};

use entente::proxy::fuzz::seeds;

/// Writes the seeds of `target` into the folder that `ENTENTE_SEEDS` names, if it names one: the first thing that a target
/// does, so that libFuzzer finds them there.
pub fn begin(target: &str) {
    let Some(folder) = env::var_os("ENTENTE_SEEDS").map(PathBuf::from) else { return };
    let write = |(number, seed): (usize, Vec<u8>)| fs::write(folder.join(format!("{number:02}")), seed);
    let written: io::Result<()> = seeds(target).into_iter().enumerate().try_for_each(write);
    written.expect("the seeds can be written");
}
