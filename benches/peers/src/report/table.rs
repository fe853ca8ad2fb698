//! The table: a line for each metric, with what was promised of it and whether it came true.

use super::metrics::{METRICS, Metric, Target};
use crate::stats::{Better, Estimate, OURS, Samples, Standing};

/// In this order, where anything was measured of them.
pub(super) const PEERS: &[&str] = &["direct", "haproxy", "nginx", "stunnel", "envoy", OURS];

/// The table in Markdown.
pub(super) fn table(samples: &Samples) -> String {
    let mut text = format!("| | {} | to the best peer | target | met? |\n|---|", PEERS.join(" | "));
    text.push_str(&"--:|".repeat(PEERS.len()));
    text.push_str("---|---|---|\n");
    for metric in METRICS {
        text.push_str(&line(metric, samples));
    }
    text
}

fn line(metric: &Metric, samples: &Samples) -> String {
    let unit = if metric.unit.is_empty() { String::new() } else { format!(", {}", metric.unit) };
    let figures = PEERS.iter().map(|peer| match samples.estimate(metric.name, peer) {
        Some(Estimate { middle, .. }) if *peer == OURS => format!("**{}**", figure(middle)),
        Some(Estimate { middle, .. }) => figure(middle),
        None => "–".to_owned(),
    });
    let figures: Vec<_> = figures.collect();
    let best = samples.best(metric.name, metric.better);
    let ratio = best.and_then(|peer| Some((peer, samples.ratio(metric.name, peer)?)));
    let told = ratio.map_or_else(|| "–".to_owned(), |(peer, ratio)| format!("{} ({peer})", times(&ratio)));
    let (target, met) = (target(metric), met(metric, samples, ratio.map(|(_, ratio)| ratio)));
    format!("| {}{unit} | {} | {told} | {target} | {met} |\n", metric.title, figures.join(" | "))
}

fn target(metric: &Metric) -> String {
    let sign = if metric.better == Better::Higher { "≥" } else { "≤" };
    match metric.target {
        Target::OfBest(ratio) => format!("{sign} {ratio:.2} ×"),
        Target::Of(peer, ratio) => format!("{sign} {ratio:.2} × {peer}"),
        Target::AtMost(most) => format!("≤ {}", figure(most)),
        Target::Nothing => "–".to_owned(),
    }
}

/// Whether the target is met; without one, how we stand.
fn met(metric: &Metric, samples: &Samples, to_best: Option<Estimate>) -> String {
    let standing = to_best.map_or("", |ratio| match ratio.standing(metric.better) {
        Standing::Ahead => "ahead",
        Standing::Behind => "behind",
        Standing::Undecided => "undecided",
    });
    let (estimate, bound, better) = match metric.target {
        Target::OfBest(ratio) => (to_best, ratio, metric.better),
        Target::Of(peer, ratio) => (samples.ratio(metric.name, peer), ratio, metric.better),
        Target::AtMost(most) => (samples.estimate(metric.name, OURS), most, Better::Lower),
        Target::Nothing => return if standing.is_empty() { "not measured".to_owned() } else { standing.to_owned() },
    };
    let Some(estimate) = estimate else { return "not measured".to_owned() };
    let words = match reaches(&estimate, bound, better) {
        Reaches::Surely => "**yes**".to_owned(),
        Reaches::Perhaps => "yes, within what chance may do".to_owned(),
        Reaches::Unproved => "yes, in too few blocks to prove it".to_owned(),
        Reaches::Not if standing.is_empty() => "**no**".to_owned(),
        Reaches::Not => format!("**no**, {standing}"),
    };
    match metric.target {
        Target::Of(peer, _) => format!("{words}: {} ({peer})", times(&estimate)),
        _ => words,
    }
}

#[derive(Debug, PartialEq)]
enum Reaches {
    Surely,
    /// The median does, not all of its range
    Perhaps,
    /// The median does, and has no range
    Unproved,
    Not,
}

fn reaches(estimate: &Estimate, bound: f64, better: Better) -> Reaches {
    let good = |value: f64| match better {
        Better::Higher => value >= bound,
        Better::Lower => value <= bound,
    };
    match estimate.range {
        _ if !good(estimate.middle) => Reaches::Not,
        Some((low, high)) if good(low) && good(high) => Reaches::Surely,
        Some(_) => Reaches::Perhaps,
        None => Reaches::Unproved,
    }
}

