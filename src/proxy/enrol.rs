//! Keeps our certificate fresh: asks for the first one, renews in time by the wall clock, with a new key each time.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    channel::{Call, Channel, ChannelError, Control},
    credentials::{Candidate, CredentialError, Leaf},
    shared::Shared,
};
use crate::{
    brief::{Brief, CertificateResponse, MAX_CERTIFICATE_REQUEST},
    pki::renewal,
    telemetry,
};

/// Deadline of an issuance.
const DEADLINE: Duration = Duration::from_secs(20);
/// Bound of an answer with a chain and roots.
const MAX_RESPONSE: usize = 1024 * 1024;
/// The wall clock is consulted at least this often: it may jump.
const LOOK: Duration = Duration::from_secs(1);
/// An early renewal so long after the last certificate is no sign of a circle.
const CALM: Duration = Duration::from_secs(60);
/// For so long a request whose answer was lost is made once more with the same key: the controller recorded it, maybe, and
/// answers it with the same certificate within five minutes.
const SAME_KEY: Duration = Duration::from_secs(240);

#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("cannot read the token {path}")]
    Token {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the certificate request is larger than the contract allows")]
    TooLarge,
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

impl EnrolError {
    const fn after(&self) -> Option<Duration> {
        match self {
            Self::Channel(error) => error.after(),
            Self::Token { .. } | Self::TooLarge | Self::Credential(_) => None,
        }
    }

    /// Whether the controller may have recorded a certificate that never came.
    fn is_lost(&self) -> bool {
        match self {
            Self::Channel(ChannelError::Denied { status, .. }) => status.is_server_error(),
            Self::Channel(_) => true,
            Self::Token { .. } | Self::TooLarge | Self::Credential(_) => false,
        }
    }
}

/// The key that a certificate is asked for, while the answer may have been lost.
#[derive(Default)]
struct Asked(Option<(Candidate, Instant)>);

impl Asked {
    /// The same key as before, or a new one.
    fn candidate(&mut self) -> Result<&Candidate, CredentialError> {
        let (candidate, since) = match self.0.take().filter(|(_, since)| since.elapsed() < SAME_KEY) {
            Some(before) => before,
            None => (Candidate::new()?, Instant::now()),
        };
        Ok(&self.0.insert((candidate, since)).0)
    }

    fn is_over(&mut self) {
        self.0 = None;
    }
}

/// Why a certificate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// There is none, or its time has come.
    Regular,
    /// Before its time: it does not stand for us, or is not what the brief wants.
    Early,
}

/// Whether a certificate must be asked for now; `signed` says since when another authority signs than the one that
/// signed ours.
fn is_due(leaf: Option<&Leaf>, brief: Option<&Brief>, signed: Option<Timestamp>, now: Timestamp) -> Option<Due> {
    let Some(leaf) = leaf else { return Some(Due::Regular) };
    if brief.is_some_and(|brief| brief.stands().is_err()) {
        // Nobody issues anything to a server that is suspended or no longer declared. But it hears that it may go on
        // over the channel alone, and that wants a certificate which the controller accepts.
        let deaf = leaf.is_rejected() || leaf.identity.not_after <= now;
        return deaf.then_some(Due::Early);
    }
    // Of the future: the clock went back since it was taken.
    let future = leaf.identity.not_before > now;
    let unfit = |brief: &Brief| leaf.differs_from(brief) || leaf.has_lost_its_issuer(brief);
    if leaf.is_revoked() || leaf.is_rejected() || future || brief.is_some_and(unfit) {
        return Some(Due::Early);
    }
    let turn = |since: Timestamp, brief: &Brief| {
        let within = Duration::from_secs(brief.renew_within_seconds.into());
        since.checked_add(within.mul_f64(renewal::share(&leaf.identity.serial))).unwrap_or(since)
    };
    if signed.zip(brief).is_some_and(|(since, brief)| turn(since, brief) <= now) {
        return Some(Due::Early);
    }
    (leaf.renew_at <= now).then_some(Due::Regular)
}

/// Runs for the proxy's whole life.
pub(super) async fn run(shared: Arc<Shared>, control: Control, token_file: PathBuf) {
    let mut pace = Pace::default();
    let mut asked = Asked::default();
    let mut attempt = 0;
    loop {
        let due = wait(&shared, &mut pace).await;
        let outcome = enrol(&shared, &control, &token_file, &mut asked).await;
        if !outcome.as_ref().is_err_and(EnrolError::is_lost) {
            asked.is_over();
        }
        match outcome {
            Ok(leaf) => {
                attempt = 0;
                pace.took(due);
                shared.adopt_leaf(leaf);
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, attempt, "certificate not obtained");
                match error.after() {
                    // There will be room then, and not sooner. Those who hear the same second spread over it.
                    Some(after) => {
                        tokio::time::sleep(after + Duration::from_secs(1).mul_f64(telemetry::jitter())).await;
                    }
                    None => pause(&shared, attempt).await,
                }
                attempt = attempt.saturating_add(1);
            }
        }
    }
}

