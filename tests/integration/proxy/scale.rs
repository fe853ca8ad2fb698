//! Many live connections, one identity of theirs revoked.

use std::time::{Duration, Instant};

use entente::brief::Mode;
use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinSet};

use super::harness::{Plan, Sidecar, address, control, echo};
use crate::support::{
    applications::{Application, Behaviour},
    soon,
};

const CLIENTS: usize = 10;

/// How many connections there are: more where there is time. Each holds six descriptors of this process.
fn connections() -> usize {
    if std::env::var_os("ENTENTE_LONG").is_some() { 2_500 } else { 1_000 }
}

async fn open(client: &Sidecar, count: usize) -> Vec<TcpStream> {
    let mut streams = vec![];
    for _ in 0..count {
        let mut stream = client.open(0).await;
        echo(&mut stream, b"open").await.unwrap();
        streams.push(stream);
    }
    streams
}

/// How many ended in each step of two milliseconds.
fn tell_histogram(times: &[Duration]) {
    let mut steps = std::collections::BTreeMap::<u128, usize>::new();
    for time in times {
        *steps.entry(time.as_millis() / 2 * 2).or_default() += 1;
    }
    for (from, count) in steps {
        eprintln!("{from:>4}-{:<4} ms {count:>4} {}", from + 2, "#".repeat(count.div_ceil(times.len().div_ceil(100))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_connections_exactly_those_of_the_revoked_certificate_end_on_both_sides() {
    entente::proxy::prepare_process();
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let mut clients = vec![];
    for number in 0..CLIENTS {
        let plan = Plan::new(&control, &format!("client-{number}"), address());
        clients.push(plan.calls(server.inbound[0], &id, Mode::MutualTls).start().await);
    }
    let each = connections() / CLIENTS;
    let mut streams: Vec<_> = futures::future::join_all(clients.iter().map(|client| open(client, each))).await;
    assert_eq!(server.metric("entente_open_connections{direction=\"inbound\"}").await, (each * CLIENTS) as f64);
    assert_eq!(application.open(), each * CLIENTS);

    // At the application's end of the revoked ones nothing is read before their end, so its moment is seen.
    let revoked = streams.remove(3);
    let mut ends = JoinSet::new();
    for mut stream in revoked {
        ends.spawn(async move {
            let end = soon("the end", stream.read_u8()).await;
            assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            Instant::now()
        });
    }
    let serial = control.serial(&clients[3].home.uid);
    let published = Instant::now();
    control.revoke(&server.home.uid, &serial);
    let mut times: Vec<Duration> = ends.join_all().await.into_iter().map(|end| end - published).collect();
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    eprintln!(
        "{} of {} connections cut, brief published to reset at the caller: p50 {:?}, p99 {:?}, max {:?}",
        times.len(),
        each * CLIENTS,
        at(50),
        at(99),
        at(100)
    );
    tell_histogram(&times);

    server.refused("inbound", "Revoked", u32::try_from(each).unwrap()).await;
    let rest = each * (CLIENTS - 1);
    assert_eq!(server.metric("entente_cut_total").await, each as f64);
    assert_eq!(server.metric("entente_open_connections{direction=\"inbound\"}").await, rest as f64);
    crate::support::eventually("the application's ends", || async { (application.open() == rest).then_some(()) }).await;
    for stream in streams.iter_mut().flatten() {
        echo(stream, b"goes on").await.unwrap();
    }
    assert_eq!(server.reasons().await.keys().collect::<Vec<_>>(), ["Revoked"]);
}
