//! `entente crds`: the CustomResourceDefinitions of this version.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::api::crds::{render, templated};

/// Where the definitions go.
#[derive(Debug, Args)]
pub(super) struct Crds {
    /// Write the files into this folder instead of printing them.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Write the chart's form, with its conditions on values.
    #[arg(long, requires = "write")]
    chart: bool,
}

#[allow(clippy::print_stdout, reason = "printing is what this verb is for")]
pub(super) fn run(arguments: &Crds) -> anyhow::Result<()> {
    for (name, yaml) in render()? {
        match &arguments.write {
            None => println!("---\n{yaml}"),
            Some(folder) => {
                let text = if arguments.chart { templated(&yaml) } else { yaml };
                let file = folder.join(name);
                std::fs::write(&file, text).with_context(|| format!("could not write {}", file.display()))?;
            }
        }
    }
    Ok(())
}
