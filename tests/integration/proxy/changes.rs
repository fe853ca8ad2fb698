//! A new generation: ends exactly what it no longer admits, keeps everything else.

use std::net::SocketAddr;

use entente::{
    brief::{Allow, Mode, Standing},
    identity::DnsName,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::harness::{Plan, Seen, address, control, echo, read_out};
use crate::support::{
    applications::{Application, Behaviour},
    eventually, soon, wire,
};

#[tokio::test]
async fn a_removed_edge_cuts_its_live_connection_and_no_other_before_it_is_acknowledged() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let both = vec![control.domain.id("one"), control.domain.id("two")];
    let allow = Allow::servers(both);
    let server = Plan::new(&control, "server", ip).port_for(Mode::MutualTls, application.address, allow).start().await;
    let id = control.domain.id("server");
    let calls = |name| Plan::new(&control, name, address()).calls(server.inbound[0], &id, Mode::MutualTls);
    let (one, two) = (calls("one").start().await, calls("two").start().await);
    let (mut first, mut second) = (one.open(0).await, two.open(0).await);
    echo(&mut first, b"one").await.unwrap();
    echo(&mut second, b"two").await.unwrap();

    let left = control.domain.id("two");
    control.change_brief(&server.home.uid, |brief| brief.ports[0].allow = Allow::servers([left]));
    server.acknowledges().await;
    assert_eq!(read_out(&mut first).await.1, Seen::Reset);
    server.refused("inbound", "NotInTopology", 1).await;
    echo(&mut second, b"still here").await.unwrap();
    assert_eq!(server.metric("entente_cut_total").await, 1.0);
    assert_eq!(read_out(&mut one.open(0).await).await.1, Seen::Reset, "a new one is refused as well");
    echo(&mut two.open(0).await, b"a new one").await.unwrap();
}

#[tokio::test]
async fn an_added_edge_admits_without_touching_what_is_open() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let allow = Allow::servers([control.domain.id("one")]);
    let server = Plan::new(&control, "server", ip).port_for(Mode::MutualTls, application.address, allow).start().await;
    let id = control.domain.id("server");
    let calls = |name| Plan::new(&control, name, address()).calls(server.inbound[0], &id, Mode::MutualTls);
    let (one, two) = (calls("one").start().await, calls("two").start().await);
    let mut open = one.open(0).await;
    echo(&mut open, b"one").await.unwrap();
    assert_eq!(read_out(&mut two.open(0).await).await.1, Seen::Reset);

    let added = control.domain.id("two");
    control
        .change_brief(&server.home.uid, |brief| brief.ports[0].allow.servers.extend(Allow::servers([added]).servers));
    server.acknowledges().await;
    echo(&mut two.open(0).await, b"two").await.unwrap();
    echo(&mut open, b"still one").await.unwrap();
}

#[tokio::test]
async fn a_withdrawn_server_loses_everything_that_is_open() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();
    control.change_brief(&server.home.uid, |brief| brief.standing = Standing::Withdrawn);
    server.acknowledges().await;
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    server.refused("inbound", "NotReady", 1).await;
    assert_eq!(read_out(&mut client.open(0).await).await.1, Seen::Reset);
}

#[tokio::test]
async fn a_withdrawn_server_calls_nobody() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;
    control.change_brief(&client.home.uid, |brief| brief.standing = Standing::Withdrawn);
    client.acknowledges().await;
    assert_eq!(read_out(&mut client.open(0).await).await.1, Seen::Reset);
    client.refused("outbound", "NotReady", 1).await;
    assert_eq!(application.accepted(), 0);
}

#[tokio::test]
async fn a_handshake_that_began_under_the_old_brief_is_judged_by_the_new_one() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let allow = Allow::servers([control.domain.id("client")]);
    let server = Plan::new(&control, "server", ip).port_for(Mode::MutualTls, application.address, allow).start().await;
    let (gate, open_gate) = gated(server.inbound[0]).await;
    let config = wire::client(Some(control.domain.certificate("client")));
    let calling =
        tokio::spawn(
            async move { wire::is_served(wire::connect(gate, config, "server.sip.contoso.example").await).await },
        );
    // The server has answered the ClientHello; the client's certificate waits at the gate.
    let open_gate = soon("handshake under way", open_gate).await.unwrap();
    control.change_brief(&server.home.uid, |brief| brief.ports[0].allow.servers.clear());
    server.acknowledges().await;
    open_gate.send(()).unwrap();
    assert!(!soon("call", calling).await.unwrap());
    server.refused("inbound", "NotInTopology", 1).await;
    assert_eq!(application.accepted(), 0);
}

