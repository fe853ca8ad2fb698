//! Roots of partners that stand in a ConfigMap of their namespace (`trust.configMapRef`), read one by one: the operator
//! may `get` such an object and can list none.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};

use crate::{
    api::{ConfigMapKey, FederationPartner},
    topology::PartnerKey,
};

/// A ConfigMap is read again after this time, in seconds.
const LOOK_SECONDS: i64 = 10;
/// ConfigMaps that one round reads; the others wait for the next rounds.
const AT_ONCE: usize = 16;
/// The loop waits no longer for one.
const ANSWER: Duration = Duration::from_secs(2);
/// Bytes that roots may have, as in `caBundle`.
const LONGEST: usize = 65_536;
/// An API server that gives no answer is asked so often before that is taken for one.
const PATIENCE: u32 = 3;

/// What the ConfigMap of one partner holds, or why that is not known.
type Read = Result<String, String>;

/// What was read last, and when.
#[derive(Debug, Default)]
pub(super) struct Roots(BTreeMap<PartnerKey, Row>);

#[derive(Debug)]
struct Row {
    wanted: ConfigMapKey,
    at: Timestamp,
    /// `None` = there was no answer yet.
    read: Option<Read>,
    failures: u32,
}

impl Roots {
    /// Reads what was not read lately. What was read stays while there is no answer. `None` = something was never read,
    /// and it is too early to take that for an answer: a partner is not dropped because a replica has just started.
    pub(super) async fn look(
        &mut self,
        client: &Client,
        partners: &[FederationPartner],
        now: Timestamp,
    ) -> Option<BTreeMap<PartnerKey, Read>> {
        let one =
            |partner: &FederationPartner| Some((PartnerKey::of(partner), partner.spec.trust.config_map_ref.clone()?));
        let asked: BTreeMap<PartnerKey, ConfigMapKey> = partners.iter().filter_map(one).collect();
        self.0.retain(|key, row| asked.get(key) == Some(&row.wanted));
        for (key, wanted) in asked {
            self.0.entry(key).or_insert(Row { wanted, at: Timestamp::MIN, read: None, failures: 0 });
        }
        let stale =
            |row: &Row| row.read.is_none() || now.as_second() - row.at.as_second() >= LOOK_SECONDS || row.at > now;
        let mut due: Vec<_> = self.0.iter_mut().filter(|(_, row)| stale(row)).collect();
        due.sort_by_key(|(_, row)| row.at);
        let reading = due.into_iter().take(AT_ONCE).map(|(key, row)| async move {
            row.at = now;
            match read(client, &key.namespace, &row.wanted).await {
                Some(answer) => (row.read, row.failures) = (Some(answer), 0),
                None => row.failures = row.failures.saturating_add(1),
            }
        });
        futures::future::join_all(reading).await;
        let known = |row: &Row| row.read.is_some() || row.failures >= PATIENCE;
        let whole = self.0.values().all(known);
        let rows = self.0.iter().filter_map(|(key, row)| Some((key.clone(), row.read.clone()?)));
        whole.then(|| rows.collect())
    }
}

/// `None` = there was no answer.
async fn read(client: &Client, namespace: &str, wanted: &ConfigMapKey) -> Option<Read> {
    let ConfigMapKey { name, key } = wanted;
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    match tokio::time::timeout(ANSWER, api.get_opt(name)).await.ok()? {
        Ok(None) => Some(Err(format!("ConfigMap {name} does not exist in namespace {namespace}"))),
        Ok(Some(map)) => match map.data.and_then(|mut data| data.remove(key)) {
            Some(text) if text.len() <= LONGEST => Some(Ok(text)),
            Some(_) => Some(Err(format!("ConfigMap {name}: {key} must have at most {LONGEST} bytes"))),
            None => Some(Err(format!("ConfigMap {name} has no key {key}"))),
        },
        Err(kube::Error::Api(status)) if status.code == 403 => Some(Err(format!(
            "the operator may not read ConfigMap {name}: install the chart with partnerConfigMaps.enabled=true, and {namespace} among its namespaces"
        ))),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        io,
        sync::{Arc, Mutex},
    };

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

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

    fn partner() -> FederationPartner {
        serde_json::from_value(json!({
            "apiVersion": "entente.dev/v1alpha1", "kind": "FederationPartner",
            "metadata": {"name": "fabrikam", "namespace": "edge"},
            "spec": {"domains": ["fabrikam.example"], "trust": {"configMapRef": {"name": "roots", "key": "ca.crt"}}},
        }))
        .unwrap()
    }

    fn refused(code: u16, reason: &str) -> (u16, Value) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "no", "reason": reason});
        (code, status)
    }

    fn map(data: &Value) -> (u16, Value) {
        (200, json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "roots"}, "data": data}))
    }

    async fn looks(answers: Vec<(u16, Value)>, seconds: &[i64]) -> Vec<Option<Read>> {
        let (client, mut roots, mut seen) = (cluster(answers), Roots::default(), vec![]);
        for second in seconds {
            let now = Timestamp::from_second(*second).unwrap();
            let read = roots.look(&client, &[partner()], now).await;
            seen.push(
                read.map(|mut rows| rows.remove(&PartnerKey::of(&partner())).unwrap_or_else(|| Ok("nothing".into()))),
            );
        }
        seen
    }

    #[tokio::test]
    async fn what_was_read_stays_while_there_is_no_answer_and_is_read_again_in_ten_seconds() {
        let answers = vec![
            map(&json!({"ca.crt": "one"})),
            refused(500, "InternalError"),
            map(&json!({"ca.crt": "two"})),
            refused(404, "NotFound"),
        ];
        let seen = looks(answers, &[0, 9, 10, 20, 30]).await;
        let text = |text: &str| Some(Ok(text.to_owned()));
        assert_eq!(seen[..4], [text("one"), text("one"), text("one"), text("two")]);
        assert!(matches!(&seen[4], Some(Err(why)) if why.contains("does not exist")), "{seen:?}");
    }

    #[tokio::test]
    async fn each_way_of_not_holding_roots_has_its_own_sentence() {
        for (answer, said) in [
            (refused(403, "Forbidden"), "partnerConfigMaps.enabled"),
            (map(&json!({"other": "x"})), "has no key ca.crt"),
            (map(&json!({"ca.crt": "x".repeat(LONGEST + 1)})), "at most 65536 bytes"),
        ] {
            let seen = looks(vec![answer], &[0]).await;
            assert!(matches!(&seen[0], Some(Err(why)) if why.contains(said)), "{seen:?}");
        }
    }

    #[tokio::test]
    async fn a_partner_is_not_dropped_because_a_replica_has_just_started() {
        let seen = looks(vec![], &[0, 1, 2, 3]).await;
        assert_eq!(seen[..2], [None, None]);
        assert_eq!(seen[2], Some(Ok("nothing".into())), "one silent answer stops nobody else for long");
    }
}
