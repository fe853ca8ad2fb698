use super::*;

fn expected(count: f64, tolerance: f64) -> Expectations {
    BTreeMap::from([("records".to_owned(), Expected { count, tolerance, kinds: BTreeMap::new() })])
}

fn counted(name: &str, count: f64) -> BTreeMap<String, Counted> {
    BTreeMap::from([(name.to_owned(), Counted { count, kinds: BTreeMap::new() })])
}

fn check(count: f64, outcome: Outcome) {
    let compared = compare(&expected(1000.0, 2.0), &counted("records", count));
    assert_eq!(compared.iter().map(|one| one.outcome.clone()).collect::<Vec<_>>(), [outcome], "{count}");
}

#[test]
fn three_per_cent_more_fail_and_two_do_not() {
    check(1030.0, Outcome::Grew);
    check(1020.1, Outcome::Grew);
    check(1020.0, Outcome::Held);
    check(1000.0, Outcome::Held);
    check(980.0, Outcome::Held);
    assert!(Outcome::Grew.is_failure() && !Outcome::Held.is_failure());
}

#[test]
fn three_per_cent_fewer_pass_and_the_message_says_that_the_baseline_can_be_lowered() {
    check(970.0, Outcome::Fell);
    assert!(!Outcome::Fell.is_failure());
    let compared = compare(&expected(1000.0, 2.0), &counted("records", 970.0));
    assert_eq!(
        compared[0].to_string(),
        "ok      records                             970    -3.00 %  the stored 1000 can be lowered"
    );
}

#[test]
fn what_is_not_stored_fails_and_so_does_what_was_not_counted() {
    let compared = compare(&expected(1000.0, 2.0), &counted("requests", 7.0));
    let outcomes: Vec<_> = compared.iter().map(|one| (one.name.as_str(), one.outcome.clone())).collect();
    assert_eq!(outcomes, [("records", Outcome::NotCounted), ("requests", Outcome::NotExpected)]);
    assert!(compared.iter().all(|one| one.outcome.is_failure()));
    assert_eq!(compared[0].to_string(), "FAILED  records                  is stored and was not counted");
    assert_eq!(compared[1].to_string(), "FAILED  requests                 7, and nothing is stored");
}

#[test]
fn a_message_says_what_grew_by_how_much_and_of_which_kind() {
    let kinds = |read| BTreeMap::from([("read".to_owned(), read), ("write".to_owned(), 4.0)]);
    let stored = BTreeMap::from([("request".to_owned(), Expected { count: 8.0, tolerance: 5.0, kinds: kinds(4.0) })]);
    let now = BTreeMap::from([("request".to_owned(), Counted { count: 10.0, kinds: kinds(6.0) })]);
    assert_eq!(
        compare(&stored, &now)[0].to_string(),
        "FAILED  request                              10   +25.00 %  8 is stored, 5 % more are allowed\n          \
         read                                6  was 4"
    );
}

#[test]
fn what_is_stored_anew_keeps_its_tolerance_and_what_is_new_gets_one() {
    let mut stored = expected(1000.0, 3.0);
    store(&mut stored, &counted("records", 900.0), |_| 2.0);
    store(&mut stored, &counted("requests", 5.0), |_| 2.0);
    let all: Vec<_> = stored.values().map(|one| (one.count, one.tolerance)).collect();
    assert_eq!(all, [(900.0, 3.0), (5.0, 2.0)]);
    assert!(compare(&stored, &counted("records", 927.0)).iter().any(|one| one.outcome == Outcome::Held));
}
