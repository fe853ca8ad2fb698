//! Instructions of work in memory, counted by callgrind in a processor that valgrind makes up: the same on a busy
//! machine and on an idle one.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};
use clap::ValueEnum;

use crate::{baseline::Counted, work::Name};

/// What is counted, and how often the work is done.
pub(crate) const COUNTED: &[(Name, usize)] = &[
    (Name::Records, 64),
    (Name::Handshakes, 200),
    (Name::FirstHandshakes, 50),
    (Name::Requests, 1000),
    (Name::MultiplexedRequests, 1000),
];

/// How a piece of work is named on the command line and in the baseline.
pub(crate) fn word(name: Name) -> String {
    name.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// What the processor has that valgrind makes up here.
pub(crate) fn processor() -> anyhow::Result<String> {
    let output = valgrind(&["--tool=none"], &["processor"])?.output().context("valgrind")?;
    ensure!(output.status.success(), "valgrind ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Instructions of one piece of work, done so many times. What has to be there before is not counted: to gather
/// randomness for the first keys takes as many as sixty handshakes, and never the same.
pub(crate) fn count(name: Name, times: usize, folder: &Path) -> anyhow::Result<Counted> {
    let word = word(name);
    let file = folder.join(format!("callgrind.{word}"));
    let out = format!("--callgrind-out-file={}", file.display());
    let options = ["--tool=callgrind", "--toggle-collect=gate::work::counted*", &out];
    let status = valgrind(&options, &["work", &word, &times.to_string()])?.status().context("valgrind")?;
    ensure!(status.success(), "{word} under callgrind ended with {status}");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let total = total(&text).with_context(|| format!("{} says no total", file.display()))?;
    ensure!(total > 0, "callgrind did not find where {word} begins: are the program's symbols stripped?");
    Ok(Counted { count: (total / times as u64) as f64, kinds: [].into() })
}

/// This program under valgrind.
fn valgrind(options: &[&str], arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new("valgrind");
    command.arg("--quiet").args(options).arg(std::env::current_exe()?).args(arguments);
    Ok(command)
}

/// Of what callgrind writes, the sum of all instructions.
fn total(text: &str) -> Option<u64> {
    text.lines().rev().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_read_and_a_file_without_one_has_none() {
        assert_eq!(
            total("version: 1\nevents: Ir\nsummary: 12\n\nfn=(1) main\n0 12\n\ntotals: 1234567\n"),
            Some(1_234_567)
        );
        assert_eq!(total("version: 1\nevents: Ir\n"), None);
    }
}
