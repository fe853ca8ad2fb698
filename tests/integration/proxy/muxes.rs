//! Connections to the same pod share one between the sidecars, and nothing else: each is judged, cut and ended by itself,
//! and none waits for another.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use super::{
    harness::{Seen, Sidecar, echo, read_out, say_and_read_out},
    two::{Fate, Two, itself, middle, two, two_by},
};
use crate::support::{
    applications::{Behaviour, GREETING},
    eventually, soon,
};

/// Handshakes that many connections may take: one for each thread.
const FEW: f64 = 2.0;

/// Two that know each other well enough to share, and how many handshakes that took.
async fn warm(two: Two) -> (Two, f64) {
    two.warm().await;
    let [handshakes, _] = two.seen().await;
    (two, handshakes)
}

/// `count` connections that all talk.
async fn crowd(two: &Two, count: u8) -> Vec<TcpStream> {
    let mut open = vec![];
    for turn in 0..count {
        let mut stream = two.client.open(0).await;
        echo(&mut stream, &[turn; 100]).await.unwrap();
        open.push(stream);
    }
    open
}

/// Bytes that no two connections have alike.
fn much(of: u8) -> Vec<u8> {
    (0..300_000_u32).map(|index| (index % 251) as u8 ^ of).collect()
}

#[tokio::test]
async fn connections_at_the_same_time_share_a_handshake_and_each_is_counted() {
    let (two, _) = warm(two(itself).await).await;
    let (before, accepted) = (two.seen().await, two.application.accepted() as f64);
    let mut open = crowd(&two, 20).await;
    for (turn, stream) in (0_u8..).zip(&mut open) {
        echo(stream, &[turn; 3000]).await.unwrap();
    }
    let after = two.seen().await;
    let [handshakes, resumed] = [0, 1].map(|index| after[index] - before[index]);
    assert!(handshakes <= FEW, "{handshakes}");
    assert_eq!(resumed, 20.0, "a handshake is no connection");
    assert_eq!(two.application.open(), 20);
    for side in [(&two.server, "inbound"), (&two.client, "outbound")] {
        let (sidecar, direction) = side;
        assert_eq!(sidecar.metric(&format!("entente_open_connections{{direction=\"{direction}\"}}")).await, 20.0);
        let all = format!("entente_connections_total{{direction=\"{direction}\",mode=\"MutualTLS\"}}");
        assert_eq!(sidecar.metric(&all).await, accepted + 20.0);
    }
    for mut stream in open {
        stream.shutdown().await.unwrap();
        assert_eq!(read_out(&mut stream).await, (vec![], Seen::End));
    }
    eventually("all have ended", || async { (two.application.open() == 0).then_some(()) }).await;
    assert_eq!(two.client.reasons().await, [].into());
    assert_eq!(two.server.reasons().await, [].into());
}

#[tokio::test]
async fn connections_one_after_the_other_share_a_handshake_and_one_that_waits_is_none() {
    let (two, before) = warm(two(itself).await).await;
    for turn in 0..40_u8 {
        two.call(&vec![turn; 1 + 700 * usize::from(turn)]).await;
    }
    assert!(two.seen().await[0] <= before + FEW);
    eventually("all have ended", || async { (two.application.open() == 0).then_some(()) }).await;
    for (sidecar, direction) in [(&two.server, "inbound"), (&two.client, "outbound")] {
        assert_eq!(sidecar.metric(&format!("entente_open_connections{{direction=\"{direction}\"}}")).await, 0.0);
    }
    // Nor does it hold up the end.
    let began = tokio::time::Instant::now();
    let limit = two.control.look(|world| world.pods[&two.client.home.uid].brief.as_ref().unwrap().drain_seconds);
    let Two { server, .. } = two;
    soon("ended", server.terminate().1).await.unwrap().unwrap();
    assert!(began.elapsed().as_secs() < u64::from(limit), "it waited for one that carries nothing");
}

#[tokio::test]
async fn much_in_both_directions_arrives_whole_on_each() {
    let (two, before) = warm(two(itself).await).await;
    let open = crowd(&two, 12).await;
    let talks = (0_u8..).zip(open).map(|(of, mut stream)| {
        tokio::spawn(async move {
            let sent = much(of);
            let (mut read, mut write) = stream.split();
            let mut came = vec![];
            let (said, heard) = tokio::join!(
                async {
                    write.write_all(&sent).await?;
                    write.shutdown().await
                },
                read.read_to_end(&mut came)
            );
            said.unwrap();
            heard.unwrap();
            assert!(came == sent, "{of}: {} of {} bytes", came.len(), sent.len());
        })
    });
    for talk in talks.collect::<Vec<_>>() {
        soon("all of it", talk).await.unwrap();
    }
    assert!(two.seen().await[0] <= before + FEW);
}