/// What keeps renewals that did not bring what they were for from following each other in a hurry.
#[derive(Debug, Default)]
struct Pace {
    /// Early renewals in a row.
    early: u32,
    last: Option<Instant>,
    /// The issuer that ours is to be replaced for, our serial, and since when.
    signed: Option<(String, Vec<u8>, Timestamp)>,
}

impl Pace {
    fn took(&mut self, due: Due) {
        let calm = self.last.is_none_or(|last| last.elapsed() >= CALM);
        self.early = match due {
            Due::Regular => 0,
            Due::Early if calm => 1,
            Due::Early => self.early.saturating_add(1),
        };
        self.last = Some(Instant::now());
    }

    fn due(&mut self, shared: &Shared) -> Option<Due> {
        let now = telemetry::now();
        let (leaf, generation) = (shared.leaf().borrow().clone(), shared.in_force());
        let brief = generation.as_ref().map(|generation| generation.brief());
        let other = leaf.as_deref().zip(brief).filter(|(leaf, brief)| leaf.is_of_another_issuer(brief));
        self.signed = other.map(|(leaf, brief)| {
            let known = self.signed.take().filter(|(issuer, serial, _)| {
                // The turn of one certificate is fixed when the news comes, and not thrown anew at each look.
                *issuer == brief.issuer && *serial == leaf.identity.serial
            });
            known.unwrap_or_else(|| (brief.issuer.clone(), leaf.identity.serial.clone(), now))
        });
        is_due(leaf.as_deref(), brief, self.signed.as_ref().map(|(_, _, since)| *since), now)
    }
}

