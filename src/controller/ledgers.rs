//! The one place where records become durable: what waits for one server's ledger is written together, one write of a
//! server at a time, and servers wait for themselves alone.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams, runtime::events::EventType};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};

use super::{
    apply::{ApplyError, within},
    audit::{Audit, Line},
    events::Events,
    stores::{LEDGER, PART},
};
use crate::{
    pki::{
        self,
        intake::{Intake, MOST, Next, Occasion, Recorded, Unrecorded},
        ledger::{Holder, Ledger, Record},
    },
    sidecar, telemetry,
    topology::{Server, ServerKey},
};

/// How long a first request waits for others.
const GATHER: Duration = Duration::from_millis(10);
/// How long one waits that follows a write: where many ask, fewer and larger writes serve them sooner.
const GATHER_MORE: Duration = Duration::from_millis(500);
/// Ledgers that are written at a time.
const AT_ONCE: usize = 16;
/// Requests that may wait for one ledger.
const WAITING: usize = 2_048;
/// Nobody waits longer. What comes into the ledger later is a certificate that nobody has: it ages out.
const AT_MOST: Duration = Duration::from_secs(15);
/// Holders that an Event names.
const NAMED: usize = 5;

/// Where records are asked for. The writer ends when the last of these is gone.
#[derive(Clone)]
pub(super) struct Ledgers {
    shared: Arc<Shared>,
    begun: mpsc::UnboundedSender<ServerKey>,
}

/// Writes what is asked for.
pub(super) struct Writer {
    shared: Arc<Shared>,
    begins: mpsc::UnboundedReceiver<ServerKey>,
}

struct Shared {
    client: Client,
    namespace: String,
    events: Events,
    audit: Arc<Audit>,
    lanes: Mutex<BTreeMap<ServerKey, VecDeque<Waiting>>>,
    room: Semaphore,
}

/// A request that waits to be written.
struct Waiting {
    server: Server,
    record: Record,
    holder: String,
    answer: oneshot::Sender<Result<Recorded, NotRecorded>>,
}