/// A forwarder that passes the caller's first flight and the answer, then holds the second until it is told.
async fn gated(to: SocketAddr) -> (SocketAddr, oneshot::Receiver<oneshot::Sender<()>>) {
    let listener = TcpListener::bind((address(), 0)).await.unwrap();
    let there = listener.local_addr().unwrap();
    let (at_the_gate, waiting) = oneshot::channel();
    tokio::spawn(async move {
        let (caller, _) = listener.accept().await.unwrap();
        let callee = TcpStream::connect(to).await.unwrap();
        let ((mut from, mut back), (mut answers, mut into)) = (caller.into_split(), callee.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
        let mut flight = vec![0; 16 * 1024];
        for number in 0.. {
            let length = from.read(&mut flight).await.unwrap_or(0);
            if length == 0 {
                return;
            }
            if number == 1 {
                let (open, opened) = oneshot::channel();
                at_the_gate.send(open).unwrap();
                opened.await.unwrap();
                into.write_all(&flight[..length]).await.unwrap();
                let _ = tokio::io::copy(&mut from, &mut into).await;
                return;
            }
            into.write_all(&flight[..length]).await.unwrap();
        }
    });
    (there, waiting)
}

#[tokio::test]
async fn a_moved_address_ends_the_connection_to_the_server_that_was_there() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();
    control.route(&client.home.uid, server.inbound[0], &control.domain.id("other"), Mode::MutualTls);
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    client.refused("outbound", "WrongServer", 1).await;
}

#[tokio::test]
async fn an_address_that_left_the_table_keeps_its_open_connections() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();
    control.change(|world| {
        let pod = world.pods.get_mut(&client.home.uid).unwrap();
        pod.routes.clear();
        pod.routes_version += 1;
    });
    eventually("new ones refused", || async { echo(&mut client.open(0).await, b"new").await.err() }).await;
    echo(&mut open, b"pods end gracefully").await.unwrap();
}

#[tokio::test]
async fn a_new_certificate_comes_in_force_without_dropping_a_connection() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();

    let added = DnsName::parse("fe.contoso.example").unwrap();
    control.change_brief(&server.home.uid, |brief| brief.names.push(added));
    eventually("new name on the wire", || async {
        let config = wire::client(Some(control.domain.certificate("client")));
        let stream = wire::connect(server.inbound[0], config, "fe.contoso.example").await;
        wire::is_served(stream).await.then_some(())
    })
    .await;
    assert_eq!(control.look(|world| world.pods[&server.home.uid].certificates), 2, "one renewal, not many");
    echo(&mut open, b"after").await.unwrap();
    echo(&mut client.open(0).await, b"a new one").await.unwrap();
}

#[tokio::test]
async fn a_bad_brief_changes_nothing_and_the_next_good_one_does() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    server.acknowledges().await;
    let good = control.look(|world| world.pods[&server.home.uid].brief.clone().unwrap());
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;

    let spoils: [fn(&mut entente::brief::Brief); 4] = [
        |brief| brief.ports.push(brief.ports[0].clone()),
        |brief| brief.version += 1,
        |brief| brief.scopes.clear(),
        |brief| brief.cursor.revision = 0,
    ];
    for spoil in spoils {
        let rejected = server.metric("entente_briefs_rejected_total").await;
        control.change_brief(&server.home.uid, spoil);
        eventually("rejected", || async {
            (server.metric("entente_briefs_rejected_total").await > rejected).then_some(())
        })
        .await;
        let acknowledged = control.look(|world| world.pods[&server.home.uid].acknowledged.clone());
        assert_eq!(acknowledged.as_ref(), Some(&good.cursor), "the last good one is in force");
        echo(&mut client.open(0).await, b"works on").await.unwrap();
        control.change(|world| {
            let pod = world.pods.get_mut(&server.home.uid).unwrap();
            let revision = pod.brief.as_ref().unwrap().cursor.revision;
            pod.brief = Some(good.clone());
            pod.brief.as_mut().unwrap().cursor.revision = good.cursor.revision.max(revision);
        });
    }
    control.change_brief(&server.home.uid, |brief| brief.drain_seconds = 7);
    server.acknowledges().await;
}
