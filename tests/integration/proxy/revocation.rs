//! What is taken back is refused and cut, on both sides, and nothing else is.

use std::sync::Arc;

use entente::{
    brief::{Mode, RefusedConnections, Standing, Withdrawal},
    identity::Identity,
    pki,
    refusal::WithdrawnDetail,
    telemetry,
};
use rustls::{AlertDescription, Error};
use tokio::io::AsyncReadExt;

use super::harness::{Plan, Seen, Sidecar, address, control, echo, read_out};
use crate::support::{
    applications::{Application, Behaviour},
    control::Server,
    domain::{Certified, SKEW},
    eventually, soon, wire,
};

const NAME: &str = "server.sip.contoso.example";

async fn serving(control: &Arc<Server>) -> Sidecar {
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    Plan::new(control, "server", ip).port(Mode::MutualTls, application.address).start().await
}

async fn calling(control: &Arc<Server>, name: &str, server: &Sidecar) -> Sidecar {
    let id = control.domain.id("server");
    Plan::new(control, name, address()).calls(server.inbound[0], &id, Mode::MutualTls).start().await
}

fn cuts(control: &Server, sidecar: &Sidecar) -> Vec<RefusedConnections> {
    control.look(|world| world.pods[&sidecar.home.uid].refusals.iter().filter(|told| told.cut).cloned().collect())
}

async fn cut_is_reported(control: &Server, sidecar: &Sidecar, code: &str, peer: &str) {
    let told = eventually("cut reported", || async { cuts(control, sidecar).first().cloned() }).await;
    assert_eq!((told.reason.code(), told.peer, told.count), (code, control.domain.id(peer).to_string(), 1));
    let series = format!(
        "entente_cut_by_reason_total{{direction=\"{}\",reason=\"{code}\"}}",
        if peer == "server" { "outbound" } else { "inbound" }
    );
    assert_eq!(sidecar.metric(&series).await, 1.0, "{series}");
    assert_eq!(sidecar.metric("entente_cut_total").await, 1.0);
}

#[tokio::test]
async fn a_revoked_callers_connection_is_cut_and_no_other_and_it_learns_why_it_is_refused() {
    let control = control().await;
    let server = serving(&control).await;
    let (one, two) = (calling(&control, "one", &server).await, calling(&control, "two", &server).await);
    let (mut first, mut second) = (one.open(0).await, two.open(0).await);
    echo(&mut first, b"one").await.unwrap();
    echo(&mut second, b"two").await.unwrap();

    control.revoke(&server.home.uid, &control.serial(&one.home.uid));
    assert_eq!(read_out(&mut first).await.1, Seen::Reset);
    cut_is_reported(&control, &server, "Revoked", "one").await;
    echo(&mut second, b"still here").await.unwrap();
    // It does not know yet; its next call is refused, which is no cut, and says whose certificate is at fault.
    assert_eq!(read_out(&mut one.open(0).await).await.1, Seen::Reset);
    server.refused("inbound", "Revoked", 2).await;
    one.refused("outbound", "PeerRefused", 1).await;
    let told = control.look(|world| {
        let refusals = &world.pods[&one.home.uid].refusals;
        refusals.iter().find(|told| told.reason.code() == "PeerRefused").map(|told| told.reason.detail())
    });
    assert_eq!(told, Some("certificateRevoked"));
    assert_eq!(cuts(&control, &server).len(), 1);
    echo(&mut two.open(0).await, b"a new one").await.unwrap();
}

#[tokio::test]
async fn a_revoked_callees_connection_is_cut_by_its_caller() {
    let control = control().await;
    let server = serving(&control).await;
    let client = calling(&control, "client", &server).await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();
    control.revoke(&client.home.uid, &control.serial(&server.home.uid));
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    cut_is_reported(&control, &client, "Revoked", "server").await;
    assert_eq!(read_out(&mut client.open(0).await).await.1, Seen::Reset);
    client.refused("outbound", "Revoked", 2).await;
}

#[tokio::test]
async fn an_identity_that_is_withdrawn_is_cut_and_refused_with_what_was_issued_before_and_no_later_one() {
    let control = control().await;
    let server = serving(&control).await;
    let client = calling(&control, "client", &server).await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();
    let withdrawal = Withdrawal {
        id: control.domain.id("client"),
        // Leaves are dated back.
        starting_before: telemetry::now().as_second() - i64::from(SKEW) + 1,
        reason: WithdrawnDetail::IssuedBefore,
    };
    let narrowed = withdrawal.clone();
    control.change_brief(&server.home.uid, |brief| {
        brief.scopes[0].revocation.as_mut().unwrap().withdrawn.push(narrowed);
    });
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    cut_is_reported(&control, &server, "Withdrawn", "client").await;
    // The client hears of it, and asks for a later certificate at once. One of the same second is taken back as well.
    control.change_brief(&client.home.uid, |brief| {
        brief.scopes[0].revocation.as_mut().unwrap().withdrawn.push(withdrawal);
    });
    eventually("admitted again", || async { echo(&mut client.open(0).await, b"later").await.ok() }).await;
}

