//! Counts everything, says what came of it, and what to do next.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    baseline::{Baseline, Compared, Counted, Expectations, Outcome, compare, store},
    calls, instructions,
};

/// By how many per cent instructions may be more.
const TOLERANCE: f64 = 2.0;

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What is stored
    #[arg(long)]
    baseline: PathBuf,
    /// What built this program: the compilers
    #[arg(long)]
    built_by: String,
    /// Store what is counted instead of comparing it
    #[arg(long)]
    write: bool,
    /// Keep what callgrind found in this folder
    #[arg(long)]
    keep: PathBuf,
}

/// Counts, and compares or stores.
pub(crate) fn count(options: &Options) -> anyhow::Result<ExitCode> {
    let Options { baseline: path, built_by, write, keep } = options;
    let mut baseline = if *write && !path.exists() { Baseline::default() } else { Baseline::read(path)? };
    std::fs::create_dir_all(keep)?;
    let processor = instructions::processor()?;
    let (instructions, calls) = (all_instructions(keep)?, all_calls()?);
    let known = baseline.instructions.contains_key(&processor);
    let built = baseline.instructions.entry(processor.clone()).or_default();
    if *write {
        store(&mut built.expected, &instructions, |_| TOLERANCE);
        built.built_by.clone_from(built_by);
        store(&mut baseline.calls, &calls, tolerance);
        baseline.write(path)?;
        println!("stored in {}: git shows what has changed, the commit says why", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let mut compared = said(&format!("instructions on {processor}"), &built.expected, &instructions);
    if !known {
        // Whoever tests on a machine of another kind cannot know whether these are good.
        println!("  not compared: nothing is stored for this processor; '--write' on a good commit stores it");
        compared.clear();
    }
    compared.extend(said("system calls of both sidecars", &baseline.calls, &calls));
    println!("\n{}", next(&compared, (&built.built_by, built_by), keep));
    Ok(ExitCode::from(u8::from(compared.iter().any(|one| one.outcome.is_failure()))))
}

fn all_instructions(keep: &Path) -> anyhow::Result<BTreeMap<String, Counted>> {
    let counted = instructions::COUNTED.iter();
    counted.map(|(name, times)| Ok((instructions::word(*name), instructions::count(*name, *times, keep)?))).collect()
}

fn all_calls() -> anyhow::Result<BTreeMap<String, Counted>> {
    let folder = tempfile::tempdir()?;
    let idle = calls::idle(folder.path())?;
    let counted = calls::COUNTED.iter();
    counted.map(|one| Ok((one.name.to_owned(), calls::count(one, &idle, folder.path())?))).collect()
}

fn tolerance(name: &str) -> f64 {
    calls::COUNTED.iter().find(|one| one.name == name).map_or(TOLERANCE, |one| one.tolerance)
}

fn said(title: &str, expected: &Expectations, counted: &BTreeMap<String, Counted>) -> Vec<Compared> {
    let compared = compare(expected, counted);
    println!("\n{title}");
    for one in &compared {
        println!("  {one}");
    }
    compared
}

/// What to do next; `before` and `now` are compilers.
fn next(compared: &[Compared], (before, now): (&str, &str), keep: &Path) -> String {
    let any = |outcome: &Outcome| compared.iter().any(|one| one.outcome == *outcome);
    let mut said = vec![];
    if any(&Outcome::Grew) {
        said.push(format!(
            "The data path costs more than it did. Of instructions, 'callgrind_annotate {}/callgrind.NAME' shows the \
             functions: compare with the commit before. What is worth its price is stored by 'benches/gate/run --write', \
             and the commit says why.",
            keep.display()
        ));
    }
    let other_compilers = !before.is_empty() && before != now;
    if any(&Outcome::Grew) && other_compilers {
        said.push("Other compilers may be all of it: with these ones, count the commit before.".to_owned());
    }
    if any(&Outcome::NotExpected) {
        let good = "store it by 'benches/gate/run --write' on a commit that is known to be good.";
        said.push(format!("Something is counted that is not stored: {good}"));
    }
    if any(&Outcome::NotCounted) {
        said.push("Something is stored that is not counted any more: take it out, and the commit says why.".to_owned());
    }
    if any(&Outcome::Fell) {
        said.push("Something costs less than it did: 'benches/gate/run --write' keeps it so.".to_owned());
    }
    if said.is_empty() {
        said.push("Nothing has changed beyond its tolerance.".to_owned());
    }
    if other_compilers {
        said.push(format!("stored: {before}\nhere:   {now}"));
    }
    said.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::Expected;

    fn said(count: f64, now: &str) -> String {
        let expected = [("records".to_owned(), Expected { count: 100.0, tolerance: 2.0, kinds: [].into() })].into();
        let counted = [("records".to_owned(), Counted { count, kinds: [].into() })].into();
        next(&compare(&expected, &counted), ("rustc 1", now), Path::new("target/gate"))
    }

    #[test]
    fn what_to_do_next_is_said_for_every_outcome_and_another_compiler_is_named() {
        assert_eq!(said(100.0, "rustc 1"), "Nothing has changed beyond its tolerance.");
        assert!(said(103.0, "rustc 1").contains("'callgrind_annotate target/gate/callgrind.NAME'"));
        assert!(!said(103.0, "rustc 1").contains("compilers"));
        assert!(said(103.0, "rustc 2").ends_with("count the commit before.\nstored: rustc 1\nhere:   rustc 2"));
        assert!(said(97.0, "rustc 1").contains("--write' keeps it so"));
    }
}
