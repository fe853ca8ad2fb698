//! What one source does to the others: nothing. And what each way of saying nothing means.

use std::{collections::VecDeque, io, sync::Mutex, time::Duration};

use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::{
    pki::{
        lists::tests::{NOW, Signer},
        roots::tests::authority,
    },
    topology::{Declared, kept::KeptSeen},
};

/// An API server that gives these answers, one after the other; then none.
fn cluster(answers: Vec<(u16, Value)>) -> Client {
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    let answer = move |_: Request<Body>| {
        let next = answers.lock().unwrap().pop_front();
        async move {
            let (code, value) = next.ok_or_else(|| io::Error::other("nobody is there"))?;
            let body = Body::from(serde_json::to_vec(&value).unwrap());
            Ok::<_, io::Error>(Response::builder().status(code).body(body).unwrap())
        }
    };
    Client::new(tower::service_fn(answer), "edge")
}

/// A name server that knows nobody, and for names in `slow.example` never says so.
fn nobody() -> Fetcher {
    let resolve: fetch::Resolve = Arc::new(|host, _| {
        Box::pin(async move {
            if host.ends_with("slow.example") { std::future::pending().await } else { Err(io::Error::other("unknown")) }
        })
    });
    Fetcher::new(Arc::new(RootCertStore::empty()), resolve)
}

fn asker(client: Client) -> Arc<Asker> {
    Arc::new(Asker::with(client, nobody(), Denied::default(), Arc::default(), Signal::new()))
}

fn partner(name: &str, spec: &Value) -> FederationPartner {
    serde_json::from_value(json!({
        "apiVersion": "entente.dev/v1alpha1", "kind": "FederationPartner",
        "metadata": {"name": name, "namespace": "edge", "uid": name, "generation": 1},
        "spec": spec,
    }))
    .unwrap()
}

fn by_map() -> FederationPartner {
    let trust = json!({"configMapRef": {"name": "roots", "key": "ca.crt"}});
    partner("fabrikam", &json!({"domains": ["fabrikam.example"], "trust": trust}))
}

fn by_endpoint(name: &str, host: &str) -> FederationPartner {
    let endpoint = json!({"url": format!("https://{host}/"), "spiffeTrustDomain": "x.example", "profile": "HTTPSWeb"});
    partner(name, &json!({"domains": [format!("{name}.example")], "trust": {"spiffeEndpoint": endpoint}}))
}

fn refused(code: u16) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "no", "reason": if code == 404 { "NotFound" } else { "Forbidden" }}),
    )
}

fn map(data: &Value) -> (u16, Value) {
    (200, json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "roots"}, "data": data}))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(NOW + second).unwrap()
}

async fn once(object: &FederationPartner, record: Kept, answers: Vec<(u16, Value)>) -> Kept {
    let parts = Parts { maps: true, endpoint: true, lists: true };
    let job = Job { object: object.clone(), parts, record, ours: Arc::default(), known: Arc::default() };
    job.run(&asker(cluster(answers)), at(0)).await.record
}

#[tokio::test]
async fn each_way_of_not_holding_roots_has_its_own_sentence_and_costs_no_root_that_was_good() {
    let (object, root) = (by_map(), authority("root", 0, NOW + 9));
    let good = once(&object, Kept::of(&object), vec![map(&json!({"ca.crt": root}))]).await;
    assert!(good.failure.is_none() && good.pem.contains("BEGIN CERTIFICATE"));
    for (answer, said) in [
        (refused(403), "partnerConfigMaps.enabled"),
        (refused(404), "does not exist in namespace edge: create it again"),
        (map(&json!({"other": "x"})), "has no key ca.crt"),
        (map(&json!({"ca.crt": ""})), "key ca.crt: the roots must be PEM"),
        (map(&json!({"ca.crt": "x".repeat(65_537)})), "at most 65536 bytes"),
    ] {
        let next = once(&object, good.clone(), vec![answer]).await;
        assert_eq!(next.pem, good.pem);
        assert!(next.failure.as_ref().unwrap().message.contains(said), "{next:?}");
    }
    assert_eq!(once(&object, good.clone(), vec![]).await, good, "no answer says nothing");
    assert_eq!(once(&object, good.clone(), vec![refused(500)]).await, good, "nor does one of that kind");
}