/// Why nothing is recorded.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NotRecorded {
    /// The ledger does not take it.
    #[error(transparent)]
    Refused(#[from] Unrecorded),
    /// The API server did not take it.
    #[error(transparent)]
    Api(#[from] Arc<ApplyError>),
    /// Nothing was written in time.
    #[error("the ledger was not written within {AT_MOST:?}; try again")]
    Late,
    /// Too many wait.
    #[error("too many pods of this server ask at once; try again")]
    Busy,
    /// Nothing is written any more.
    #[error("the replica ends; ask another one")]
    Ends,
}

/// A ledger as it was last written, with the object's metadata.
type Remembered = Option<(ObjectMeta, Ledger)>;

impl Ledgers {
    pub(super) fn new(client: Client, namespace: String, events: Events, audit: Arc<Audit>) -> (Self, Writer) {
        let (begun, begins) = mpsc::unbounded_channel();
        let room = Semaphore::new(AT_ONCE);
        let shared = Arc::new(Shared { client, namespace, events, audit, lanes: Mutex::default(), room });
        (Self { shared: Arc::clone(&shared), begun }, Writer { shared, begins })
    }

    /// Puts a record of something that `name` calls into the ledger of `server`, durably, or says why not.
    pub(super) async fn record(&self, server: &Server, record: Record, name: &str) -> Result<Recorded, NotRecorded> {
        let (answer, mine) = oneshot::channel();
        let holder = match &record.holder {
            Holder::Pod(_) => format!("pod {name}"),
            Holder::Secret(_) => format!("Secret {name}"),
        };
        self.wait_in(Waiting { server: server.clone(), record, holder, answer })?;
        match tokio::time::timeout(AT_MOST, mine).await {
            Ok(answer) => answer.unwrap_or(Err(NotRecorded::Ends)),
            Err(_) => Err(NotRecorded::Late),
        }
    }

    fn wait_in(&self, waiting: Waiting) -> Result<(), NotRecorded> {
        let key = waiting.server.key.clone();
        let mut lanes = self.shared.lanes();
        let is_new = !lanes.contains_key(&key);
        let lane = lanes.entry(key.clone()).or_default();
        if lane.len() >= WAITING {
            return Err(NotRecorded::Busy);
        }
        lane.push_back(waiting);
        if is_new && self.begun.send(key.clone()).is_err() {
            lanes.remove(&key);
        }
        Ok(())
    }
}

impl Writer {
    /// Writes as long as somebody may ask, and what waits then.
    pub(super) async fn keep(mut self) {
        let mut lanes = JoinSet::new();
        loop {
            tokio::select! {
                begun = self.begins.recv() => match begun {
                    Some(key) => drop(lanes.spawn(Arc::clone(&self.shared).lane(key))),
                    None => break,
                },
                Some(_) = lanes.join_next() => {}
            }
        }
        while lanes.join_next().await.is_some() {}
    }
}

impl Drop for Writer {
    /// Whoever waits and whoever comes hears at once that nothing is written any more.
    fn drop(&mut self) {
        self.begins.close();
        self.shared.lanes().clear();
    }
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, BTreeMap<ServerKey, VecDeque<Waiting>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one ledger as long as somebody waits for it.
    async fn lane(self: Arc<Self>, key: ServerKey) {
        let mut remembered = None;
        let mut gather = GATHER;
        loop {
            tokio::time::sleep(gather).await;
            gather = GATHER_MORE;
            let Some(batch) = self.batch(&key) else { return };
            let _room = self.room.acquire().await;
            remembered = self.write(&key, batch, remembered).await;
        }
    }

    /// Those who wait longest, without those who have gone; `None` = nobody waits, and the lane is closed.
    fn batch(&self, key: &ServerKey) -> Option<Vec<Waiting>> {
        let mut lanes = self.lanes();
        let lane = lanes.get_mut(key)?;
        lane.retain(|waiting| !waiting.answer.is_closed());
        if lane.is_empty() {
            lanes.remove(key);
            return None;
        }
        let count = lane.len().min(MOST);
        Some(lane.drain(..count).collect())
    }

    async fn write(&self, key: &ServerKey, batch: Vec<Waiting>, remembered: Remembered) -> Remembered {
        let wanted = batch.iter().map(|one| (one.server.owner(), one.record.clone())).collect();
        let (meta, ledger) = remembered.map_or((None, None), |(meta, ledger)| (Some(meta), Some(ledger)));
        match self.exchange(key, Intake::new(wanted, ledger)?, meta).await {
            Ok((answers, remembered)) => {
                self.tell(&batch, &answers);
                for (one, answer) in batch.into_iter().zip(answers) {
                    // Who has gone asks again, and finds its record.
                    let _ = one.answer.send(answer.map_err(Into::into));
                }
                remembered
            }
            Err(error) => {
                let error = Arc::new(error);
                for one in batch {
                    let _ = one.answer.send(Err(Arc::clone(&error).into()));
                }
                None
            }
        }
    }

    /// Does what the intake says.
    async fn exchange(
        &self,
        key: &ServerKey,
        mut intake: Intake,
        mut held: Option<ObjectMeta>,
    ) -> Result<(pki::intake::Answers, Remembered), ApplyError> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        loop {
            match intake.next(telemetry::now()) {
                Next::Read => {
                    let map = within(api.get_opt(&ledger_name(key))).await?;
                    let (meta, data) = map.map_or((None, None), |map| (Some(map.metadata), map.data));
                    match Ledger::parse(&data.unwrap_or_default()) {
                        Ok(ledger) => intake.was_read(ledger),
                        Err(error) => return Ok((intake.refuse(&error.into()), None)),
                    }
                    held = meta;
                }
                Next::Write(ledger) => match put(&api, held.take(), key, &ledger).await {
                    Ok(meta) => {
                        for (owner, record) in intake.taken(&ledger) {
                            self.audit.tell(Line::revoked(key, Some(&owner), &record));
                        }
                        return Ok((intake.was_written(), Some((meta, ledger))));
                    }
                    Err(ApplyError::Conflict) => {
                        intake.was_lost();
                        tokio::time::sleep(Duration::from_millis(20).mul_f64(1.0 + 4.0 * telemetry::jitter())).await;
                    }
                    Err(error) => return Err(error),
                },
                Next::Answer(answers) => return Ok((answers, None)),
            }
        }
    }

    /// One Event for all that was written together.
    fn tell(&self, batch: &[Waiting], answers: &pki::intake::Answers) {
        for occasion in [Occasion::Issued, Occasion::Renewed, Occasion::Repeated] {
            let of = |(waiting, answer)| -> Option<(&Waiting, &Recorded)> {
                let answer: &Result<Recorded, Unrecorded> = answer;
                Some((waiting, answer.as_ref().ok().filter(|recorded| recorded.occasion == occasion)?))
            };
            let done: Vec<_> = batch.iter().zip(answers).filter_map(of).collect();
            let note = match &done[..] {
                [] => continue,
                [(one, recorded)] => {
                    format!("{}: certificate {} until {}", one.holder, recorded.serial, recorded.validity.not_after)
                }
                [(_, first), ..] => {
                    let mut names: Vec<&str> = done.iter().take(NAMED).map(|(one, _)| one.holder.as_str()).collect();
                    if done.len() > NAMED {
                        names.push("others");
                    }
                    format!("{} certificates until {}: {}", done.len(), first.validity.not_after, names.join(", "))
                }
            };
            if let Some((last, _)) = done.last() {
                self.events.about(&last.server, EventType::Normal, occasion.word(), "Issue", note);
            }
        }
    }
}

