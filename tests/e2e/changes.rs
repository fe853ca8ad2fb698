//! What is declared takes effect at once: a new peer may call, a removed one is cut, nobody else notices.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use crate::{
    cluster::{Place, program, until},
    workloads::{IDLE, declared, server, service, web},
};

/// A connection that counts aloud: one line for each 100 ms, from the server through both sidecars.
pub(crate) struct Ticking {
    child: Child,
    lines: Receiver<Instant>,
}

impl Ticking {
    pub(crate) fn start(place: &Place, from: &str, address: &str) -> Self {
        let mut child = program("kubectl")
            .args([
                "-n",
                &place.name,
                "exec",
                from,
                "-c",
                "app",
                "--",
                "socat",
                "-u",
                &format!("TCP:{address}:7000"),
                "-",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (tell, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for _ in out.lines().map_while(Result::ok) {
                if tell.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for the next line.
    pub(crate) fn ticks(&self, within: Duration) -> bool {
        while self.lines.try_recv().is_ok() {}
        self.lines.recv_timeout(within).is_ok()
    }

    /// How long until the connection ends, at most `within`.
    pub(crate) fn ends(&self, within: Duration) -> Option<Duration> {
        let began = Instant::now();
        while began.elapsed() < within {
            match self.lines.recv_timeout(within.saturating_sub(began.elapsed())) {
                Ok(_) => {}
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Some(began.elapsed()),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => return None,
            }
        }
        None
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that ticks ten times a second on port 7000.
pub(crate) const CLOCK: &str = "exec socat TCP-LISTEN:7000,fork,reuseaddr SYSTEM:'while echo tick; do sleep 0.1; done'";

#[test]
fn a_peer_may_call_within_two_seconds_and_is_cut_within_two_seconds_and_no_other_is_touched() {
    let place = Place::alone("allow");
    place.apply(&server("clock", CLOCK, "[{name: clock, port: 7000, allowFrom: [{server: {name: first}}]}]", ""));
    place.apply(&server("first", IDLE, "[]", ""));
    place.apply(&server("second", IDLE, "[]", ""));
    place.ready(&["clock", "first", "second"]);
    let address = place.must(&["get", "pod", &place.pod("clock"), "-o", "jsonpath={.status.podIP}"]);
    let patch = |peers: &str| {
        let body = format!("[{{\"op\": \"replace\", \"path\": \"/spec/ports/0/allowFrom\", \"value\": {peers}}}]");
        place.must(&["patch", "trustedserver", "clock", "--type=json", "-p", &body]);
        Instant::now()
    };
    let first = Ticking::start(&place, "deploy/first", &address);
    assert!(first.ticks(Duration::from_secs(10)), "the declared peer gets through");
    assert!(
        !place.run("deploy/second", &format!("timeout 3 socat -u TCP:{address}:7000 - | head -n 1 | grep tick")).ok
    );

    let both = "[{\"server\": {\"name\": \"first\"}}, {\"server\": {\"name\": \"second\"}}]";
    let at = patch(both);
    until(2, "the new peer gets through", || {
        let line = format!("timeout 1 socat -u TCP:{address}:7000 - | head -n 1 | grep tick");
        let said = place.run("deploy/second", &line);
        if said.ok { Ok(()) } else { Err(said.err) }
    });
    eprintln!("a new peer was admitted after at most {:?}", at.elapsed());

    let second = Ticking::start(&place, "deploy/second", &address);
    assert!(second.ticks(Duration::from_secs(10)));
    patch("[{\"server\": {\"name\": \"first\"}}]");
    let cut = second.ends(Duration::from_secs(5));
    let cut = cut.unwrap_or_else(|| panic!("the removed peer is still connected\n{}", place.picture()));
    assert!(cut <= Duration::from_secs(2), "cut after {cut:?}");
    eprintln!("the removed peer was cut after {cut:?}");
    assert!(first.ticks(Duration::from_secs(2)), "the other connection goes on");
    place.logged(&place.pod("clock"), &["access", "NotInTopology"]);
}

#[test]
fn a_server_that_is_no_longer_declared_neither_calls_nor_is_called_until_it_is_declared_again() {
    let place = Place::new("withdrawn");
    let declaration = declared("web", "[{name: http, port: 80, targetPort: 8080}]", "");
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    let call = || place.run("deploy/client", "curl -sS --max-time 5 http://web/");
    assert_eq!(call().out, "hello\n");
    let other = place.must(&["get", "pod", &place.pod("client"), "-o", "jsonpath={.status.podIP}"]);
    place.must(&["delete", "trustedserver", "web"]);
    until(5, "nobody reaches it", || if call().ok { Err("still answered".to_owned()) } else { Ok(()) });
    place.logged(&place.pod("client"), &["access", "DestinationNotDeclared"]);
    let _ = place.run("deploy/web", &format!("curl -sS --max-time 5 http://{other}/"));
    place.logged(&place.pod("web"), &["access", "withdrawn"]);
    place.apply(&declaration);
    place.ready(&["web"]);
    until(10, "it is reached again", || {
        let said = call();
        if said.out == "hello\n" { Ok(()) } else { Err(said.err) }
    });
}
