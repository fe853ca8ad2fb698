//! The report: a table and pictures of what was measured, in a Markdown file that says the rest by hand.

mod metrics;
mod plots;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::stats::Samples;

/// What is measured stands between these.
const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// Write table and pictures from samples.
#[derive(Args)]
pub struct Report {
    /// Lines of block,peer,metric,value
    #[arg(long)]
    samples: PathBuf,
    /// [{"name": "kernel", "value": "6.1"}, …]
    #[arg(long)]
    facts: PathBuf,
    /// The Markdown file; pictures go into the folder of the same name beside it
    #[arg(long)]
    into: PathBuf,
}

/// Something a reader of the figures must know: the processor, a peer's version and its crypto library, dropped blocks.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    pub name: String,
    pub value: String,
}

impl Report {
    /// Replaces what the file says between the marks.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { samples, facts, into } = self;
        let samples = Samples::parse(&read(&samples)?).with_context(|| samples.display().to_string())?;
        let facts: Vec<Fact> = serde_json::from_str(&read(&facts)?).with_context(|| facts.display().to_string())?;
        let before = if into.exists() { read(&into)? } else { "# Performance\n".to_owned() };
        let pictures = draw(&samples, &into)?;
        let after = replace(&before, &measured(&samples, &facts, &pictures))?;
        fs::write(&into, after).with_context(|| into.display().to_string())
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Draws the pictures and answers the Markdown that shows them.
fn draw(samples: &Samples, into: &Path) -> anyhow::Result<String> {
    let folder = into.with_extension("");
    let name = folder.file_name().context("the report must be a file")?.to_string_lossy().into_owned();
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut text = String::new();
    for plot in plots::PLOTS {
        if plots::draw(plot, samples, &folder)? {
            text.push_str(&format!("\n![{}]({name}/{})\n", plot.title, plot.file));
        }
    }
    Ok(text)
}

fn measured(samples: &Samples, facts: &[Fact], pictures: &str) -> String {
    let facts = facts.iter().map(|Fact { name, value }| format!("| {} | {} |\n", cell(name), cell(value)));
    format!(
        "| | |\n|---|---|\n{}\n{}\nMedians of {} blocks. A ratio is ours over the peer's with the best median, taken \
         within each block; behind its\nmedian stands where it lies with 95 % certainty (bootstrap). Ahead or behind is \
         only said where that excludes 1.\nIn the pictures, whiskers are the 95 % of each median.\n{pictures}",
        facts.collect::<String>(),
        table::table(samples),
        samples.blocks(),
    )
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Puts it between the marks, or at the end with marks around it.
fn replace(before: &str, measured: &str) -> anyhow::Result<String> {
    let block = format!("{BEGIN}\n\n{measured}\n{END}");
    match (before.split_once(BEGIN), before.split_once(END)) {
        (None, None) => Ok(format!("{}\n\n{block}\n", before.trim_end())),
        (Some((head, rest)), Some(_)) if rest.contains(END) => {
            let (_, tail) = rest.split_once(END).unwrap_or_default();
            Ok(format!("{head}{block}{tail}"))
        }
        _ => bail!("{BEGIN} and {END} must stand both or not at all, in this order"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_the_marks_is_kept() {
        let before = format!("# Title\n\nBy hand.\n\n{BEGIN}\nold\n{END}\n\nMore by hand.\n");
        let after = replace(&before, "new\n").unwrap();
        assert_eq!(after, format!("# Title\n\nBy hand.\n\n{BEGIN}\n\nnew\n\n{END}\n\nMore by hand.\n"));
        assert_eq!(replace(&after, "new\n").unwrap(), after);
    }

    #[test]
    fn a_file_without_marks_gets_them_at_its_end() {
        assert_eq!(replace("# Title\n", "new\n").unwrap(), format!("# Title\n\n{BEGIN}\n\nnew\n\n{END}\n"));
    }

    #[test]
    fn half_a_pair_of_marks_is_refused_rather_than_guessed() {
        for before in [BEGIN, END, &format!("{END}\n{BEGIN}")] {
            assert!(replace(before, "new").is_err(), "{before}");
        }
    }

    #[test]
    fn a_fact_cannot_break_its_table() {
        assert_eq!(cell("a|b\nc"), "a\\|b c");
    }
}