fn times(ratio: &Estimate) -> String {
    match ratio.range {
        Some((low, high)) => format!("{:.2} × [{low:.2}–{high:.2}]", ratio.middle),
        None => format!("{:.2} ×", ratio.middle),
    }
}

/// Three digits that matter, thousands apart.
pub(super) fn figure(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let whole = text.find('.').unwrap_or(text.len());
    text.char_indices().fold(String::new(), |mut told, (at, letter)| {
        if at > 0 && at < whole && (whole - at) % 3 == 0 && !told.ends_with('-') {
            told.push(',');
        }
        told.push(letter);
        told
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(figures: &[(&str, &str, f64)]) -> Samples {
        let lines = figures
            .iter()
            .flat_map(|(metric, peer, value)| (0..8).map(move |block| format!("{block},{peer},{metric},{value}\n")));
        Samples::parse(&format!("block,peer,metric,value\n{}", lines.collect::<String>())).unwrap()
    }

    fn line_of(metric: &str, figures: &[(&str, &str, f64)]) -> String {
        line(super::super::metrics::named(metric).unwrap(), &samples(figures))
    }

    #[test]
    fn figures_have_three_digits_and_apart_thousands() {
        for (value, told) in [
            (1_234_567.8, "1,234,568"),
            (155_000.0, "155,000"),
            (999.7, "1,000"),
            (123.4, "123"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.1234, "0.123"),
            (0.0, "0.000"),
            (-1234.0, "-1,234"),
            (-123.0, "-123"),
        ] {
            assert_eq!(figure(value), told);
        }
    }

    #[test]
    fn a_line_is_measured_against_the_best_peer() {
        let m = "bulk_up_gbps";
        let line = line_of(m, &[(m, "direct", 40.0), (m, "haproxy", 10.0), (m, "nginx", 8.0), (m, OURS, 14.0)]);
        assert_eq!(
            line,
            "| bytes to the server, Gbit/s | 40.0 | 10.0 | 8.00 | – | – | **14.0** | 1.40 × [1.40–1.40] (haproxy) \
             | ≥ 1.35 × | **yes** |\n"
        );
    }

    #[test]
    fn a_target_that_is_missed_says_so_even_where_we_are_ahead() {
        let m = "bulk_up_gbps";
        assert!(line_of(m, &[(m, "haproxy", 10.0), (m, OURS, 12.0)]).ends_with("| **no**, ahead |\n"));
        assert!(line_of(m, &[(m, "haproxy", 10.0), (m, OURS, 9.0)]).ends_with("| **no**, behind |\n"));
    }

    #[test]
    fn handshakes_are_promised_against_envoy_even_if_another_is_best() {
        let m = "handshakes_per_s";
        let line = line_of(m, &[(m, "haproxy", 900.0), (m, "envoy", 400.0), (m, OURS, 1000.0)]);
        assert!(
            line.contains("| 1.11 × [1.11–1.11] (haproxy) | ≥ 2.00 × envoy | **yes**: 2.50 × [2.50–2.50] (envoy) |"),
            "{line}"
        );
    }

    #[test]
    fn memory_is_promised_by_itself() {
        let m = "idle_pss_kib";
        assert!(line_of(m, &[(m, "nginx", 5_000.0), (m, OURS, 9_000.0)]).contains("| ≤ 10,000 | **yes** |"));
        assert!(line_of(m, &[(m, "nginx", 5_000.0), (m, OURS, 11_000.0)]).contains("| ≤ 10,000 | **no**, behind |"));
    }

    #[test]
    fn what_nobody_measured_is_not_met() {
        assert!(line_of("storm_p99_us", &[]).ends_with("| – | ≤ 0.70 × | not measured |\n"));
        assert!(line_of("connect_cpu_us", &[]).ends_with("| – | – | not measured |\n"));
    }

    #[test]
    fn a_median_that_reaches_its_target_is_doubted_if_its_range_does_not() {
        let at = |low, middle, high| Estimate { middle, range: Some((low, high)) };
        assert_eq!(reaches(&at(1.4, 1.5, 1.6), 1.35, Better::Higher), Reaches::Surely);
        assert_eq!(reaches(&at(1.3, 1.4, 1.5), 1.35, Better::Higher), Reaches::Perhaps);
        assert_eq!(reaches(&at(1.2, 1.3, 1.5), 1.35, Better::Higher), Reaches::Not);
        assert_eq!(reaches(&Estimate { middle: 0.5, range: None }, 0.65, Better::Lower), Reaches::Unproved);
    }
}
