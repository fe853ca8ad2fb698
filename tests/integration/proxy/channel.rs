//! The control channel: issuance, acknowledgement, outages.

use std::{net::SocketAddr, sync::Arc};

use entente::brief::Mode;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Plan, Seen, Sidecar, address, control, echo, read_out};
use crate::support::{
    applications::{Application, Behaviour},
    control::Server,
    eventually, soon, wire,
};

#[tokio::test]
async fn a_denied_token_is_tried_again_until_it_is_accepted() {
    let control = control().await;
    control.change(|world| world.denied = Some(("/", 401, "TokenInvalid")));
    let sidecar = Plan::new(&control, "server", address()).launch();
    eventually("two denials", || async { control.look(|world| (world.denials >= 2).then_some(())) }).await;
    assert_eq!(sidecar.fetch("/ready").await, (503, "NotReady [noIdentity]\n".to_owned()));
    control.change(|world| world.denied = None);
    sidecar.ready().await;
    assert_eq!(control.look(|world| world.pods[&sidecar.home.uid].certificates), 1);
}

#[tokio::test]
async fn a_certificate_of_another_pod_is_not_used() {
    let control = control().await;
    let sidecar = Plan::new(&control, "server", address()).launch();
    // The token now belongs to another pod: the certificate names that one.
    control.change(|world| {
        let pod = world.pods.remove(&sidecar.home.uid).unwrap();
        world.pods.insert("another".to_owned(), pod);
    });
    eventually("asked", || async { control.look(|world| (world.pods["another"].certificates >= 2).then_some(())) })
        .await;
    assert_eq!(sidecar.fetch("/ready").await.0, 503);
}

#[tokio::test]
async fn a_control_plane_of_another_authority_is_not_spoken_to() {
    let (control, other) = (control().await, control().await);
    let sidecar = Plan::new(&control, "server", address()).start().await;
    let home = sidecar.kill().await;
    let mut config = home.config();
    config.control.authority.clone_from(&other.authority);
    std::fs::remove_file(home.state.path().join("identity.pem")).unwrap();
    let before = control.look(|world| world.pods[&home.uid].certificates);
    let bound = entente::proxy::bind(config).unwrap();
    let health = bound.health()[0];
    let task = tokio::spawn(bound.run(std::future::pending()));
    let mut stream = tokio::net::TcpStream::connect(health).await.unwrap();
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("NotReady [noIdentity]"), "{answer}");
    assert_eq!(control.look(|world| world.pods[&home.uid].certificates), before);
    task.abort();
}

#[tokio::test]
async fn new_connections_between_running_pods_need_no_control_plane() {
    let control = control().await;
    let (server, client) = pair(&control).await;
    control.change(|world| world.denied = Some(("/", 503, "Down")));
    eventually("channel refused", || async { control.look(|world| (world.denials > 0).then_some(())) }).await;
    echo(&mut client.open(0).await, b"without it").await.unwrap();
    control.change(|world| world.denied = None);
    control.change_brief(&server.home.uid, |brief| brief.drain_seconds = 3);
    server.acknowledges().await;
    assert_eq!(control.look(|world| world.pods[&server.home.uid].certificates), 1, "nothing was issued anew");
}

async fn pair(control: &Arc<Server>) -> (Sidecar, Sidecar) {
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let client = Plan::new(control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;
    (server, client)
}

#[tokio::test]
async fn a_rejected_certificate_brings_a_new_one() {
    let control = control().await;
    let (server, client) = pair(&control).await;
    control.change(|world| world.denied = Some(("/v1/sync", 403, "SerialUnknown")));
    eventually("new certificate", || async {
        control.look(|world| (world.pods[&server.home.uid].certificates > 1).then_some(()))
    })
    .await;
    control.change(|world| world.denied = None);
    control.change_brief(&server.home.uid, |brief| brief.drain_seconds = 3);
    server.acknowledges().await;
    server.ready().await;
    echo(&mut client.open(0).await, b"goes on").await.unwrap();
}

#[tokio::test]
async fn unknown_addresses_are_asked_for_where_routes_are_on_demand() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let nobody = SocketAddr::new(address(), 80);
    let client = Plan::new(&control, "client", address())
        .calls(server.inbound[0], &control.domain.id("server"), Mode::MutualTls)
        .calls_undeclared(nobody);
    let client = client.launch();
    control.change(|world| {
        let pod = world.pods.get_mut(&client.home.uid).unwrap();
        pod.on_demand = true;
        pod.routes_version += 1;
    });
    client.ready().await;
    echo(&mut client.open(0).await, b"found").await.unwrap();
    assert_eq!(read_out(&mut client.open(1).await).await.1, Seen::Reset);
    client.refused("outbound", "DestinationNotDeclared", 1).await;
    let asked = control.look(|world| world.pods[&client.home.uid].asked.clone());
    assert!(asked.contains(&nobody.ip()), "{asked:?}");
}

/// Counts the tickets that a server sends.
#[derive(Debug, Default)]
struct Tickets(std::sync::atomic::AtomicUsize);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: rustls::NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

#[tokio::test]
async fn no_port_sends_a_session_ticket_and_all_speak_tls_1_3() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let other = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip)
        .port(Mode::MutualTls, application.address)
        .port(Mode::ServerTls, other.address)
        .start()
        .await;
    for listener in &server.inbound {
        let tickets = Arc::new(Tickets::default());
        let mut config = wire::client(Some(control.domain.certificate("client")));
        config.resumption = Resumption::store(tickets.clone());
        let mut stream = wire::connect(*listener, config, "server.sip.contoso.example").await.unwrap();
        let version = stream.get_ref().1.protocol_version();
        assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_3));
        stream.write_all(b"hello").await.unwrap();
        soon("echo", stream.read_exact(&mut [0; 5])).await.unwrap();
        stream.shutdown().await.unwrap();
        soon("end", stream.read_to_end(&mut vec![])).await.unwrap();
        assert_eq!(tickets.0.load(std::sync::atomic::Ordering::SeqCst), 0);
    }
}