/// Waits until a certificate is due.
async fn wait(shared: &Shared, pace: &mut Pace) -> Due {
    loop {
        if let Some(due) = pace.due(shared) {
            let again = pace.last.is_some_and(|last| last.elapsed() < CALM);
            if due == Due::Early && again {
                pause(shared, pace.early + 1).await;
            }
            return due;
        }
        tokio::select! {
            () = shared.renew.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn pause(shared: &Shared, attempt: u32) {
    let life = shared.leaf().borrow().as_ref().map_or(renewal::FIRST_LIFETIME, |leaf| {
        let seconds = leaf.identity.not_after.as_second() - leaf.began.as_second();
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    });
    tokio::time::sleep(renewal::retry_after(attempt, telemetry::jitter(), life)).await;
}

async fn enrol(
    shared: &Shared,
    control: &Control,
    token_file: &PathBuf,
    asked: &mut Asked,
) -> Result<Leaf, EnrolError> {
    // Read anew each time: the kubelet rotates it.
    let token = tokio::fs::read_to_string(token_file)
        .await
        .map_err(|source| EnrolError::Token { path: token_file.display().to_string(), source })?;
    let candidate = asked.candidate()?;
    let request = candidate.request()?;
    if request.csr.len() > MAX_CERTIFICATE_REQUEST / 2 {
        return Err(EnrolError::TooLarge);
    }
    let lifetime = shared.in_force().map(|generation| generation.brief().lifetime_seconds);
    let call = Call { path: "/v1/certificate", bearer: Some(token.trim()), deadline: DEADLINE, at_most: MAX_RESPONSE };
    // A connection of its own, once a renewal: nothing of an old certificate clings to it.
    let answer: CertificateResponse = Channel::new(&shared.guard, control, None)?.post(&call, &request).await?;
    let leaf = candidate.join(&answer, &shared.place.pod_uid, lifetime, (telemetry::now(), telemetry::jitter()))?;
    if let Err(error) = leaf.store(&shared.place.state_dir) {
        tracing::warn!(%error, "certificate is not kept for a restart");
    }
    Ok(leaf)
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine};
    use hyper::StatusCode;

    use super::*;
    use crate::{
        brief::{Cursor, Egress, INTERNAL, OnPeerExpiry, Scope, ScopeNames, Standing, VERSION},
        pki::csr::Csr,
        proxy::credentials::tests::leaf,
    };

    const NOW: i64 = 1_800_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What asks for nothing of a leaf of an hour.
    fn brief(leaf: &Leaf) -> Brief {
        let issuer = leaf.identity.issuer.clone().unwrap();
        let issuers = vec![issuer.clone(), "00ff".to_owned()];
        Brief {
            version: VERSION,
            cursor: Cursor::default(),
            identity: leaf.identity.id.clone(),
            standing: Standing::Active,
            names: leaf.identity.dns_names.iter().cloned().collect(),
            lifetime_seconds: 3600,
            issuer,
            renew_within_seconds: 1000,
            on_peer_expiry: OnPeerExpiry::default(),
            ports: vec![],
            edges: vec![],
            egress: Egress::default(),
            scopes: vec![Scope {
                id: INTERNAL.to_owned(),
                names: ScopeNames::Servers,
                anchors: vec![],
                issuers,
                revocation: None,
            }],
            drain_seconds: 30,
            partners: vec![],
            web_roots: vec![],
        }
    }

    #[test]
    fn a_certificate_is_asked_for_when_there_is_a_reason_and_never_for_a_server_that_may_have_none() {
        type Change = fn(&Leaf, &mut Brief);
        let same: Change = |_, _| ();
        let cases: [(&str, Change, i64, Option<Due>); 12] = [
            ("nothing", same, 60, None),
            ("its time", same, 1500, Some(Due::Regular)),
            ("the clock went back", same, -3600, Some(Due::Early)),
            ("revoked", |leaf, _| assert!(leaf.revoke()), 60, Some(Due::Early)),
            ("rejected", |leaf, _| leaf.reject(), 60, Some(Due::Early)),
            ("lifetime", |_, brief| brief.lifetime_seconds = 60, 60, Some(Due::Early)),
            ("issuer out of use", |_, brief| brief.scopes[0].issuers.truncate(0), 60, Some(Due::Early)),
            ("suspended", |_, brief| brief.standing = Standing::Suspended, 1500, None),
            ("withdrawn", |_, brief| brief.standing = Standing::Withdrawn, 1500, None),
            (
                "suspended and revoked",
                |leaf, brief| {
                    leaf.revoke();
                    brief.standing = Standing::Suspended;
                },
                60,
                None,
            ),
            (
                "suspended and not heard any more",
                |leaf, brief| {
                    leaf.reject();
                    brief.standing = Standing::Suspended;
                },
                60,
                Some(Due::Early),
            ),
            ("suspended and expired", |_, brief| brief.standing = Standing::Suspended, 3600, Some(Due::Early)),
        ];
        for (why, change, later, expected) in cases {
            let (leaf, _) = leaf(3600, at(NOW));
            let mut brief = brief(&leaf);
            change(&leaf, &mut brief);
            assert_eq!(is_due(Some(&leaf), Some(&brief), None, at(NOW + later)), expected, "{why}");
        }
        assert_eq!(is_due(None, None, None, at(NOW)), Some(Due::Regular));
    }

    #[test]
    fn a_new_issuer_is_asked_at_a_moment_of_ones_own_within_the_window() {
        let (leaf, _) = leaf(3600, at(NOW));
        let brief = Brief { issuer: "00ff".to_owned(), ..brief(&leaf) };
        assert!(leaf.is_of_another_issuer(&brief));
        let turn = 1000.0 * renewal::share(&leaf.identity.serial);
        #[allow(clippy::cast_possible_truncation, reason = "at most a thousand")]
        let turn = turn as i64;
        let due = |later| is_due(Some(&leaf), Some(&brief), Some(at(NOW)), at(NOW + later));
        assert_eq!(due(turn - 1), None);
        assert_eq!(due(turn + 1), Some(Due::Early));
    }

    #[tokio::test(start_paused = true)]
    async fn early_renewals_in_a_row_slow_down() {
        let mut pace = Pace::default();
        for expected in 1..5 {
            pace.took(Due::Early);
            assert_eq!(pace.early, expected);
        }
        tokio::time::advance(CALM).await;
        pace.took(Due::Early);
        assert_eq!(pace.early, 1, "a new reason");
        pace.took(Due::Regular);
        assert_eq!(pace.early, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_answer_was_lost_keeps_its_key_for_four_minutes() {
        let denied = |status| {
            EnrolError::Channel(ChannelError::Denied {
                status,
                code: String::new(),
                message: String::new(),
                after: None,
            })
        };
        assert!(
            EnrolError::Channel(ChannelError::Silent).is_lost() && denied(StatusCode::SERVICE_UNAVAILABLE).is_lost()
        );
        assert!(!denied(StatusCode::CONFLICT).is_lost(), "the key is not wanted any more");
        let mut asked = Asked::default();
        let mut key = async |seconds| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            let request = asked.candidate().unwrap().request().unwrap();
            Csr::parse(&BASE64_STANDARD.decode(request.csr).unwrap()).unwrap().key_sha256()
        };
        let first = key(0).await;
        assert!(first == key(120).await && first == key(119).await);
        assert!(first != key(1).await);
    }
}
