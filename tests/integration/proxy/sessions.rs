//! One handshake carries one connection after the other between sidecars of ours; each is judged as if it had just come.

use tokio::{io::AsyncWriteExt, sync::watch};

use super::{
    harness::echo,
    two::{Fate, itself, middle, two, two_by},
};
use crate::support::{applications::Behaviour, eventually, soon};

#[tokio::test]
async fn connections_one_after_the_other_share_a_handshake_and_nothing_else() {
    let two = two(itself).await;
    for turn in 0..40_u8 {
        two.call(&vec![turn; 1 + 700 * usize::from(turn)]).await;
    }
    let [handshakes, resumed] = two.seen().await;
    assert_eq!(handshakes + resumed, 40.0);
    // A session stays with the thread that made it; a call may come on another.
    assert!(resumed >= 20.0, "{resumed} of 40");
    assert_eq!(two.application.accepted(), 40);
    assert_eq!(two.server.metric("entente_connections_total{direction=\"inbound\",mode=\"MutualTLS\"}").await, 40.0);
}

#[tokio::test]
async fn behind_the_address_of_a_service_each_connection_finds_a_pod_anew() {
    let two = two_by(itself, false, Behaviour::Echo).await;
    for _ in 0..6 {
        two.call(b"any of you").await;
    }
    assert_eq!(two.seen().await, [6.0, 0.0]);
}

#[tokio::test]
async fn a_session_that_rests_carries_nothing_once_its_caller_is_revoked() {
    let two = two(itself).await;
    two.warm().await;
    let accepted = two.application.accepted();
    two.control.revoke(&two.server.home.uid, &two.control.serial(&two.client.home.uid));
    two.server.acknowledges().await;
    let mut stream = two.client.open(0).await;
    let _ = stream.write_all(b"too late").await;
    two.server.refused("inbound", "Revoked", 1).await;
    assert_eq!(two.application.accepted(), accepted);
    // Nothing was open that could be cut.
    assert_eq!(two.server.metric("entente_cut_total").await, 0.0);
}

#[tokio::test]
async fn under_a_new_brief_the_next_connection_shakes_hands_anew() {
    let two = two(itself).await;
    two.warm().await;
    let [handshakes, resumed] = two.seen().await;
    two.control.change_brief(&two.client.home.uid, |brief| brief.drain_seconds += 1);
    two.client.acknowledges().await;
    two.call(b"again").await;
    assert_eq!(two.seen().await, [handshakes + 1.0, resumed]);
}

#[tokio::test]
async fn a_connection_that_the_application_resets_takes_its_session_with_it() {
    let two = two(itself).await;
    for _ in 0..4 {
        let mut stream = two.client.open(0).await;
        echo(&mut stream, b"unfinished").await.unwrap();
        stream.set_zero_linger().unwrap();
        drop(stream);
        eventually("reset passed on", || async { (two.application.open() == 0).then_some(()) }).await;
    }
    assert_eq!(two.seen().await, [4.0, 0.0]);
}

#[tokio::test]
async fn a_session_that_rests_is_not_open_and_does_not_hold_up_the_end() {
    let two = two(itself).await;
    two.warm().await;
    assert_eq!(two.server.metric("entente_open_connections{direction=\"inbound\"}").await, 0.0);
    assert_eq!(two.client.metric("entente_open_connections{direction=\"outbound\"}").await, 0.0);
    let began = tokio::time::Instant::now();
    let (_, ended) = two.server.terminate();
    soon("ended", ended).await.unwrap().unwrap();
    let limit = two.control.look(|world| world.pods[&two.client.home.uid].brief.as_ref().unwrap().drain_seconds);
    assert!(began.elapsed().as_secs() < u64::from(limit), "it waited for a session that rests");
}

async fn survives(fate: Fate) {
    let (tell, told) = watch::channel(None);
    let two = two(async |server| middle(server, told).await).await;
    two.warm().await;
    let (accepted, [handshakes, resumed]) = (two.application.accepted(), two.seen().await);
    tell.send(Some(fate)).unwrap();
    two.call(b"once and once only").await;
    assert_eq!(two.application.accepted(), accepted + 1);
    assert_eq!(two.seen().await, [handshakes + 1.0, resumed]);
}

#[tokio::test]
async fn a_session_that_was_lost_while_it_rested_costs_a_handshake_and_not_a_byte() {
    survives(Fate::Gone).await;
}

#[tokio::test]
async fn a_session_whose_way_has_fallen_silent_costs_a_handshake_and_not_a_byte() {
    survives(Fate::Silent).await;
}