#[tokio::test]
async fn each_reason_tells_the_peer_as_much_as_it_may_know() {
    let control = control().await;
    let server = serving(&control).await;
    let certificate = control.domain.certificate("client");
    let serial = pki::hex(&Identity::of(&certificate.0[0]).unwrap().serial);
    let alert = || async {
        let (chain, key): &Certified = &certificate;
        let config = wire::client(Some((chain.clone(), key.clone_key())));
        let mut stream = wire::connect(server.inbound[0], config, NAME).await.unwrap();
        let error = soon("alert", stream.read_u8()).await.unwrap_err();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(alert)) => *alert,
            _ => panic!("no alert: {error}"),
        }
    };
    control.change_brief(&server.home.uid, |brief| brief.ports[0].allow.all_declared = false);
    server.acknowledges().await;
    assert_eq!(alert().await, AlertDescription::AccessDenied, "NotInTopology");
    control.change_brief(&server.home.uid, |brief| {
        let revocation = brief.scopes[0].revocation.as_mut().unwrap();
        revocation.next_update = telemetry::now().as_second() - 1;
    });
    server.acknowledges().await;
    assert_eq!(alert().await, AlertDescription::UnknownCA, "StaleCRL");
    control.revoke(&server.home.uid, &serial);
    server.acknowledges().await;
    assert_eq!(alert().await, AlertDescription::CertificateRevoked, "Revoked");
    // Revocation is judged before topology, which refuses this caller all the time.
    for reason in ["NotInTopology", "Revoked", "StaleCRL"] {
        server.refused("inbound", reason, 1).await;
    }
}

#[tokio::test]
async fn a_sidecar_whose_own_certificate_is_revoked_says_so_and_gets_a_new_one_at_once() {
    let control = control().await;
    let server = serving(&control).await;
    let client = calling(&control, "client", &server).await;
    let uid = server.home.uid.clone();
    control.change(|world| world.pods.get_mut(&uid).unwrap().uncertified = Some("RateLimited"));
    control.revoke(&uid, &control.serial(&uid));
    eventually("own revoked", || async {
        (server.fetch("/ready").await == (503, "NotReady [ownRevoked]\n".to_owned())).then_some(())
    })
    .await;
    assert_eq!(server.metric("entente_own_revoked").await, 1.0);
    assert_eq!(read_out(&mut client.open(0).await).await.1, Seen::Reset);
    server.refused("inbound", "NotReady", 1).await;
    control.change(|world| world.pods.get_mut(&uid).unwrap().uncertified = None);
    server.ready().await;
    assert_eq!(server.metric("entente_own_revoked").await, 0.0);
    echo(&mut client.open(0).await, b"again").await.unwrap();
    assert_eq!(control.look(|world| world.pods[&uid].serials.len()), 2, "one new certificate");
}

#[tokio::test]
async fn a_sync_that_is_denied_as_revoked_marks_our_own_certificate_revoked() {
    let control = control().await;
    let server = serving(&control).await;
    let uid = server.home.uid.clone();
    control.change(|world| {
        world.pods.get_mut(&uid).unwrap().uncertified = Some("RateLimited");
        world.denied = Some(("/v1/sync", 401, "Revoked"));
    });
    eventually("own revoked", || async {
        (server.fetch("/ready").await == (503, "NotReady [ownRevoked]\n".to_owned())).then_some(())
    })
    .await;
    control.change(|world| {
        world.pods.get_mut(&uid).unwrap().uncertified = None;
        world.denied = None;
    });
    server.ready().await;
    assert_eq!(control.look(|world| world.pods[&uid].serials.len()), 2);
}

