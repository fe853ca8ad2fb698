use super::*;

fn blocks(values: &[f64]) -> Blocks {
    values.iter().copied().enumerate().collect()
}

fn samples(lines: &[(&str, &[f64])]) -> Samples {
    let mut samples = Samples::default();
    for (peer, values) in lines {
        for (block, value) in values.iter().enumerate() {
            let (peer, metric) = ((*peer).to_owned(), "m".to_owned());
            samples.add(Sample { block, peer, metric, value: *value }).unwrap();
        }
    }
    samples
}

#[test]
fn a_median_is_the_middle_value_or_the_mean_of_both() {
    assert_eq!(median(vec![]), None);
    assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
}

#[test]
fn ratios_are_taken_within_blocks_so_that_a_drift_of_the_machine_cancels() {
    let theirs = [10.0, 20.0, 40.0, 80.0, 160.0, 320.0];
    let ours = theirs.map(|value| value * 1.5);
    let Estimate { middle, range } = ratio(&blocks(&ours), &blocks(&theirs)).unwrap();
    let (low, high) = range.unwrap();
    assert!([middle, low, high].iter().all(|value| (value - 1.5).abs() < 1e-9), "{middle} {low} {high}");
}

#[test]
fn a_block_that_only_one_of_them_has_is_left_out() {
    let theirs = Blocks::from([(1, 2.0), (3, 8.0)]);
    let ours = Blocks::from([(0, 99.0), (1, 4.0), (2, 99.0)]);
    assert_eq!(ratio(&ours, &theirs).unwrap().middle, 2.0);
    assert_eq!(ratio(&blocks(&[1.0]), &Blocks::from([(7, 1.0)])), None);
}

#[test]
fn a_ratio_to_nothing_is_left_out() {
    assert_eq!(ratio(&blocks(&[4.0, 4.0]), &blocks(&[0.0, 2.0])).unwrap().middle, 2.0);
    assert_eq!(ratio(&blocks(&[4.0]), &blocks(&[0.0])), None);
}

#[test]
fn fewer_than_six_blocks_prove_nothing() {
    let ratio = ratio(&blocks(&[3.0; 5]), &blocks(&[1.0; 5])).unwrap();
    assert_eq!(ratio.range, None);
    assert_eq!(ratio.standing(Better::Higher), Standing::Undecided);
}

#[test]
fn we_are_ahead_only_where_the_whole_range_is_on_the_better_side() {
    let at = |low, high| Estimate { middle: f64::midpoint(low, high), range: Some((low, high)) };
    for (low, high, better, standing) in [
        (1.01, 1.20, Better::Higher, Standing::Ahead),
        (0.99, 1.20, Better::Higher, Standing::Undecided),
        (0.80, 0.99, Better::Higher, Standing::Behind),
        (0.80, 0.99, Better::Lower, Standing::Ahead),
        (0.80, 1.01, Better::Lower, Standing::Undecided),
        (1.01, 1.20, Better::Lower, Standing::Behind),
        (1.00, 1.20, Better::Higher, Standing::Undecided),
    ] {
        assert_eq!(at(low, high).standing(better), standing, "{low}–{high} {better:?}");
    }
}

#[test]
fn the_best_peer_is_neither_we_nor_the_bare_path() {
    let samples = samples(&[
        ("direct", &[100.0]),
        ("entente", &[50.0]),
        ("haproxy", &[9.0, 9.0, 1.0]),
        ("nginx", &[8.0, 8.0, 99.0]),
    ]);
    assert_eq!(samples.best("m", Better::Higher), Some("haproxy"));
    assert_eq!(samples.best("m", Better::Lower), Some("nginx"));
    assert_eq!(samples.best("other", Better::Lower), None);
}

#[test]
fn the_range_is_the_same_each_time_and_covers_the_middle_as_often_as_it_says() {
    let mut dice = Dice(1);
    let mut covered = 0;
    for _ in 0..200 {
        // Even around 1000, with a spread that is nothing like a bell.
        let values: Vec<f64> = (0..20).map(|_| 500.0 + dice.below(1001) as f64).collect();
        let first = estimate(&values).unwrap();
        let (low, high) = first.range.unwrap();
        assert!(low <= first.middle && first.middle <= high);
        covered += usize::from(low <= 1000.0 && 1000.0 <= high);
    }
    assert!((180..=200).contains(&covered), "{covered} of 200");
    let values: Vec<f64> = (0..20).map(f64::from).collect();
    assert_eq!(estimate(&values), estimate(&values));
}

#[test]
fn a_line_that_says_something_else_is_refused_with_its_number() {
    let good = "block,peer,metric,value\n0,envoy,m,1.5\n1,envoy,m,2\n";
    assert_eq!(Samples::parse(good).unwrap().of("m", "envoy"), Some(&blocks(&[1.5, 2.0])));
    for bad in ["1,envoy,m,2", "0,envoy,m", "0,envoy,m,NaN", "x,envoy,m,1", "0,envoy,m,1,1", ""] {
        let error = Samples::parse(&format!("{good}{bad}\n0,a,m,1\n")).unwrap_err();
        assert!(format!("{error:#}").contains("line 4"), "{bad}: {error:#}");
    }
    assert!(Samples::parse("").is_err());
}
