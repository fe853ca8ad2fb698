//! A sidecar at its bounds: handshakes that stall, descriptors, memory. New ones are shed, old ones go on, and it comes
//! back by itself. Time is only ever compared with time of the same minute.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use entente::brief::Mode;

use super::{
    pods::{Hub, Memory, Playing, Pod, in_own_network},
    roles::{Act, Calls, Crowd, Fared, Stall, Talk},
    support::{eventually, soon},
};

const SECRET: &str = "THE-SECRET-OF-CONTOSO";
/// Where both ends must be known, and where anybody may call.
const PORTS: [(u16, Mode); 2] = [(5432, Mode::MutualTls), (8080, Mode::Plaintext)];

/// Handshakes that stall, and from how many addresses.
const STALLED: (usize, u32) = (10_000, 200);
/// What they may cost, in KiB.
const GROWTH: u64 = 32 * 1024;
/// Comparisons until one is as it should be: the machine is not ours alone.
const ATTEMPTS: usize = 3;
/// Calls in one comparison, each with a handshake.
const CALLS: usize = 200;
/// How long it may take to be back, beside what so many calls take as the machine is.
const RECOVERY: (Duration, u32) = (Duration::from_secs(1), 20);
/// The time that a full record of a first message takes (RFC 8446 §5.1), but for its last byte.
const FAT: usize = 16 * 1024;

/// How the client knows the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    /// Whose pod it is: all connections of a thread share one.
    OfPod,
    /// As a Service's: each has its own, and a handshake.
    OfService,
}

/// A server that is called by a client, each with a sidecar, and an application that echoes.
struct Edge<'a> {
    hub: &'a Hub,
    server: Pod<'a>,
    client: Pod<'a>,
    _application: Playing,
}

impl<'a> Edge<'a> {
    async fn new(hub: &'a Hub, address: Address, prepare: impl Fn(&mut Pod<'_>)) -> Self {
        let mut server = hub.pod(3, "server", &PORTS, "").await;
        let mut client = hub.pod(2, "client", &[], "").await;
        for pod in [&mut server, &mut client] {
            pod.end_sidecar().await;
            prepare(pod);
            pod.start_sidecar().await;
        }
        match address {
            Address::OfPod => client.knows(&server, "server", 5432, Mode::MutualTls),
            Address::OfService => client.finds(&server, "server", 5432, Mode::MutualTls),
        }
        let application = server.start(Act::Echo(PORTS.map(|(port, _)| server.v4(port)).to_vec())).await;
        let edge = Self { hub, server, client, _application: application };
        eventually("a call", || async { (edge.call().await == Fared::Answered).then_some(()) }).await;
        edge
    }

    fn act(&self) -> Act {
        Act::Call(self.server.v4(5432), SECRET.to_owned())
    }

    async fn call(&self) -> Fared {
        self.client.act(self.act()).await
    }

    async fn calls(&self, count: usize) -> Calls {
        let mut playing = self.client.start(Act::Calls(self.server.v4(5432), SECRET.to_owned(), count)).await;
        soon("the callers' end", playing.child.wait()).await.unwrap();
        playing.told()
    }

    async fn hold(&self) -> Playing {
        self.client.start(Act::Hold(self.server.v4(5432), SECRET.to_owned())).await
    }

    async fn talk(&self, count: usize, deaf: usize, stay: bool) -> Playing {
        let (to, text) = (self.server.v4(5432), SECRET.to_owned());
        self.client.start(Act::Talk(Talk { to, text, count, deaf, stay })).await
    }

    /// What anybody may call.
    async fn stranger(&self) -> Fared {
        self.hub.act(Act::Call(self.server.v4(8080), SECRET.to_owned())).await
    }

    /// It is back now, within a second of when it was `begun`.
    async fn came_back_in_time(&self, begun: Instant) {
        let back = begun.elapsed();
        assert_eq!(self.stranger().await, Fared::Answered);
        let ordinary = begun.elapsed() - back;
        println!("a call after {back:?}, another in {ordinary:?}");
        assert!(back <= RECOVERY.0 + ordinary * RECOVERY.1, "{back:?}");
    }

    /// Refusals with `reason` that the server's sidecar has counted.
    async fn refusals(&self, reason: &str) -> f64 {
        eventually("metrics", || self.server.refusals("inbound", reason)).await
    }
}

async fn ends(mut playing: Playing) {
    playing.child.kill().await.unwrap();
}

/// Waits until all of a crowd have dialled, for as long as it goes on.
async fn dialled(crowd: &Playing, count: usize) -> Crowd {
    let mut now = crowd.told::<Crowd>();
    while now.dialled < count {
        let before = now.dialled;
        now =
            eventually("more dials", || async { Some(crowd.told()).filter(|now: &Crowd| now.dialled > before) }).await;
    }
    now
}

