//! Records become durable here: what waits for one server's ledger is written together, one write of a server at a
//! time, and servers wait for themselves alone.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams, runtime::events::EventType};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Denial, unavailable};
use crate::{
    controller::{
        apply::{ApplyError, within},
        events::Events,
        stores::{LEDGER, PART},
    },
    pki::{
        self,
        intake::{Intake, MOST, Next, Occasion, Recorded, Unrecorded},
        ledger::{Ledger, Record},
    },
    sidecar, telemetry,
    topology::{Server, ServerKey},
};

/// How long a first request waits for others.
const GATHER: Duration = Duration::from_millis(10);
/// Ledgers that are written at a time.
const AT_ONCE: usize = 16;
/// Requests that may wait for one ledger.
const WAITING: usize = 2_048;
/// When to come back where so many wait.
const LATER: Duration = Duration::from_secs(5);
/// Pods that an Event names.
const NAMED: usize = 5;

/// The ledgers as one replica writes them.
pub(super) struct Ledgers {
    client: Client,
    namespace: String,
    events: Events,
    lanes: Mutex<BTreeMap<ServerKey, VecDeque<Waiting>>>,
    begun: mpsc::UnboundedSender<ServerKey>,
    room: Semaphore,
}

/// A request that waits to be written.
struct Waiting {
    server: Server,
    record: Record,
    pod: String,
    answer: oneshot::Sender<Result<Recorded, Denial>>,
}

/// A ledger as it was last written, with the object's metadata.
type Remembered = Option<(ObjectMeta, Ledger)>;

impl Ledgers {
    pub(super) fn new(
        client: Client,
        namespace: String,
        events: Events,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<ServerKey>) {
        let (begun, begins) = mpsc::unbounded_channel();
        let room = Semaphore::new(AT_ONCE);
        (Arc::new(Self { client, namespace, events, lanes: Mutex::default(), begun, room }), begins)
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<ServerKey, VecDeque<Waiting>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a record into the ledger of `server`, durably, or says why not.
    pub(super) async fn record(&self, server: Server, record: Record, pod: String) -> Result<Recorded, Denial> {
        let key = server.key.clone();
        let (answer, mine) = oneshot::channel();
        {
            let mut lanes = self.lanes();
            let is_new = !lanes.contains_key(&key);
            let lane = lanes.entry(key.clone()).or_default();
            if lane.len() >= WAITING {
                return Err(Denial::later("too many pods of this server ask at once; try again", LATER));
            }
            lane.push_back(Waiting { server, record, pod, answer });
            if is_new && self.begun.send(key.clone()).is_err() {
                lanes.remove(&key);
            }
        }
        mine.await.unwrap_or_else(|_| Err(Denial::later("the replica ends; ask another one", Duration::ZERO)))
    }

    /// Writes until `closed`; what waits then is still written.
    pub(super) async fn keep(
        self: Arc<Self>,
        mut begins: mpsc::UnboundedReceiver<ServerKey>,
        closed: CancellationToken,
    ) {
        let mut lanes = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = closed.cancelled() => break,
                Some(key) = begins.recv() => drop(lanes.spawn(Arc::clone(&self).lane(key))),
                Some(_) = lanes.join_next() => {}
            }
        }
        while lanes.join_next().await.is_some() {}
    }

    /// Writes one ledger as long as somebody waits for it.
    async fn lane(self: Arc<Self>, key: ServerKey) {
        let mut remembered = None;
        loop {
            tokio::time::sleep(GATHER).await;
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
                    let _ = one.answer.send(answer.map_err(|why| denial(&why)));
                }
                remembered
            }
            Err(error) => {
                for one in batch {
                    let _ = one.answer.send(Err(unavailable(&error)));
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
                    Ok(meta) => return Ok((intake.was_written(), Some((meta, ledger)))),
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
                    format!("pod {}: certificate {} until {}", one.pod, recorded.serial, recorded.validity.not_after)
                }
                [(_, first), ..] => {
                    let mut names: Vec<&str> = done.iter().take(NAMED).map(|(one, _)| one.pod.as_str()).collect();
                    if done.len() > NAMED {
                        names.push("others");
                    }
                    format!("{} certificates until {}: pods {}", done.len(), first.validity.not_after, names.join(", "))
                }
            };
            if let Some((last, _)) = done.last() {
                self.events.about(&last.server, EventType::Normal, occasion.word(), "Issue", note);
            }
        }
    }
}

fn denial(why: &Unrecorded) -> Denial {
    let status = if why.may_pass() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CONFLICT };
    Denial::new(status, why.code(), why.to_string())
}

/// The compare-and-swap: a replace names the version that was read, a create fails where there is one.
pub(in crate::controller) async fn put(
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
pub(in crate::controller) fn ledger_name(key: &ServerKey) -> String {
    format!("{LEDGER}{}", &pki::sha256_hex(key.to_string().as_bytes())[..16])
}
