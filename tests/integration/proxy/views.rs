//! Views of revocations that are missing, broken, old, foreign, stale or empty (row 12 of the fault matrix): nobody who
//! is revoked is ever accepted, nobody who is not is dropped before the view in force ends, and nothing open is cut.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use entente::{
    brief::{Brief, Direction, Mode, Revocation},
    identity::Identity,
    pki, telemetry,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::harness::{Plan, Sidecar, address, control};
use crate::support::{
    applications::{Application, Behaviour},
    control::Server,
    domain::Certified,
    eventually, soon, wire,
};

const NAME: &str = "server.sip.contoso.example";

/// What is wrong with the next view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Missing,
    Truncated,
    Older,
    OtherIssuer,
    Expired,
    Empty,
}

const FAULTS: [Fault; 6] =
    [Fault::Missing, Fault::Truncated, Fault::Older, Fault::OtherIssuer, Fault::Expired, Fault::Empty];

impl Fault {
    fn spoil(self, brief: &mut Brief) {
        let scope = &mut brief.scopes[0];
        let revocation = scope.revocation.as_mut().unwrap();
        revocation.number += 1;
        match self {
            Self::Missing => scope.revocation = None,
            Self::Truncated => {}
            Self::Older => {
                revocation.number -= 2;
                revocation.serials.values_mut().for_each(Vec::clear);
            }
            Self::OtherIssuer => revocation.serials = BTreeMap::from([("00ff".to_owned(), vec![])]),
            Self::Expired => revocation.next_update = telemetry::now().as_second() - 1,
            Self::Empty => {
                scope.issuers.clear();
                revocation.serials.clear();
            }
        }
    }
}

fn serial((chain, _): &Certified) -> String {
    pki::hex(&Identity::of(&chain[0]).unwrap().serial)
}

/// A TLS server of the test's own that echoes, where a declared one is expected.
async fn callee(certificate: Certified) -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).await.unwrap();
    let there = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(wire::server(certificate)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    there
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn talks(stream: &mut dyn Stream) -> bool {
    let talk = async {
        stream.write_all(b"hello").await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.map(|_| answer == *b"hello")
    };
    soon("an answer or an end", talk).await.unwrap_or(false)
}

/// A sidecar that judges a good and a revoked peer in one direction.
struct Cell {
    control: Arc<Server>,
    direction: Direction,
    sidecar: Sidecar,
    good: Certified,
    revoked: Certified,
}

impl Cell {
    /// Its first brief is in order but for what `fault` makes of it.
    async fn new(direction: Direction, fault: Option<Fault>) -> Self {
        let control = control().await;
        control.change(|world| world.truncated = fault == Some(Fault::Truncated));
        let ip = address();
        let peer = if direction == Direction::Inbound { "client" } else { "server" };
        let (good, revoked) = (control.domain.certificate(peer), control.domain.certificate(peer));
        let (listed, issuer) = (serial(&revoked), control.domain.issuer());
        let plan = match direction {
            Direction::Inbound => {
                let application = Application::start(ip, Behaviour::Echo).await;
                Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address)
            }
            Direction::Outbound => {
                let id = control.domain.id("server");
                let good = callee((good.0.clone(), good.1.clone_key())).await;
                let revoked = callee((revoked.0.clone(), revoked.1.clone_key())).await;
                let plan = Plan::new(&control, "client", ip);
                plan.calls(good, &id, Mode::MutualTls).calls(revoked, &id, Mode::MutualTls)
            }
        };
        let plan = plan.brief(move |brief| {
            let revocation = brief.scopes[0].revocation.as_mut().unwrap();
            let Revocation { number, serials, .. } = revocation;
            *number = 5;
            serials.get_mut(&issuer).unwrap().push(listed);
            if let Some(fault) = fault {
                fault.spoil(brief);
            }
        });
        Self { control, direction, sidecar: plan.launch(), good, revoked }
    }

    async fn connect(&self, good: bool) -> Option<Box<dyn Stream>> {
        match self.direction {
            Direction::Inbound => {
                let (chain, key) = if good { &self.good } else { &self.revoked };
                let config = wire::client(Some((chain.clone(), key.clone_key())));
                let stream = wire::connect(self.sidecar.inbound[0], config, NAME).await.ok()?;
                Some(Box::new(stream))
            }
            Direction::Outbound => Some(Box::new(self.sidecar.open(usize::from(!good)).await)),
        }
    }

    async fn accepts(&self, good: bool) -> bool {
        match self.connect(good).await {
            Some(mut stream) => talks(&mut *stream).await,
            None => false,
        }
    }

    /// Each connection is counted when it has ended, a little after its peer saw that.
    async fn counts(&self, fault: Fault, expected: &[&str]) {
        eventually(&format!("{fault:?}: counted as {expected:?}"), || async {
            let mut reasons = self.sidecar.reasons().await;
            reasons.remove("Truncated");
            reasons.keys().eq(expected).then_some(())
        })
        .await;
    }

    async fn rejects_the_brief(&self) {
        eventually("rejected", || async {
            (self.sidecar.metric("entente_briefs_rejected_total").await > 0.0).then_some(())
        })
        .await;
    }
}

