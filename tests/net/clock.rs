//! A wall clock that steps under a running sidecar: a little costs nothing, a day costs no more than it must.

use std::time::{Duration, Instant};

use entente::{brief::Mode, identity::DnsName, telemetry};
use jiff::{SignedDuration, Timestamp};

use super::{
    pods::{Hub, Pod, in_own_network},
    roles::{Act, Fared},
    support::{eventually, soon},
};

const TEXT: &str = "what-contoso-says";
const PORT: u16 = 5432;
const TWO_MINUTES: i64 = 120;
const DAY_AND_AN_HOUR: i64 = 90_000;
/// Lifetime of a certificate that a test waits for, in seconds.
const SHORT: u32 = 15;
/// A sidecar that waits uses no more of a second, in hundredths of it.
const CALM: u64 = 20;

/// A pod whose sidecar has a clock of its own, and one with everybody's; each calls the other.
async fn pair(hub: &Hub) -> [Pod<'_>; 2] {
    let mut stepping = hub.pod(2, "stepping", &[(PORT, Mode::MutualTls)], "").await;
    let other = hub.pod(3, "other", &[(PORT, Mode::MutualTls)], "").await;
    stepping.gets_a_clock().await;
    stepping.knows(&other, "other", PORT, Mode::MutualTls);
    other.knows(&stepping, "stepping", PORT, Mode::MutualTls);
    [stepping, other]
}

fn call(to: &Pod<'_>) -> Act {
    Act::Call(to.v4(PORT), TEXT.to_owned())
}

fn hold(to: &Pod<'_>) -> Act {
    Act::Hold(to.v4(PORT), TEXT.to_owned())
}

