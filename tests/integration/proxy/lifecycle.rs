//! Start, restart, end.

use entente::{brief::Mode, proxy};
use tokio::net::TcpStream;

use super::harness::{Plan, Seen, Sidecar, address, control, echo, read_out};
use crate::support::{
    applications::{Application, Behaviour},
    eventually, soon,
};

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_at_the_start() {
    let control = control().await;
    let sidecar = Plan::new(&control, "server", address()).start().await;
    let mut config = sidecar.home.config();
    config.health = vec![sidecar.health];
    config.inbound = vec![(sidecar.home.ip, 0).into()];
    config.outbound = vec![(sidecar.home.ip, 0).into()];
    let error = proxy::bind(config.clone()).unwrap_err();
    assert!(format!("{error:#}").contains(&sidecar.health.to_string()), "{error:#}");
    config.health = vec![(sidecar.home.ip, 0).into()];
    config.inbound = vec![proxy::bind(config.clone()).unwrap().inbound()[0]];
    let holder = proxy::bind(config.clone()).unwrap();
    let error = proxy::bind(config).unwrap_err();
    assert!(format!("{error:#}").contains(&holder.inbound()[0].to_string()), "{error:#}");
}

#[tokio::test]
async fn a_restarted_container_goes_on_under_the_same_key_without_control_plane() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let kept = std::fs::read(server.home.state.path().join("identity.pem")).unwrap();
    let home = server.kill().await;
    control.change(|world| world.denied = Some(("/", 503, "Down")));

    let server = Sidecar::start(home);
    server.ready().await;
    assert_eq!(std::fs::read(server.home.state.path().join("identity.pem")).unwrap(), kept);
    control.change(|world| world.denied = None);
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;
    echo(&mut client.open(0).await, b"again").await.unwrap();
    assert_eq!(control.look(|world| world.pods[&server.home.uid].certificates), 1);
}

#[tokio::test]
async fn a_terminated_proxy_turns_unready_keeps_what_is_open_and_ends_when_it_has_ended() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();
    let (health, inbound) = (server.health, server.inbound[0]);
    let (_, task) = server.terminate();
    eventually("unready", || async {
        let mut stream = TcpStream::connect(health).await.unwrap();
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        stream.write_all(b"GET /ready HTTP/1.0\r\nHost: pod\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.contains(" 503 ").then_some(())
    })
    .await;
    eventually("no new callers", || async { TcpStream::connect(inbound).await.err() }).await;
    echo(&mut open, b"still open").await.unwrap();
    drop(open);
    soon("ended", task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_drain_time_bounds_how_long_an_open_connection_holds_a_terminated_proxy() {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip)
        .port(Mode::MutualTls, application.address)
        .brief(|brief| brief.drain_seconds = 1)
        .start()
        .await;
    let id = control.domain.id("server");
    let client = Plan::new(&control, "client", address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();
    let (_, task) = server.terminate();
    soon("ended", task).await.unwrap().unwrap();
    assert_eq!(read_out(&mut open).await, (vec![], Seen::End), "an idle connection ends in order");
}

#[tokio::test]
async fn key_and_brief_are_readable_by_the_proxy_alone() {
    use std::os::unix::fs::PermissionsExt;
    let control = control().await;
    let sidecar = Plan::new(&control, "server", address()).start().await;
    for name in ["identity.pem", "brief.json"] {
        let metadata = std::fs::metadata(sidecar.home.state.path().join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_sidecar_that_is_told_nothing_ends_with_bad_usage_and_prints_nothing() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_entente")).arg("proxy").env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("--control-address"));
}

#[test]
fn entente_proxy_goes_on_as_the_smaller_program_beside_it_if_there_is_one() {
    use std::{fs, os::unix::fs::PermissionsExt, process::Command};

    let folder = tempfile::tempdir().unwrap();
    let (whole, small) = (folder.path().join("entente"), folder.path().join("entente-proxy"));
    crate::support::place(env!("CARGO_BIN_EXE_entente").as_ref(), &whole).unwrap();
    let words =
        ["--log-format", "json", "proxy", "--control-address", "a:1", "--control-ca", "b", "--pod-ips", "10.0.0.1"];
    let words = [&words[..], &["--pod-uid", "c", "--resolv-conf", "/nowhere"]].concat();
    let proxy = || Command::new(&whole).args(&words).env_clear().output().unwrap();

    let alone = proxy();
    assert_eq!(alone.status.code(), Some(1), "{alone:?}");
    assert!(String::from_utf8(alone.stderr).unwrap().contains("cannot read /nowhere"));

    fs::write(&small, "#!/bin/sh\necho \"$@\" arenas $MALLOC_ARENA_MAX\nexit 7\n").unwrap();
    fs::set_permissions(&small, fs::Permissions::from_mode(0o755)).unwrap();
    let handed = proxy();
    assert_eq!(handed.status.code(), Some(7), "{handed:?}");
    assert_eq!(String::from_utf8(handed.stdout).unwrap().trim_end(), words.join(" ") + " arenas 1");

    fs::set_permissions(&small, fs::Permissions::from_mode(0o644)).unwrap();
    let forbidden = proxy();
    assert_eq!(forbidden.status.code(), Some(1), "{forbidden:?}");
    assert!(String::from_utf8(forbidden.stderr).unwrap().contains("entente-proxy"));
}