/// Begins to stall: a third says nothing, a third the beginning of a record, a third nearly all of a long one.
async fn stall(edge: &Edge<'_>) -> Playing {
    let begun = vec![0x16, 3, 1, 2, 0, 1];
    let mut fat = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
    fat.resize(FAT, 3);
    let (count, sources) = STALLED;
    let words = vec![vec![], begun, fat];
    let stall = Stall { to: edge.server.v4(5432), first: [10, 78, 0, 1].into(), sources, count, words };
    edge.hub.start(Act::Stall(stall)).await
}

#[test]
fn ten_thousand_stalled_handshakes_cost_little_memory_and_nobody_a_call() {
    in_own_network("limits::ten_thousand_stalled_handshakes_cost_little_memory_and_nobody_a_call", |hub| async move {
        hub.has_many_addresses().await;
        let edge = Edge::new(&hub, Address::OfService, |_| ()).await;
        let mut held = edge.hold().await;
        let before = edge.server.resident("VmRSS");
        let mut ratios = vec![];
        while ratios.len() < ATTEMPTS {
            let mut quiet = edge.calls(CALLS).await;
            let crowd = stall(&edge).await;
            // In the middle of the flood too.
            let flooded = edge.calls(CALLS / 10).await;
            assert!(flooded.failed.is_empty(), "{:?}", flooded.failed);
            dialled(&crowd, STALLED.0).await;
            let stalled = edge.calls(CALLS).await;
            assert!(stalled.failed.is_empty(), "{:?}", stalled.failed);
            let after = crowd.told::<Crowd>();
            println!(
                "{after:?}: {} of them wait, in {} KiB more",
                after.dialled - after.lost,
                edge.server.resident("VmRSS") - before
            );
            ends(crowd).await;
            eventually("quiet", || async { (edge.server.held() < 100).then_some(()) }).await;
            quiet.add(edge.calls(CALLS).await);
            let all = [50, 90, 99].map(|percent| (quiet.at(percent), stalled.at(percent)));
            let ratio = all.map(|(quiet, stalled)| stalled / quiet);
            println!("calls without and with, µs, p50, p90, p99: {all:?}; ratios {ratio:.2?}");
            let slower = ratio.into_iter().fold(0.0, f64::max);
            ratios.push(slower);
            if slower <= 2.0 {
                break;
            }
        }
        let growth = edge.server.resident("VmHWM") - before;
        println!("{growth} KiB more at most, of {before}; refused: {}", edge.refusals("Limit").await);
        assert!(growth <= GROWTH, "{growth} KiB");
        assert!(ratios.iter().any(|slower| *slower <= 2.0), "{ratios:.2?}");
        // All but those for whom there is room.
        assert!(edge.refusals("Limit").await >= (STALLED.0 - 1024 - 64) as f64);
        assert!(held.child.try_wait().unwrap().is_none(), "who was there goes on");
    });
}

/// The time for which a sidecar is watched at its bound.
const WATCHED: Duration = Duration::from_secs(1);
/// Processor time that it may use meanwhile, in hundredths of a second: one that spins uses all there is.
const BUSY: u64 = 20;

/// What the sidecar uses of the processor while nobody but the kernel wants anything of it.
async fn watched(pod: &Pod<'_>) -> u64 {
    let (begun, before) = (Instant::now(), pod.ticks());
    eventually("a second", || async { (begun.elapsed() >= WATCHED).then_some(()) }).await;
    pod.ticks() - before
}

/// Silent connections until the server has no place for another, of `most`.
async fn fill(edge: &Edge<'_>, most: usize) -> Vec<Playing> {
    let mut crowd = vec![];
    while edge.refusals("Limit").await == 0.0 {
        assert!(crowd.len() < most, "not full");
        crowd.push(edge.hub.start(Act::Idle(edge.server.v4(8080), 16)).await);
    }
    crowd
}

#[test]
fn without_descriptors_a_proxy_sheds_the_new_cuts_the_revoked_rests_and_comes_back() {
    let name = "limits::without_descriptors_a_proxy_sheds_the_new_cuts_the_revoked_rests_and_comes_back";
    in_own_network(name, |hub| async move {
        // 64 are kept back, a connection takes two: 96 connections; more come.
        let edge = Edge::new(&hub, Address::OfPod, |pod| pod.descriptors = 256).await;
        let mut held = edge.hold().await;
        let crowd = fill(&edge, 96).await;
        assert_eq!(edge.stranger().await, Fared::Reset);
        assert_eq!(edge.call().await, Fared::Reset);
        assert!(edge.refusals("Limit").await >= 2.0);
        assert!(edge.server.fetch("/ready").await.unwrap().contains(" 200 "), "health has its own descriptors");
        let ticks = watched(&edge.server).await;
        println!("{ticks} ticks at the bound; {} descriptors held", edge.server.held());
        assert!(ticks <= BUSY, "{ticks} ticks");

        // What takes a certificate back needs no descriptor that others could have taken.
        hub.control.revoke(&edge.server.name, &hub.control.serial(&edge.client.name));
        soon("the cut", held.child.wait()).await.unwrap();
        assert_eq!(held.told::<Fared>(), Fared::Reset);
        edge.server.refused("inbound", "Revoked").await;
        for playing in crowd {
            ends(playing).await;
        }
        let begun = Instant::now();
        eventually("room again", || async { (edge.stranger().await == Fared::Answered).then_some(()) }).await;
        edge.came_back_in_time(begun).await;
    });
}