/// Waits until new connections succeed in both directions; answers how long that took.
async fn both_answer([one, other]: [&Pod<'_>; 2]) -> Duration {
    let began = Instant::now();
    for (from, to) in [(one, other), (other, one)] {
        eventually("a call", || async { (from.act(call(to)).await == Fared::Answered).then_some(()) }).await;
    }
    began.elapsed()
}

/// Whether the sidecar's own clock, by its last line in the log, is so many seconds ahead.
fn is_ahead(pod: &Pod<'_>, ahead: i64) -> bool {
    let log = pod.log();
    let time = log.lines().filter_map(|line| line.split_whitespace().next()?.parse::<Timestamp>().ok()).next_back();
    let expected = telemetry::now() + SignedDuration::from_secs(ahead);
    time.is_some_and(|time| time.duration_since(expected).abs() < SignedDuration::from_secs(30))
}

/// Gives the pod another certificate: another name brings one.
async fn renews(hub: &Hub, pod: &Pod<'_>, name: &str) {
    let added = DnsName::parse(&format!("{name}.contoso.example")).unwrap();
    let had = hub.control.look(|world| world.pods[&pod.name].serials.len());
    hub.control.change_brief(&pod.name, |brief| brief.names.push(added));
    eventually("another certificate", || async {
        let pod = hub.control.look(|world| world.pods[&pod.name].clone());
        (pod.serials.len() > had && pod.serials.last() == Some(&pod.holds)).then_some(())
    })
    .await;
}

/// The sidecar does not turn in circles: what it uses of a few seconds.
async fn is_calm(pod: &Pod<'_>) {
    const SECONDS: u64 = 4;
    let before = pod.ticks();
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let used = pod.ticks() - before;
    println!("{} used {used} ticks in {SECONDS} s", pod.name);
    assert!(used <= CALM * SECONDS, "{used} ticks in {SECONDS} s");
}

#[test]
fn a_clock_two_minutes_ahead_or_behind_costs_no_call_and_no_connection() {
    in_own_network("clock::a_clock_two_minutes_ahead_or_behind_costs_no_call_and_no_connection", |hub| async move {
        let [stepping, other] = pair(&hub).await;
        let _applications = [
            stepping.start(Act::Echo(vec![stepping.v4(PORT), stepping.v6(PORT)])).await,
            other.start(Act::Echo(vec![other.v4(PORT), other.v6(PORT)])).await,
        ];
        both_answer([&stepping, &other]).await;
        let mut held = [stepping.start(hold(&other)).await, other.start(hold(&stepping)).await];
        for (index, ahead) in [TWO_MINUTES, -TWO_MINUTES, 0].into_iter().enumerate() {
            stepping.set_clock(ahead);
            // The old certificates, one that came to the wrong clock, and one that the wrong clock has not seen yet.
            let renewals = [None, Some(&stepping), Some(&other)];
            for renewal in renewals {
                if let Some(pod) = renewal {
                    renews(&hub, pod, &format!("step-{index}")).await;
                }
                for (from, to) in [(&stepping, &other), (&other, &stepping)] {
                    for address in [to.v4(PORT), to.v6(PORT)] {
                        let fared = from.act(Act::Call(address, TEXT.to_owned())).await;
                        assert_eq!(fared, Fared::Answered, "{ahead} s ahead, {} to {address}", from.name);
                    }
                }
            }
            assert!(is_ahead(&stepping, ahead), "{ahead}: {}", stepping.log());
        }
        for one in &mut held {
            assert!(one.child.try_wait().unwrap().is_none(), "it goes on");
        }
    });
}

#[test]
fn a_clock_25_hours_ahead_ends_what_is_expired_by_it_and_calls_work_again_once_it_is_right() {
    let name = "clock::a_clock_25_hours_ahead_ends_what_is_expired_by_it_and_calls_work_again_once_it_is_right";
    in_own_network(name, |hub| async move {
        let [stepping, other] = pair(&hub).await;
        let _applications = [
            stepping.start(Act::Echo(vec![stepping.v4(PORT)])).await,
            other.start(Act::Echo(vec![other.v4(PORT)])).await,
        ];
        both_answer([&stepping, &other]).await;
        let mut held = [stepping.start(hold(&other)).await, other.start(hold(&stepping)).await];
        stepping.set_clock(DAY_AND_AN_HOUR);
        for one in &mut held {
            soon("the end of a connection", one.child.wait()).await.unwrap();
            assert_eq!(one.told::<Fared>(), Fared::Reset);
        }
        for direction in ["inbound", "outbound"] {
            stepping.refused(direction, "Expired").await;
        }
        assert_eq!(stepping.act(call(&other)).await, Fared::Reset);
        assert_eq!(other.act(call(&stepping)).await, Fared::Reset);
        for direction in ["inbound", "outbound"] {
            stepping.refused(direction, "NotReady").await;
        }
        assert!(is_ahead(&stepping, DAY_AND_AN_HOUR), "{}", stepping.log());
        is_calm(&stepping).await;
        stepping.set_clock(0);
        println!("calls work again after {:?}", both_answer([&stepping, &other]).await);
    });
}

#[test]
fn a_clock_25_hours_behind_believes_nobody_new_and_the_other_side_ends_what_truly_expires() {
    let name = "clock::a_clock_25_hours_behind_believes_nobody_new_and_the_other_side_ends_what_truly_expires";
    in_own_network(name, |hub| async move {
        let [stepping, other] = pair(&hub).await;
        let _applications = [
            stepping.start(Act::Echo(vec![stepping.v4(PORT)])).await,
            other.start(Act::Echo(vec![other.v4(PORT)])).await,
        ];
        both_answer([&stepping, &other]).await;
        hub.control.change(|world| world.pods.get_mut(&stepping.name).unwrap().lifetime = SHORT);
        renews(&hub, &stepping, "short").await;
        let certified = Instant::now();
        let mut held = [stepping.start(hold(&other)).await, other.start(hold(&stepping)).await];
        stepping.set_clock(-DAY_AND_AN_HOUR);
        eventually("a refusal", || async { (stepping.act(call(&other)).await == Fared::Reset).then_some(()) }).await;
        assert_eq!(other.act(call(&stepping)).await, Fared::Reset);
        for direction in ["inbound", "outbound"] {
            stepping.refused(direction, "NotYetValid").await;
        }
        assert!(is_ahead(&stepping, -DAY_AND_AN_HOUR), "{}", stepping.log());
        for one in &mut held {
            assert!(one.child.try_wait().unwrap().is_none(), "what was proven stays");
        }
        is_calm(&stepping).await;
        for one in &mut held {
            let end = tokio::time::timeout(Duration::from_secs(SHORT.into()), one.child.wait()).await;
            end.expect("it ends with the certificate").unwrap();
            assert_eq!(one.told::<Fared>(), Fared::Reset);
        }
        let ended = certified.elapsed();
        println!("ended {ended:?} after a certificate of {SHORT} s");
        assert!(ended < Duration::from_secs(u64::from(SHORT) + 3), "{ended:?}");
        for direction in ["inbound", "outbound"] {
            other.refused(direction, "Expired").await;
        }
        stepping.set_clock(0);
        println!("calls work again after {:?}", both_answer([&stepping, &other]).await);
    });
}
