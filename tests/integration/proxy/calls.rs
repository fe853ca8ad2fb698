//! What is declared works, with every habit of TCP software.

use entente::brief::{Allow, EgressNetwork, Mode};
use rustls::{ClientConfig, RootCertStore};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::harness::{Plan, Seen, Sidecar, address, control, echo, read_out};
use crate::support::{
    applications::{Application, Behaviour, GREETING},
    domain::Domain,
    soon, wire,
};

/// A server and a client that may call it.
async fn pair(behaviour: Behaviour) -> (Application, Sidecar, Sidecar) {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, behaviour).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls);
    (application, server, client.start().await)
}

#[tokio::test]
async fn a_declared_call_works_and_is_counted_on_both_sides() {
    let (application, server, client) = pair(Behaviour::Echo).await;
    let mut stream = client.open(0).await;
    echo(&mut stream, b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_out(&mut stream).await, (vec![], Seen::End));
    assert_eq!(application.accepted(), 1);
    for (sidecar, direction) in [(&server, "inbound"), (&client, "outbound")] {
        let series = format!("entente_connections_total{{direction=\"{direction}\",mode=\"MutualTLS\"}}");
        assert_eq!(sidecar.metric(&series).await, 1.0);
        assert!(sidecar.reasons().await.is_empty());
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_before_the_client_says_a_word() {
    let (_application, _server, client) = pair(Behaviour::Greets).await;
    let mut stream = client.open(0).await;
    let mut greeting = vec![0; GREETING.len()];
    soon("greeting", stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(greeting, GREETING);
}

#[tokio::test]
async fn a_client_may_close_its_direction_and_still_read_the_answer() {
    let (_application, _server, client) = pair(Behaviour::Counts).await;
    let mut stream = client.open(0).await;
    soon("upload", stream.write_all(&vec![7; 3_000_000])).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_out(&mut stream).await, (b"3000000".to_vec(), Seen::End));
}

#[tokio::test]
async fn a_server_may_close_its_direction_and_still_be_written_to() {
    let (_application, server, client) = pair(Behaviour::ClosesFirst).await;
    let mut stream = client.open(0).await;
    assert_eq!(read_out(&mut stream).await, (vec![], Seen::End));
    soon("write on", stream.write_all(&vec![7; 500_000])).await.unwrap();
    stream.shutdown().await.unwrap();
    crate::support::eventually("all bytes arrived", || async {
        let received = server.metric("entente_bytes_total{direction=\"inbound\",flow=\"received\"}").await;
        (received == 500_000.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn ten_megabytes_there_and_back_arrive_unchanged() {
    let (_application, _server, client) = pair(Behaviour::Echo).await;
    let (mut read, mut write) = client.open(0).await.into_split();
    let pattern: Vec<u8> = (0..10_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sent = pattern.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = vec![];
    soon("all back", read.read_to_end(&mut back)).await.unwrap();
    writer.await.unwrap();
    assert!(back == pattern, "what came back differs");
}

#[tokio::test]
async fn a_reset_by_the_application_is_a_reset_at_the_far_end() {
    let (_application, _server, client) = pair(Behaviour::Greets).await;
    let mut stream = client.open(0).await;
    echo_greeting(&mut stream).await;
    // The far application resets when it is written to after it vanished; here the near one vanishes.
    stream.set_zero_linger().unwrap();
    drop(stream);
    crate::support::eventually("both ends closed", || async {
        let open = client.metric("entente_open_connections{direction=\"outbound\"}").await
            + _server.metric("entente_open_connections{direction=\"inbound\"}").await;
        (open == 0.0).then_some(())
    })
    .await;
    assert_eq!(_server.reasons().await.get("Truncated"), Some(&1), "the far proxy saw no orderly end");
}

async fn echo_greeting(stream: &mut TcpStream) {
    let mut greeting = vec![0; GREETING.len()];
    soon("greeting", stream.read_exact(&mut greeting)).await.unwrap();
}

#[tokio::test]
async fn server_tls_serves_any_client_that_checks_the_name_and_a_wrong_name_fails_at_the_client() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::ServerTls, application.address).start().await;
    let good = wire::connect(server.inbound[0], checking(&control.domain), "server.sip.contoso.example").await;
    assert!(wire::is_served(good).await);
    let wrong = wire::connect(server.inbound[0], checking(&control.domain), "other.sip.contoso.example").await;
    assert!(wrong.unwrap_err().to_string().contains("not valid for name"));
    let stranger = wire::connect(server.inbound[0], checking(&Domain::new()), "server.sip.contoso.example").await;
    assert!(stranger.is_err());
    assert_eq!(application.accepted(), 1);

    // A caller with a sidecar of its own is passed through unchanged.
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::ServerTls).start().await;
    let passed = wire::connect(client.outbound[0], checking(&control.domain), "server.sip.contoso.example").await;
    assert!(wire::is_served(passed).await);
}

/// What curl does with the bundle.
fn checking(domain: &Domain) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(entente::pki::certificate(&domain.material.root_certificate).unwrap()).unwrap();
    ClientConfig::builder_with_provider(wire::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[tokio::test]
async fn standard_mutual_tls_software_without_our_alpn_may_call_and_be_called() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let certificate = control.domain.certificate("client");
    let config = wire::client(Some(certificate));
    assert!(wire::is_served(wire::connect(server.inbound[0], config, "server.sip.contoso.example").await).await);
}

#[tokio::test]
async fn plaintext_ports_and_allowed_egress_are_passed_through_unchanged() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::Plaintext, application.address).start().await;
    let outside = Application::start(address(), Behaviour::Greets).await;
    let cidr = format!("{}/32", outside.address.ip()).parse().unwrap();
    let client = Plan::new(&control, "client", address())
        .calls(server.inbound[0], &control.domain.id("server"), Mode::Plaintext)
        .calls_undeclared(outside.address)
        .egress(EgressNetwork { cidr, ports: vec![outside.address.port()] })
        .start()
        .await;
    echo(&mut client.open(0).await, b"plain").await.unwrap();
    echo_greeting(&mut client.open(1).await).await;
}

#[tokio::test]
async fn a_caller_reaches_the_declared_port_under_both_of_its_numbers() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip)
        .port_for(Mode::MutualTls, application.address, Allow::all_declared())
        .arriving_for(application.address)
        .start()
        .await;
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address())
        .calls(server.inbound[0], &id, Mode::MutualTls)
        .calls(server.inbound[1], &id, Mode::MutualTls)
        .start()
        .await;
    echo(&mut client.open(0).await, b"port").await.unwrap();
    echo(&mut client.open(1).await, b"target port").await.unwrap();
}