#[tokio::test]
async fn lists_of_a_config_map_are_judged_by_the_roots_that_came_with_them() {
    let signer = Signer::new("fabrikam");
    let mut object = by_map();
    object.spec.revocation = serde_json::from_value(json!({"configMapRef": {"name": "lists", "key": "crl"}})).unwrap();
    let pem = bundle::labelled("X509 CRL", &signer.list(4, &[7]));
    let answers = vec![map(&json!({"ca.crt": signer.root})), map(&json!({"crl": pem}))];
    let record = once(&object, Kept::of(&object), answers).await;
    assert_eq!(record.lists[&signer.root().key_id].list.counted(), Some(4));
    let broken = once(&object, record.clone(), vec![map(&json!({"ca.crt": signer.root})), refused(404)]).await;
    assert_eq!((broken.lists == record.lists, broken.list_failures.len()), (true, 1));
}

#[tokio::test]
async fn a_parser_that_panics_costs_that_attempt_alone() {
    let failed = ask::guarded(|| -> u8 { panic!("bytes that nobody thought of") }).await;
    assert!(failed.is_err_and(|failure| failure.kind == kept::FailureKind::Unparsable));
    assert_eq!(ask::guarded(|| 7).await.ok(), Some(7));
}

fn seen(object: &FederationPartner, pem: &str) -> (PartnerKey, KeptSeen) {
    let record = Kept { pem: pem.to_owned(), fetched: NOW - 1_000, ..Kept::of(object) };
    let held = KeptSeen { name: "n".to_owned(), version: Some("1".to_owned()), record: Some(Arc::new(record)) };
    (PartnerKey::of(object), held)
}

fn running(sources: &Sources) -> usize {
    sources.rows.values().filter(|row| row.under_way.is_some()).count()
}

/// Ten thousand partners that never answer, and as many whose roots stand in their spec: each round stays short, few are
/// asked at a time, and one that has answered before is asked at once.
#[tokio::test]
async fn ten_thousand_slow_partners_delay_neither_the_loop_nor_one_that_answers() {
    let slow = (0..10_000).map(|number| by_endpoint(&format!("a{number:05}"), "a.slow.example"));
    let plain = json!({"domains": ["x.example"], "trust": {"caBundle": "nonsense"}});
    let plain = (0..10_000).map(|number| partner(&format!("p{number:05}"), &plain));
    let proven = by_endpoint("zz", "unknown.example");
    let partners: Vec<_> = slow.chain(plain).chain([proven.clone()]).collect();
    let kept = BTreeMap::from([seen(&proven, "old")]);
    let world = World { declared: Declared { partners, kept, ..Declared::default() }, ..World::default() };
    let (asker, mut sources) = (asker(cluster(vec![])), Sources::default());
    let mut woken = asker.signal.listen();
    let began = Instant::now();
    let first = sources.look(&asker, &world, at(0));
    assert!(began.elapsed() < Duration::from_secs(5), "a round took {:?}", began.elapsed());
    assert_eq!((first.len(), running(&sources)), (PLAIN, WAITING + 1));
    woken.changed().await.unwrap();
    let next = sources.look(&asker, &world, at(1));
    let failure = next[&PartnerKey::of(&proven)].record.failure.as_ref().unwrap();
    assert!(failure.message.contains("could not be looked up"), "{failure:?}");
    assert_eq!(next[&PartnerKey::of(&proven)].record.pem, "old", "and what was good stays");
    assert_eq!(running(&sources), WAITING, "no more than that are under way, whatever is due");
    assert_eq!(asker.places[Lane::New as usize].available_permits(), 0);
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn what_rests_on_a_record_that_moved_on_is_asked_anew_and_what_is_kept_is_not_written_again() {
    let object =
        partner("fabrikam", &json!({"domains": ["x.example"], "trust": {"caBundle": authority("r", 0, NOW + 9)}}));
    let key = PartnerKey::of(&object);
    let mut world = World { declared: Declared { partners: vec![object], ..Declared::default() }, ..World::default() };
    let (asker, mut sources) = (asker(cluster(vec![])), Sources::default());
    let asked = sources.look(&asker, &world, at(0))[&key].clone();
    assert_eq!(asked.on, None);
    let held = |version: &str, record: &Arc<Kept>| KeptSeen {
        name: "n".to_owned(),
        version: Some(version.to_owned()),
        record: Some(Arc::clone(record)),
    };
    let other = Arc::new(Kept { failure: None, fetched: 5, ..(*asked.record).clone() });
    world.declared.kept.insert(key.clone(), held("1", &other));
    let anew = sources.look(&asker, &world, at(1))[&key].clone();
    assert_eq!((anew.on.as_deref(), anew.record.fetched), (Some("1"), NOW + 1));
    world.declared.kept.insert(key, held("2", &anew.record));
    assert!(sources.look(&asker, &world, at(2)).is_empty());
    assert!(sources.look(&asker, &world, at(100_000)).is_empty(), "what stands in the spec is looked at once");
}