/// The compare-and-swap: a replace names the version that was read, a create fails where there is one.
async fn put(
    api: &Api<ConfigMap>,
    held: Option<ObjectMeta>,
    key: &ServerKey,
    ledger: &Ledger,
) -> Result<ObjectMeta, ApplyError> {
    let data = Some(ledger.render());
    let written = match held {
        Some(metadata) => {
            let name = metadata.name.clone().unwrap_or_default();
            let map = ConfigMap { metadata, data, ..ConfigMap::default() };
            within(api.replace(&name, &PostParams::default(), &map)).await?
        }
        None => {
            let labels = [(PART, "ledger"), ("app.kubernetes.io/managed-by", "entente")];
            let metadata = ObjectMeta {
                name: Some(ledger_name(key)),
                labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
                annotations: Some([(sidecar::SERVER_LABEL.to_owned(), key.to_string())].into()),
                ..ObjectMeta::default()
            };
            let map = ConfigMap { metadata, data, ..ConfigMap::default() };
            within(api.create(&PostParams::default(), &map)).await?
        }
    };
    Ok(written.metadata)
}

/// `entente-ledger-HASH`: names of servers are longer than a ConfigMap's may be.
fn ledger_name(key: &ServerKey) -> String {
    format!("{LEDGER}{}", &pki::sha256_hex(key.to_string().as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use kube::Config;
    use tokio::{sync::watch, time::Instant};

    use super::*;
    use crate::{
        controller::{clock::Clock, health::Metrics, view::View},
        pki::authority::{Serial, Validity},
        topology::{Declared, Topology},
    };

    fn ledgers() -> (Ledgers, Writer) {
        let nowhere = Client::try_from(Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
        let (_, view) = watch::channel(Arc::new(View::default()));
        let (events, _) = Events::new(nowhere.clone(), "test".to_owned(), view, Arc::new(Metrics::new(&Clock::new())));
        Ledgers::new(nowhere, "entente-system".to_owned(), events, Arc::new(Audit::new([0; 8])))
    }

    fn server() -> Server {
        let object = |kind: &str, metadata, spec| serde_json::json!({"apiVersion": "entente.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec});
        let domain = object(
            "TrustDomain",
            serde_json::json!({"name": "contoso"}),
            serde_json::json!({"spiffeTrustDomain": "contoso.example", "dnsSuffixes": ["contoso.example"]}),
        );
        let server = object(
            "TrustedServer",
            serde_json::json!({"name": "web", "namespace": "shop"}),
            serde_json::json!({"selector": {"matchLabels": {"app": "web"}}, "serviceAccountName": "web", "ports": []}),
        );
        let declared = Declared {
            domains: vec![serde_json::from_value(domain).unwrap()],
            servers: vec![serde_json::from_value(server).unwrap()],
            namespaces: [("shop".to_owned(), Some("contoso".to_owned()))].into(),
            ..Declared::default()
        };
        Topology::resolve(&declared).0.servers().next().unwrap().clone()
    }

    fn record() -> Record {
        let now = telemetry::now();
        Record {
            serial: Serial::from_random([1; 16]),
            holder: Holder::Pod("uid".to_owned()),
            key: "key".to_owned(),
            names: "n".into(),
            issuer: "aa".to_owned(),
            validity: Validity { not_before: now, not_after: now },
            recorded: now,
            revoked: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_when_the_writer_ends_and_whoever_comes_then_is_told_so_at_once() {
        let (ledgers, writer) = ledgers();
        let (server, began) = (server(), Instant::now());
        let waits = ledgers.record(&server, record(), "web-1");
        let (waited, ()) = tokio::join!(waits, async { drop(writer) });
        assert!(matches!(waited, Err(NotRecorded::Ends)));
        assert!(matches!(ledgers.record(&server, record(), "web-1").await, Err(NotRecorded::Ends)));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let (ledgers, _writer) = ledgers();
        let began = Instant::now();
        assert!(matches!(ledgers.record(&server(), record(), "web-1").await, Err(NotRecorded::Late)));
        assert_eq!(began.elapsed(), AT_MOST);
    }

    #[tokio::test]
    async fn the_writer_ends_with_the_last_who_may_ask() {
        let (ledgers, writer) = ledgers();
        let keep = tokio::spawn(writer.keep());
        let answer = ledgers.record(&server(), record(), "web-1").await;
        assert!(matches!(answer, Err(NotRecorded::Api(_))), "nobody listens there: {answer:?}");
        drop(ledgers);
        keep.await.unwrap();
    }
}
