use std::io::IoSlice;

use rustls::{AlertDescription, ContentType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::{
    socket::{Kept, PLENTY, PORTION, kept},
    *,
};
use crate::proxy::records::{Records, fuzz, tests::both};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_half_closed_connection_ends_after_its_limit_of_silence_and_not_before() {
    let (mut application, mut near, mut peer, mut carrier) = between();
    let (_kill, mut killed) = oneshot::channel();
    let relayed = relay(&mut near, &mut carrier, LIMIT, &mut killed);
    let script = async {
        application.shutdown().await.unwrap();
        for _ in 0..10 {
            sleep(LIMIT / 2).await;
            peer.write_all(b"still here").await.unwrap();
            application.read_exact(&mut [0; 10]).await.unwrap();
        }
        Instant::now()
    };
    let (relayed, last_word) = tokio::join!(async { (relayed.await, Instant::now()) }, script);
    let ((moved, end), ended) = relayed;
    assert_eq!(end, End::Refused(Refusal::HalfClosed));
    assert_eq!(moved.received, 100);
    let silence = ended - last_word;
    assert!(silence >= LIMIT && silence < LIMIT + Duration::from_secs(1), "{silence:?}");
}

/// A carrier whose up direction has ended, and whose bytes come to the application by another way.
struct Aside(std::cell::Cell<u64>);

impl<A> Carrier<A> for &Aside {
    fn poll_up(&mut self, _: &mut Context<'_>, _: &mut A, _: &mut [u8]) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn poll_down(&mut self, _: &mut Context<'_>, _: &mut A, _: &mut [u8]) -> Poll<Result<(), Broken>> {
        Poll::Pending
    }

    fn poll_goodbye(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn moved(&self) -> Moved {
        Moved { sent: 0, received: self.0.get() }
    }

    fn owes(&self) -> bool {
        false
    }

    fn last_words(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Option<io::Error> {
        None
    }

    fn end(&self, _: &io::Error) -> End {
        End::Reset
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_application_is_given_at_once_is_no_silence() {
    let (_application, mut near) = duplex(1);
    let (_kill, mut killed) = oneshot::channel();
    let (aside, begin) = (Aside(std::cell::Cell::new(0)), Instant::now());
    let mut carrier = &aside;
    let relayed = async { (relay(&mut near, &mut carrier, LIMIT, &mut killed).await.1, begin.elapsed()) };
    let script = async {
        for _ in 0..5 {
            sleep(LIMIT * 2 / 3).await;
            aside.0.update(|bytes| bytes + 1);
        }
    };
    let ((end, after), ()) = tokio::join!(relayed, script);
    assert_eq!(end, End::Refused(Refusal::HalfClosed));
    assert!(after >= LIMIT * 13 / 3 && after <= LIMIT * 16 / 3, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_blocked_direction_does_not_stop_the_other() {
    let (mut application, mut near, mut peer, mut carrier) = between();
    let (_kill, mut killed) = oneshot::channel();
    let relayed = relay(&mut near, &mut carrier, LIMIT, &mut killed);
    let script = async {
        // The peer reads nothing, so this direction fills and blocks.
        let blocked = tokio::time::timeout(Duration::from_secs(1), application.write_all(&[1; 500_000])).await;
        assert!(blocked.is_err());
        peer.write_all(b"the other way").await.unwrap();
        let mut word = [0; 13];
        application.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"the other way");
    };
    tokio::select! {
        end = relayed => panic!("{end:?}"),
        () = script => {}
    }
}

#[tokio::test]
async fn a_kill_gives_its_reason_even_while_bytes_flow() {
    let (mut application, mut near) = duplex(1024);
    let (_peer, far) = duplex(1024);
    let (kill, mut killed) = oneshot::channel();
    application.write_all(b"bytes").await.unwrap();
    kill.send(Refusal::NotInTopology).unwrap();
    let (_, end) = relay(&mut near, &mut Streams::new(far, Wire::Tls), LIMIT, &mut killed).await;
    assert_eq!(end, End::Cut(Refusal::NotInTopology));
}

#[tokio::test]
async fn bytes_arrive_whole_whatever_the_sizes_of_the_streams_buffers() {
    for (left, right) in [(1, 7), (100_000, 3), (64 * 1024, 64 * 1024), (5, 1_000_000)] {
        let (mut application, mut near) = duplex(left);
        let (mut peer, far) = duplex(right);
        let (_kill, mut killed) = oneshot::channel();
        let sent: Vec<u8> = (0..200_000_u32).map(|index| (index % 251) as u8).collect();
        let copy = sent.clone();
        let script = async {
            let write = async {
                application.write_all(&copy).await.unwrap();
                application.shutdown().await.unwrap();
            };
            let mut all = vec![];
            tokio::join!(write, async { peer.read_to_end(&mut all).await.unwrap() });
            peer.shutdown().await.unwrap();
            all
        };
        let mut carrier = Streams::new(far, Wire::Plain);
        let relayed = relay(&mut near, &mut carrier, LIMIT, &mut killed);
        let ((moved, end), received) = tokio::join!(relayed, script);
        assert!(received == sent, "{left} {right}");
        assert_eq!((moved.sent, end), (200_000, End::Closed));
    }
}

/// An application and a peer, and what stands between them.
fn between() -> (DuplexStream, DuplexStream, DuplexStream, Streams<DuplexStream>) {
    let (application, near) = duplex(1024);
    let (peer, far) = duplex(1024);
    (application, near, peer, Streams::new(far, Wire::Plain))
}

/// Both ends of one connection; their handshake needs a runtime of its own.
fn ends() -> (Records, Records) {
    std::thread::spawn(both).join().unwrap()
}

#[tokio::test]
async fn bytes_pass_two_tunnels_whole_both_ways_whatever_the_sizes_of_the_streams_buffers() {
    pass_two_tunnels().await;
}

#[tokio::test]
async fn bytes_pass_whole_in_small_portions_too() {
    let (mut full, _deaf) = duplex(1);
    let (hog, mut waits) = (vec![0; PLENTY + 2], Kept::default());
    let sent = poll_fn(|cx| Poll::Ready(waits.poll_send(cx, &mut full, &[IoSlice::new(&hog)]))).await;
    assert!(sent.is_pending() && kept() > PLENTY);
    pass_two_tunnels().await;
    drop(waits);
    assert_eq!(kept(), 0);
}

#[tokio::test]
async fn of_all_slow_ends_together_no_more_is_kept_than_plenty_and_a_portion_each_and_all_of_it_arrives() {
    const ENDS: usize = 100;
    let mut ends = vec![];
    for _ in 0..ENDS {
        let (application, mut near) = duplex(64);
        let (mut peer, far) = duplex(1 << 20);
        peer.write_all(&[7; 300_000]).await.unwrap();
        peer.shutdown().await.unwrap();
        let relayed = tokio::spawn(async move {
            let (_kill, mut killed) = oneshot::channel();
            relay(&mut near, &mut Streams::new(far, Wire::Plain), LIMIT, &mut killed).await
        });
        ends.push((application, peer, relayed));
    }
    for _ in 0..ENDS {
        tokio::task::yield_now().await;
    }
    let all = PLENTY..=PLENTY + SCRATCH + ENDS * PORTION;
    assert!(all.contains(&kept()), "{} of {all:?}", kept());
    for (mut application, _peer, relayed) in ends {
        let mut came = vec![];
        application.shutdown().await.unwrap();
        application.read_to_end(&mut came).await.unwrap();
        assert_eq!((came.len(), relayed.await.unwrap().1), (300_000, End::Closed));
    }
    assert_eq!(kept(), 0);
}

async fn pass_two_tunnels() {
    let sent: Vec<u8> = (0..150_000_u32).map(|index| (index % 251) as u8).collect();
    for (left, wire, right) in [(1, 700, 3), (100_000, 3, 64 * 1024), (5, 1_000_000, 1_000_000), (300_000, 300_000, 2)]
    {
        let (mut application, mut near) = duplex(left);
        let (network, far) = duplex(wire);
        let (mut server, mut beyond) = duplex(right);
        let (ours, theirs) = ends();
        let mut calling = Tunnel::new(network, ours, Default::default());
        let mut called = Tunnel::new(far, theirs, Default::default());
        let (_kill, mut killed) = oneshot::channel();
        let (_kill_too, mut killed_too) = oneshot::channel();
        let script = async {
            let mut there = vec![];
            let say = async {
                application.write_all(&sent).await.unwrap();
                application.shutdown().await.unwrap();
            };
            tokio::join!(say, async { server.read_to_end(&mut there).await.unwrap() });
            assert!(there == sent, "{left} {wire} {right}");
            let mut back = vec![];
            let answer = async {
                server.write_all(&there).await.unwrap();
                server.shutdown().await.unwrap();
            };
            tokio::join!(answer, async { application.read_to_end(&mut back).await.unwrap() });
            assert!(back == sent, "{left} {wire} {right}");
        };
        let ((), (moved, end), (_, far_end)) = tokio::join!(
            script,
            relay(&mut near, &mut calling, LIMIT, &mut killed),
            relay(&mut beyond, &mut called, LIMIT, &mut killed_too)
        );
        assert_eq!((moved.sent, moved.received), (150_000, 150_000));
        assert_eq!((end, far_end), (End::Closed, End::Closed));
    }
}

#[tokio::test]
async fn a_tunnel_whose_wire_is_cut_is_truncated_and_not_at_its_end() {
    let (mut application, mut near) = duplex(1024);
    let (network, mut far) = duplex(1024);
    let (ours, _) = ends();
    let (_kill, mut killed) = oneshot::channel();
    let mut tunnel = Tunnel::new(network, ours, (b"the last flight, ".to_vec(), vec![]));
    application.write_all(b"data").await.unwrap();
    let script = async {
        let mut first = vec![0; 17];
        far.read_exact(&mut first).await.unwrap();
        assert_eq!(first, b"the last flight, ");
        drop(far);
    };
    let ((), (moved, end)) = tokio::join!(script, relay(&mut near, &mut tunnel, LIMIT, &mut killed));
    assert_eq!(moved.sent, 4);
    assert_eq!(end, End::Refused(Refusal::Truncated));
}

/// Two words and a goodbye; and where each record ends.
fn exchange(records: &mut Records) -> (Vec<u8>, [usize; 3]) {
    let mut wire = vec![];
    records.say(ContentType::ApplicationData, b"one, ", &mut wire).unwrap();
    let first = wire.len();
    records.say(ContentType::ApplicationData, b"two", &mut wire).unwrap();
    let second = wire.len();
    records.alert(AlertDescription::CloseNotify, &mut wire).unwrap();
    let third = wire.len();
    (wire, [first, second, third])
}

#[tokio::test]
async fn wherever_a_tunnel_is_cut_before_its_goodbye_it_is_truncated_and_what_came_is_a_beginning() {
    let (_, [first, second, whole]) = exchange(&mut ends().1);
    // At the edges of headers, contents and tags.
    let edges = [0, first, second].into_iter().flat_map(|start| [0, 1, 4, 5, 6, 12].map(|behind| start + behind));
    for cut in edges.chain([first - 1, second - 1, whole - 1, whole]) {
        let (mut application, mut near) = duplex(1024);
        let (network, mut far) = duplex(1024);
        let (ours, mut theirs) = ends();
        far.write_all(&exchange(&mut theirs).0[..cut]).await.unwrap();
        far.shutdown().await.unwrap();
        application.shutdown().await.unwrap();
        let (_kill, mut killed) = oneshot::channel();
        let (_, end) = relay(&mut near, &mut Tunnel::new(network, ours, Default::default()), LIMIT, &mut killed).await;
        drop(near);
        let mut came = vec![];
        application.read_to_end(&mut came).await.unwrap();
        assert!(b"one, two".starts_with(&came), "{cut} of {whole}: {came:?}");
        let expected = if cut == whole { End::Closed } else { End::Refused(Refusal::Truncated) };
        assert_eq!(end, expected, "{cut} of {whole}");
        assert!(cut < whole || came.len() == 8, "a goodbye comes behind everything");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_keys_again_and_again_and_does_not_listen_is_owed_one_answer() {
    let (ours, mut peer) = std::thread::spawn(|| fuzz::ends(fuzz::Choice::new(0))).join().unwrap();
    let (mut application, mut near) = duplex(100_000);
    // It takes a part of what would be said to it.
    let (network, mut far) = duplex(10);
    let mut tunnel = Tunnel::new(network, ours, Default::default());
    let (_kill, mut killed) = oneshot::channel();
    let relayed = relay(&mut near, &mut tunnel, LIMIT, &mut killed);
    let script = async {
        for _ in 0..100 {
            far.write_all(&peer.ask()).await.unwrap();
            far.write_all(&peer.say(23, b"data")).await.unwrap();
        }
        application.read_exact(&mut [0; 400]).await.unwrap();
        let mut heard = vec![];
        let hear = async {
            loop {
                far.read_buf(&mut heard).await.unwrap();
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(1), hear).await.is_err());
        let answers = peer.hear(&mut heard);
        assert_eq!(answers, [(22, vec![24, 0, 0, 1, 0])]);
    };
    tokio::select! {
        end = relayed => panic!("{end:?}"),
        () = script => {}
    }
}