async fn a_faulty_view_after_a_good_one(direction: Direction) {
    for fault in FAULTS {
        let cell = Cell::new(direction, None).await;
        cell.sidecar.ready().await;
        cell.sidecar.acknowledges().await;
        let mut live = cell.connect(true).await.unwrap();
        assert!(talks(&mut *live).await, "{fault:?}");
        assert!(!cell.accepts(false).await, "{fault:?}: the revoked one before");

        cell.control.change(|world| world.truncated = fault == Fault::Truncated);
        cell.control.change_brief(&cell.sidecar.home.uid, |brief| fault.spoil(brief));
        let mut expected = vec!["Revoked"];
        match fault {
            Fault::Missing | Fault::Older | Fault::OtherIssuer | Fault::Empty => cell.rejects_the_brief().await,
            Fault::Truncated => {
                let broken = || async { cell.control.look(|world| (world.denials >= 2).then_some(())) };
                eventually("broken off twice", broken).await;
            }
            Fault::Expired => {
                cell.sidecar.acknowledges().await;
                expected.push("StaleCRL");
            }
        }
        assert!(!cell.accepts(false).await, "{fault:?}: the revoked one");
        // Past its own end a view vouches for nobody; before it, good peers pass.
        assert_eq!(cell.accepts(true).await, fault != Fault::Expired, "{fault:?}: the good one");
        assert!(talks(&mut *live).await, "{fault:?}: what is open");
        assert_eq!(cell.sidecar.metric("entente_cut_total").await, 0.0, "{fault:?}");
        cell.counts(fault, &expected).await;
    }
}

async fn a_faulty_view_as_the_first_one(direction: Direction) {
    for fault in FAULTS {
        let cell = Cell::new(direction, Some(fault)).await;
        let (good, expected) = match fault {
            Fault::Missing | Fault::OtherIssuer => (false, &["UnknownStatus"][..]),
            // Nothing is known that it would be older than; who is not in it is good by it.
            Fault::Older => (true, &[][..]),
            Fault::Expired => (false, &["Revoked", "StaleCRL"][..]),
            Fault::Truncated | Fault::Empty => (false, &["NotReady"][..]),
        };
        match fault {
            Fault::Truncated => {
                eventually("broken off", || async { cell.control.look(|world| (world.denials > 0).then_some(())) })
                    .await;
            }
            Fault::Empty => cell.rejects_the_brief().await,
            Fault::Missing | Fault::Older | Fault::OtherIssuer | Fault::Expired => cell.sidecar.ready().await,
        }
        assert_eq!(cell.accepts(true).await, good, "{fault:?}: the good one");
        if fault != Fault::Older {
            assert!(!cell.accepts(false).await, "{fault:?}: the revoked one");
        }
        cell.counts(fault, expected).await;
    }
}

#[tokio::test]
async fn no_faulty_view_lets_a_revoked_caller_in_or_drops_a_good_one() {
    a_faulty_view_after_a_good_one(Direction::Inbound).await;
}

#[tokio::test]
async fn no_faulty_view_lets_a_revoked_callee_answer_or_drops_a_good_one() {
    a_faulty_view_after_a_good_one(Direction::Outbound).await;
}

#[tokio::test]
async fn a_sidecar_whose_first_view_is_faulty_accepts_no_revoked_caller() {
    a_faulty_view_as_the_first_one(Direction::Inbound).await;
}

#[tokio::test]
async fn a_sidecar_whose_first_view_is_faulty_accepts_no_revoked_callee() {
    a_faulty_view_as_the_first_one(Direction::Outbound).await;
}
