//! The pictures: bars for each peer, a panel for each metric.
//!
//! They have no background and their letters are of a grey that can be read on light pages as well as on dark ones.

use std::{fs, path::Path};

use anyhow::{Context, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    metrics::{self, Metric},
    table::{PEERS, figure},
};
use crate::stats::{Better, DIRECT, Estimate, OURS, Samples};

/// A picture: its file, what it shows, the metrics of its panels.
pub(super) struct Plot {
    pub(super) file: &'static str,
    pub(super) title: &'static str,
    metrics: &'static [&'static str],
}

/// All of them.
pub(super) const PLOTS: &[Plot] = &[
    Plot {
        file: "throughput.svg",
        title: "Throughput",
        metrics: &["bulk_up_gbps", "bulk_down_gbps", "requests_per_s"],
    },
    Plot {
        file: "cpu-per-gb.svg",
        title: "CPU time for a gigabyte",
        metrics: &["bulk_up_cpu_s_per_gb", "bulk_down_cpu_s_per_gb"],
    },
    Plot {
        file: "latency.svg",
        title: "Latency",
        metrics: &[
            "requests_p50_us",
            "requests_p99_us",
            "single_p50_us",
            "paced_p50_us",
            "paced_p99_us",
            "storm_p99_us",
        ],
    },
    Plot { file: "connections.svg", title: "New connections", metrics: &["connects_per_s", "handshakes_per_s"] },
    Plot { file: "memory.svg", title: "Memory", metrics: &["idle_pss_kib", "idle_kib_per_connection"] },
];

const TEXT: RGBColor = RGBColor(119, 119, 119);
const OTHERS: RGBColor = RGBColor(128, 148, 176);
const ACCENT: RGBColor = RGBColor(226, 106, 18);
const FONT: &str = "sans-serif";

/// Pixels of a panel.
const PANEL: (u32, u32) = (420, 240);
const COLUMNS: usize = 2;
const LABELS: i32 = 70;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a picture into this folder; false if nothing of it was measured.
pub(super) fn draw(plot: &Plot, samples: &Samples, folder: &Path) -> anyhow::Result<bool> {
    let panels: Vec<_> = plot
        .metrics
        .iter()
        .filter_map(|name| metrics::named(name))
        .map(|metric| (metric, bars(metric, samples)))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    if panels.is_empty() {
        return Ok(false);
    }
    let columns = COLUMNS.min(panels.len());
    let rows = panels.len().div_ceil(columns);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (area, (metric, bars)) in root.split_evenly((rows, columns)).iter().zip(&panels) {
            panel(area, metric, bars).map_err(|error| anyhow!("{}: {error}", metric.name))?;
        }
        root.present()?;
    }
    let path = folder.join(plot.file);
    fs::write(&path, svg).with_context(|| path.display().to_string())?;
    Ok(true)
}

fn bars(metric: &Metric, samples: &Samples) -> Vec<(&'static str, Estimate)> {
    PEERS.iter().filter_map(|peer| Some((*peer, samples.estimate(metric.name, peer)?))).collect()
}

/// The bars of one metric, lying, the first on top.
fn panel(area: &Area<'_>, metric: &Metric, bars: &[(&str, Estimate)]) -> anyhow::Result<()> {
    let end = |estimate: &Estimate| estimate.range.map_or(estimate.middle, |(_, high)| high.max(estimate.middle));
    let longest = bars.iter().map(|(_, estimate)| end(estimate)).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let better = if metric.better == Better::Higher { "more is better" } else { "less is better" };
    let unit = if metric.unit.is_empty() { String::new() } else { format!("{}, ", metric.unit) };
    area.draw(&Text::new(metric.title, (LABELS, 10), (FONT, 16).into_font().color(&TEXT)))?;
    // A third more than the longest bar, for the figure behind it.
    let mut chart = ChartBuilder::on(area)
        .margin_top(30)
        .margin_right(12)
        .margin_bottom(4)
        .x_label_area_size(42)
        .margin_left(LABELS)
        .build_cartesian_2d(0.0..longest * 1.3, bars.len() as f64..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(5)
        .x_max_light_lines(1)
        .x_label_formatter(&|value| tick(*value))
        .x_desc(format!("{unit}{better}"))
        .label_style((FONT, 12).into_font().color(&TEXT))
        .axis_desc_style((FONT, 12).into_font().color(&TEXT))
        .axis_style(TEXT.mix(0.6))
        .bold_line_style(TEXT.mix(0.25))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let plot = chart.plotting_area();
    for (place, (peer, estimate)) in bars.iter().enumerate() {
        let (top, middle, bottom) = (place as f64 + 0.18, place as f64 + 0.5, place as f64 + 0.82);
        plot.draw(&Rectangle::new([(0.0, top), (estimate.middle, bottom)], color(peer).filled()))?;
        if let Some((low, high)) = estimate.range {
            let line = |ends: [(f64, f64); 2]| PathElement::new(ends, TEXT.stroke_width(2));
            plot.draw(&line([(low, middle), (high, middle)]))?;
            for end in [low, high] {
                plot.draw(&line([(end, middle - 0.14), (end, middle + 0.14)]))?;
            }
        }
        label(area, &plot.map_coordinate(&(0.0, middle)), (-8, HPos::Right), peer, color_of_text(peer))?;
        label(
            area,
            &plot.map_coordinate(&(end(estimate), middle)),
            (6, HPos::Left),
            &figure(estimate.middle),
            color_of_text(peer),
        )?;
    }
    Ok(())
}

fn label(area: &Area<'_>, at: &(i32, i32), aside: (i32, HPos), text: &str, color: RGBColor) -> anyhow::Result<()> {
    let (left, top) = area.get_base_pixel();
    let style = (FONT, 13).into_font().color(&color).pos(Pos::new(aside.1, VPos::Center));
    area.draw(&Text::new(text.to_owned(), (at.0 - left + aside.0, at.1 - top), style))?;
    Ok(())
}

fn color(peer: &str) -> RGBAColor {
    match peer {
        OURS => ACCENT.mix(1.0),
        DIRECT => TEXT.mix(0.4),
        _ => OTHERS.mix(1.0),
    }
}

fn color_of_text(peer: &str) -> RGBColor {
    if peer == OURS { ACCENT } else { TEXT }
}

/// As short as an axis needs it.
fn tick(value: f64) -> String {
    if value >= 10_000.0 { format!("{}k", value / 1000.0) } else { format!("{}", (value * 1e6).round() / 1e6) }
}