#[tokio::test]
async fn a_crowd_that_comes_at_once_waits_for_one_handshake() {
    let (two, before) = warm(two(itself).await).await;
    let mut open = vec![];
    for turn in 0..30_u8 {
        // None is answered before the last one has come.
        open.push((turn, two.client.open(0).await));
    }
    for (turn, stream) in &mut open {
        echo(stream, &[*turn; 10]).await.unwrap();
    }
    assert!(two.seen().await[0] <= before + FEW);
}

#[tokio::test]
async fn who_does_not_read_keeps_nobody_else_waiting() {
    let (two, _) = warm(two(itself).await).await;
    let mut open = crowd(&two, 12).await;
    // They say much and read nothing of the echo, until nothing more is taken.
    let much = vec![1; 64 << 20];
    for deaf in open.iter_mut().take(10) {
        let said = tokio::time::timeout(Duration::from_millis(300), deaf.write_all(&much)).await;
        assert!(said.is_err(), "somebody must hold it back");
    }
    for stream in open.iter_mut().skip(10) {
        echo(stream, b"and we?").await.unwrap();
    }
    echo(&mut two.client.open(0).await, b"and a new one?").await.unwrap();
}

#[tokio::test]
async fn ends_are_passed_on_one_direction_at_a_time() {
    let (two, before) = warm(two_by(itself, true, Behaviour::Counts).await).await;
    let mut open = vec![];
    for _ in 0..8 {
        open.push(two.client.open(0).await);
    }
    for (length, stream) in (1000..).zip(&mut open) {
        stream.write_all(&vec![7; length]).await.unwrap();
    }
    for (length, mut stream) in (1000..).zip(open) {
        stream.shutdown().await.unwrap();
        assert_eq!(read_out(&mut stream).await, (length.to_string().into_bytes(), Seen::End));
    }
    assert!(two.seen().await[0] <= before + FEW);
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let (two, before) = warm(two_by(itself, true, Behaviour::Greets).await).await;
    let mut open = vec![];
    for _ in 0..8 {
        let mut stream = two.client.open(0).await;
        let mut greeting = vec![0; GREETING.len()];
        soon("a greeting", stream.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(greeting, GREETING);
        open.push(stream);
    }
    assert!(two.seen().await[0] <= before + FEW);
}

#[tokio::test]
async fn a_reset_is_the_reset_of_one() {
    let (two, before) = warm(two(itself).await).await;
    let mut open = crowd(&two, 12).await;
    for stream in open.drain(..6) {
        stream.set_zero_linger().unwrap();
    }
    eventually("six are reset", || async { (two.application.open() == 6).then_some(()) }).await;
    for stream in &mut open {
        echo(stream, b"still here").await.unwrap();
    }
    assert!(two.seen().await[0] <= before + FEW);
}

#[tokio::test]
async fn all_are_cut_and_counted_when_their_caller_is_revoked_and_no_other_begins() {
    let (two, _) = warm(two(itself).await).await;
    let open = crowd(&two, 12).await;
    two.control.revoke(&two.server.home.uid, &two.control.serial(&two.client.home.uid));
    two.server.refused("inbound", "Revoked", 12).await;
    for mut stream in open {
        assert_eq!(read_out(&mut stream).await, (vec![], Seen::Reset));
    }
    assert_eq!(two.server.metric("entente_cut_total").await, 12.0);
    let accepted = two.application.accepted();
    assert_eq!(say_and_read_out(&mut two.client.open(0).await, b"too late").await.1, Seen::Reset);
    assert_eq!(two.application.accepted(), accepted);
}

/// After a new brief of the one `of` the two.
async fn go_on(of: impl Fn(&Two) -> &Sidecar) {
    let (two, _) = warm(two(itself).await).await;
    let mut open = crowd(&two, 12).await;
    let [handshakes, _] = two.seen().await;
    two.control.change_brief(&of(&two).home.uid, |brief| brief.drain_seconds += 1);
    of(&two).acknowledges().await;
    let mut later = crowd(&two, 20).await;
    for stream in open.iter_mut().chain(&mut later) {
        echo(stream, b"before and after").await.unwrap();
    }
    let [again, _] = two.seen().await;
    assert!(again > handshakes && again <= handshakes + FEW, "{handshakes} {again}");
}

#[tokio::test]
async fn under_a_new_brief_others_share_another_one_and_who_was_there_goes_on() {
    go_on(|two| &two.client).await;
}

#[tokio::test]
async fn under_a_new_brief_of_the_callee_those_who_come_shake_hands_anew() {
    go_on(|two| &two.server).await;
}

#[tokio::test]
async fn behind_the_address_of_a_service_nobody_shares() {
    let two = two_by(itself, false, Behaviour::Echo).await;
    let _open = crowd(&two, 8).await;
    assert_eq!(two.seen().await, [8.0, 0.0]);
}

#[tokio::test]
async fn who_shares_a_wire_that_breaks_sees_a_reset_and_who_comes_shakes_hands_anew() {
    let (tell, told) = watch::channel(None);
    let (two, _) = warm(two(async |server| middle(server, told).await).await).await;
    let open = crowd(&two, 12).await;
    tell.send(Some(Fate::Gone)).unwrap();
    for mut stream in open {
        assert_eq!(read_out(&mut stream).await, (vec![], Seen::Reset));
    }
    eventually("the application hears of it", || async { (two.application.open() == 0).then_some(()) }).await;
    let _ = crowd(&two, 6).await;
}

#[tokio::test]
async fn where_the_application_is_down_who_shares_is_reset_without_a_handshake_and_both_say_why() {
    let (two, _) = warm(two(itself).await).await;
    let mut open = crowd(&two, 6).await;
    let [handshakes, _] = two.seen().await;
    two.application.stop_listening();
    eventually("it does not listen", || async {
        TcpStream::connect(two.application.address).await.is_err().then_some(())
    })
    .await;
    for _ in 0..10 {
        assert_eq!(read_out(&mut two.client.open(0).await).await, (vec![], Seen::Reset));
    }
    for side in [&two.client, &two.server] {
        eventually("counted", || async { (side.reasons().await.get("DialFailed") == Some(&10)).then_some(()) }).await;
    }
    assert!(two.seen().await[0] - handshakes <= FEW - 1.0, "one for a thread that had none");
    echo(&mut open[0], b"who was there goes on").await.unwrap();
}

/// Whatever became of the one that carries nothing, or much: who comes is served once and once only.
async fn survives(fate: Fate, count: u8) {
    let (tell, told) = watch::channel(None);
    let (two, _) = warm(two(async |server| middle(server, told).await).await).await;
    let _open = crowd(&two, count).await;
    let accepted = two.application.accepted();
    tell.send(Some(fate)).unwrap();
    echo(&mut two.client.open(0).await, b"once and once only").await.unwrap();
    assert_eq!(two.application.accepted(), accepted + 1);
}

#[tokio::test]
async fn one_that_was_lost_costs_a_handshake_and_not_a_byte() {
    survives(Fate::Gone, 0).await;
    survives(Fate::Gone, 6).await;
}

#[tokio::test]
async fn one_whose_way_has_fallen_silent_costs_a_handshake_and_not_a_byte() {
    survives(Fate::Silent, 0).await;
    survives(Fate::Silent, 6).await;
}

#[tokio::test]
async fn who_shares_has_the_time_to_end_that_the_brief_gives() {
    for ends in ["client", "server"] {
        let (two, _) = warm(two(itself).await).await;
        let mut open = crowd(&two, 12).await;
        let Two { application, server, client, .. } = two;
        let ended = match ends {
            "client" => client.terminate().1,
            _ => server.terminate().1,
        };
        for stream in &mut open {
            echo(stream, b"while there is time").await.unwrap();
        }
        for mut stream in open {
            stream.shutdown().await.unwrap();
            assert_eq!(read_out(&mut stream).await, (vec![], Seen::End), "{ends}");
        }
        soon("it ends when all have ended", ended).await.unwrap().unwrap();
        eventually("all have ended", || async { (application.open() == 0).then_some(()) }).await;
    }
}

#[tokio::test]
async fn who_shares_and_does_not_end_is_ended_in_order_when_the_time_is_over() {
    let (two, _) = warm(two(itself).await).await;
    two.control.change_brief(&two.server.home.uid, |brief| brief.drain_seconds = 1);
    two.server.acknowledges().await;
    let open = crowd(&two, 12).await;
    let Two { server, .. } = two;
    let (_, ended) = server.terminate();
    for mut stream in open {
        assert_eq!(read_out(&mut stream).await, (vec![], Seen::End));
    }
    soon("ended", ended).await.unwrap().unwrap();
}
