//! Probes and hooks: exactly the declared request reaches the application, and nothing else does.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use entente::sidecar::{Probe, ProbeAction, Probes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::harness::{Plan, Sidecar, address, control};
use crate::support::{
    applications::{Application, Behaviour},
    eventually,
};

fn probe(action: ProbeAction) -> Probe {
    Probe { action, timeout_seconds: 1 }
}

fn http(port: u16, path: &str) -> Probe {
    probe(ProbeAction::Http {
        port,
        path: path.to_owned(),
        https: false,
        headers: vec![("X-Probe".to_owned(), "yes".to_owned())],
    })
}

/// Answers `status` to each request, and hands over its head.
async fn web(ip: IpAddr, status: &'static str) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, seen) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let _ = heads.send(String::from_utf8(head).unwrap());
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, seen)
}

async fn sidecar(ip: IpAddr, probes: Probes) -> Sidecar {
    Plan::new(&control().await, "server", ip).probes(probes).start().await
}

#[tokio::test]
async fn an_http_probe_performs_the_declared_request_and_no_other_path_exists() {
    let ip = address();
    let (good, mut seen) = web(ip, "204 No Content").await;
    let (bad, _) = web(ip, "500 Oh No").await;
    let probes = Probes::from([
        ("/probe/app/readiness".to_owned(), http(good.port(), "/healthz?deep=1")),
        ("/probe/app/liveness".to_owned(), http(bad.port(), "/healthz")),
        ("/hook/app/preStop".to_owned(), http(good.port(), "/goodbye")),
    ]);
    let sidecar = sidecar(ip, probes).await;
    assert_eq!(sidecar.fetch("/probe/app/readiness").await.0, 200);
    let head = seen.recv().await.unwrap();
    assert!(head.starts_with("GET /healthz?deep=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("x-probe: yes"), "{head}");
    assert_eq!(sidecar.fetch("/hook/app/preStop").await.0, 200);
    assert!(seen.recv().await.unwrap().starts_with("GET /goodbye "));
    assert_eq!(sidecar.fetch("/probe/app/liveness").await, (503, "HTTP status 500 Internal Server Error\n".to_owned()));
    for other in ["/probe/app/startup", "/probe/app/readiness/", "/probe/app/readiness/../liveness", "/"] {
        assert_eq!(sidecar.fetch(other).await.0, 404, "{other}");
    }
    assert!(seen.try_recv().is_err(), "the application saw nothing else");
}

#[tokio::test]
async fn a_tcp_probe_connects_and_a_closed_port_fails_it() {
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let closed = TcpListener::bind((ip, 0)).await.unwrap().local_addr().unwrap();
    let tcp = |port| probe(ProbeAction::Tcp { port });
    let probes = Probes::from([
        ("/probe/app/readiness".to_owned(), tcp(application.address.port())),
        ("/probe/app/liveness".to_owned(), tcp(closed.port())),
    ]);
    let sidecar = sidecar(ip, probes).await;
    assert_eq!(sidecar.fetch("/probe/app/readiness").await.0, 200);
    assert_eq!(sidecar.fetch("/probe/app/liveness").await.0, 503);
    eventually("dialled once", || async { (application.accepted() == 1).then_some(()) }).await;
}

#[tokio::test]
async fn a_silent_application_fails_its_probe_at_the_deadline() {
    let ip = address();
    let application = Application::start(ip, Behaviour::Counts).await;
    let probes = Probes::from([("/probe/app/liveness".to_owned(), http(application.address.port(), "/"))]);
    let sidecar = sidecar(ip, probes).await;
    assert_eq!(sidecar.fetch("/probe/app/liveness").await, (503, "no answer within 1 s\n".to_owned()));
}

#[tokio::test]
async fn an_https_probe_checks_no_certificate() {
    use std::sync::Arc;
    let control = control().await;
    let ip = address();
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = crate::support::wire::server(control.domain.self_signed("anybody"));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let _ = stream.shutdown().await;
    });
    let action = ProbeAction::Http { port, path: "/".to_owned(), https: true, headers: vec![] };
    let probes = Probes::from([("/probe/app/readiness".to_owned(), probe(action))]);
    let sidecar = Plan::new(&control, "server", ip).probes(probes).start().await;
    assert_eq!(sidecar.fetch("/probe/app/readiness").await.0, 200);
}

/// A gRPC health service: `up` is serving, everything else is not.
async fn grpc(ip: IpAddr) -> u16 {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let path = request.uri().path().to_owned();
                        let mut body = request.into_body();
                        let mut message = vec![];
                        while let Some(Ok(part)) = body.data().await {
                            message.extend_from_slice(&part);
                        }
                        let serving = path == "/grpc.health.v1.Health/Check" && message.ends_with(b"up");
                        let status = if serving { 1 } else { 2 };
                        let answer = hyper::Response::builder().header("content-type", "application/grpc");
                        let mut stream = respond.send_response(answer.body(()).unwrap(), false).unwrap();
                        stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false).unwrap();
                        let mut trailers = hyper::HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        stream.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_grpc_probe_asks_the_health_service() {
    let ip = address();
    let port = grpc(ip).await;
    let ask = |service: &str| probe(ProbeAction::Grpc { port, service: service.to_owned() });
    let probes =
        Probes::from([("/probe/app/readiness".to_owned(), ask("up")), ("/probe/app/liveness".to_owned(), ask("down"))]);
    let sidecar = sidecar(ip, probes).await;
    assert_eq!(sidecar.fetch("/probe/app/readiness").await.0, 200);
    assert_eq!(sidecar.fetch("/probe/app/liveness").await, (503, "the service is not serving\n".to_owned()));
}