#[tokio::test]
async fn a_suspended_server_refuses_everything_and_asks_for_no_certificate_until_it_may_go_on() {
    let control = control().await;
    let server = serving(&control).await;
    let client = calling(&control, "client", &server).await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();
    let (uid, own) = (server.home.uid.clone(), control.domain.id("server"));
    control.change_brief(&uid, |brief| {
        brief.standing = Standing::Suspended;
        let reason = WithdrawnDetail::Suspended;
        let starting_before = telemetry::now().as_second() - i64::from(SKEW) + 1;
        brief.scopes[0].revocation.as_mut().unwrap().withdrawn = vec![Withdrawal { id: own, starting_before, reason }];
        // Both would bring a renewal at any other time.
        brief.lifetime_seconds += 1;
        brief.issuer = "00ff".to_owned();
    });
    server.acknowledges().await;
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    assert_eq!(server.fetch("/ready").await, (503, "NotReady [serverSuspended]\n".to_owned()));
    assert_eq!(read_out(&mut client.open(0).await).await.1, Seen::Reset);
    server.refused("inbound", "NotReady", 2).await;
    let issuer = control.domain.issuer();
    control.change_brief(&uid, |brief| {
        brief.issuer = issuer;
        brief.lifetime_seconds -= 1;
    });
    server.acknowledges().await;
    assert_eq!(control.look(|world| world.pods[&uid].certificates), 1, "asked for one while suspended");
    control.change_brief(&uid, |brief| brief.standing = Standing::Active);
    // What was issued before is taken back for good: it goes on with a new certificate.
    server.ready().await;
    assert!(control.look(|world| world.pods[&uid].certificates) >= 2);
    echo(&mut client.open(0).await, b"again").await.unwrap();
}

#[tokio::test]
async fn within_one_revision_and_list_what_was_taken_back_stays_so_and_the_next_list_decides_anew() {
    let control = control().await;
    let server = serving(&control).await;
    let certificate = control.domain.certificate("client");
    let serial = pki::hex(&Identity::of(&certificate.0[0]).unwrap().serial);
    let served = || async {
        let config = wire::client(Some((certificate.0.clone(), certificate.1.clone_key())));
        wire::is_served(wire::connect(server.inbound[0], config, NAME).await).await
    };
    assert!(served().await);
    control.revoke(&server.home.uid, &serial);
    server.acknowledges().await;
    assert!(!served().await);
    let forget = |revision: u64, number: u64| {
        let issuer = control.domain.issuer();
        control.change_brief(&server.home.uid, |brief| {
            brief.cursor.revision -= 1 - revision;
            brief.cursor.hash = format!("forgotten {revision} {number}");
            let revocation = brief.scopes[0].revocation.as_mut().unwrap();
            revocation.number += number;
            revocation.serials.get_mut(&issuer).unwrap().clear();
        })
    };
    forget(0, 0);
    server.acknowledges().await;
    assert!(!served().await, "another replica's brief of the same revision, which has not heard of it");
    forget(1, 1);
    server.acknowledges().await;
    assert!(served().await);
}

#[tokio::test]
async fn a_new_issuer_brings_a_certificate_of_its_own_without_dropping_a_connection() {
    let control = control().await;
    let server = serving(&control).await;
    let client = calling(&control, "client", &server).await;
    let mut open = client.open(0).await;
    echo(&mut open, b"before").await.unwrap();
    let renewed = control.domain.renewed();
    let next = pki::authority::Authority::load(&renewed, telemetry::now()).unwrap().key_id().to_owned();
    control.change(|world| world.authority = Some(renewed));
    for uid in [&server.home.uid, &client.home.uid] {
        control.change_brief(uid, |brief| {
            brief.issuer.clone_from(&next);
            brief.renew_within_seconds = 1;
            brief.scopes[0].issuers.push(next.clone());
            brief.scopes[0].revocation.as_mut().unwrap().serials.insert(next.clone(), vec![]);
        });
    }
    for uid in [&server.home.uid, &client.home.uid] {
        eventually("renewed", || async {
            let pod = control.look(|world| world.pods[uid].clone());
            (pod.serials.len() == 2 && pod.holds == pod.serials[1]).then_some(())
        })
        .await;
    }
    echo(&mut open, b"after").await.unwrap();
    eventually("a new connection", || async { echo(&mut client.open(0).await, b"new").await.ok() }).await;
    // The old issuer goes: what still rests on it ends, what rests on the new one stays.
    let mut new = client.open(0).await;
    echo(&mut new, b"under the new issuer").await.unwrap();
    control.change_brief(&server.home.uid, |brief| brief.scopes[0].issuers = vec![next.clone()]);
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    server.refused("inbound", "IssuerNotCurrent", 1).await;
    echo(&mut new, b"stays").await.unwrap();
    for uid in [&server.home.uid, &client.home.uid] {
        assert_eq!(control.look(|world| world.pods[uid].serials.len()), 2, "one renewal, not many");
    }
}