#[test]
fn a_proxy_that_can_accept_nothing_rests_cuts_the_revoked_and_serves_who_waited_when_it_can() {
    let name = "limits::a_proxy_that_can_accept_nothing_rests_cuts_the_revoked_and_serves_who_waited_when_it_can";
    in_own_network(name, |hub| async move {
        let edge = Edge::new(&hub, Address::OfPod, |_| ()).await;
        let mut held = edge.hold().await;
        // Below what it holds already: each accept fails, also the health server's.
        edge.server.limit_descriptors(edge.server.held() - 5).await;
        let waits = hub.start(Act::Idle(edge.server.v4(8080), 20)).await;
        let before = edge.server.log().matches("cannot accept").count();
        let ticks = watched(&edge.server).await;
        let tries = edge.server.log().matches("cannot accept").count() - before;
        println!("{ticks} ticks and {tries} failed accepts");
        assert!(ticks <= BUSY, "{ticks} ticks");
        assert!((1..=40).contains(&tries), "{tries} failed accepts");

        hub.control.revoke(&edge.server.name, &hub.control.serial(&edge.client.name));
        soon("the cut", held.child.wait()).await.unwrap();
        assert_eq!(held.told::<Fared>(), Fared::Reset);

        edge.server.limit_descriptors(edge.server.descriptors).await;
        let begun = Instant::now();
        assert_eq!(edge.stranger().await, Fared::Answered);
        edge.came_back_in_time(begun).await;
        ends(waits).await;
    });
}

/// Memory of a sidecar, connections that it must be able to hold in it, and those of them that do not read.
const MEMORY: u64 = 64 << 20;
const HELD: usize = 2_000;
const DEAF: usize = 1_000;
/// Connections that come on top.
const FLOOD: usize = 400;
/// What the kernel may keep of a connection at each end (tcp(7), `tcp_rmem` and `tcp_wmem`): where it has nothing left for
/// anybody's, as a thousand who do not read can bring about, all stand still.
const BUFFERS: [(&str, &str); 2] = [("tcp_rmem", "4096 131072 262144"), ("tcp_wmem", "4096 16384 262144")];

#[test]
fn in_64_mebibytes_a_proxy_keeps_two_thousand_connections_and_sheds_what_is_too_much() {
    let name = "limits::in_64_mebibytes_a_proxy_keeps_two_thousand_connections_and_sheds_what_is_too_much";
    in_own_network(name, |hub| async move { in_little_memory(&hub, Address::OfPod).await });
}

#[test]
fn in_64_mebibytes_a_proxy_keeps_two_thousand_connections_that_do_not_share_one() {
    let name = "limits::in_64_mebibytes_a_proxy_keeps_two_thousand_connections_that_do_not_share_one";
    in_own_network(name, |hub| async move { in_little_memory(&hub, Address::OfService).await });
}

async fn in_little_memory(hub: &Hub, address: Address) {
    let mut edge = Edge::new(hub, address, |pod| {
        pod.descriptors = 16_384;
        pod.memory = Some(Memory::bound(&pod.name, MEMORY));
        for (setting, sizes) in BUFFERS {
            let set = format!("echo {sizes} > /proc/sys/net/ipv4/{setting}");
            let status = Command::new("ip").args(["netns", "exec", &pod.name, "sh", "-c", &set]).status();
            assert!(status.unwrap().success(), "{setting}");
        }
    })
    .await;
    let old = edge.talk(HELD, DEAF, true).await;
    let crowd = dialled(&old, HELD).await;
    tell(&edge, "held", crowd);
    assert!(edge.server.lives());
    let flood = edge.talk(FLOOD, 0, true).await;
    let crowd = dialled(&flood, FLOOD).await;
    tell(&edge, "flooded", crowd);
    assert!(edge.server.lives() && edge.client.lives(), "nobody was killed");
    assert!(crowd.refused > 0, "{crowd:?}");
    let rounds = old.told::<Crowd>().rounds;
    eventually("another word from each", || async { (old.told::<Crowd>().rounds >= rounds + 2).then_some(()) }).await;
    tell(&edge, "after", old.told());
    assert_eq!(old.told::<Crowd>().lost, 0);
    ends(flood).await;
    eventually("room again", || async { (edge.call().await == Fared::Answered).then_some(()) }).await;
}

fn tell(edge: &Edge<'_>, when: &str, crowd: Crowd) {
    println!("{when}: {crowd:?}");
    for pod in [&edge.server, &edge.client] {
        let memory = pod.memory.as_ref().unwrap();
        let figures = ["memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.kmem.usage_in_bytes"];
        let figures = figures.map(|file| memory.figure(file).parse::<u64>().unwrap_or_default() / 1024);
        println!(
            "  {}: {figures:?} KiB used, at most, by the kernel; {} KiB resident",
            pod.name,
            pod.resident("VmRSS")
        );
    }
}
