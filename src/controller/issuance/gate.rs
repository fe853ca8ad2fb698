//! The gate before the API server: so many requests a second and no more, in a fair order, and a time to come back for
//! those who would wait too long.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::queue::{FairQueue, Full};

/// Tokens that all replicas together have reviewed in a second. With the burst any second sees 200 at most.
const PER_SECOND: f64 = 190.0;
/// What may follow at once after a pause.
const BURST: f64 = 10.0;
/// Nobody is let wait who would wait longer than this.
const PATIENCE: Duration = Duration::from_secs(8);
/// Who waited so long while the API server lagged is told to come back.
const AT_MOST: Duration = Duration::from_secs(15);
/// The latest time to come back.
const LATEST: Duration = Duration::from_secs(60);
/// Requests at a time between the gate and their answer from the API server.
const AT_ONCE: usize = 64;

/// Whom there is no room for, and when there will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy {
    pub(super) after: Duration,
    /// Whether it is this source alone that asks too much.
    pub(super) alone: bool,
}

/// The gate of one replica.
pub(super) struct Gate {
    state: Mutex<State>,
    news: Notify,
    room: Arc<Semaphore>,
}

struct State {
    queue: FairQueue<oneshot::Sender<OwnedSemaphorePermit>>,
    pace: Pace,
    /// Times that were given to those who found the queue full, and to sources that have too much waiting.
    later: Instant,
    crowd: Instant,
}

impl State {
    /// The next time at which somebody who finds no room may come back: when those who wait now are through.
    fn busy(&mut self, now: Instant) -> Busy {
        let step = self.pace.step();
        let through = now + step * u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        Busy { after: book(&mut self.later, through, step, now), alone: false }
    }
}

/// A token bucket.
struct Pace {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Pace {
    /// How long until one more may pass; zero = it passes now.
    fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(BURST);
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Duration::ZERO;
        }
        Duration::from_secs_f64((1.0 - self.left) / self.per_second).max(Duration::from_millis(1))
    }

    fn step(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.per_second)
    }
}

/// The next free time from `first` on.
fn book(until: &mut Instant, first: Instant, step: Duration, now: Instant) -> Duration {
    *until = (*until).max(first) + step;
    let after = until.saturating_duration_since(now);
    *until = (*until).min(now + LATEST);
    after.min(LATEST)
}

impl Gate {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let pace = Pace { per_second: PER_SECOND, left: BURST, at: now };
        let state = State { queue: FairQueue::default(), pace, later: now, crowd: now };
        Self { state: Mutex::new(state), news: Notify::new(), room: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one's turn. The permit is held until the API server has answered.
    pub(super) async fn enter(&self, group: &str, source: IpAddr) -> Result<OwnedSemaphorePermit, Busy> {
        let (turn, mine) = oneshot::channel();
        self.wait_in(group, source, turn, Instant::now())?;
        self.news.notify_one();
        match tokio::time::timeout(AT_MOST, mine).await {
            Ok(Ok(permit)) => Ok(permit),
            // It gave way to another group, or the API server lags.
            _ => Err(self.state().busy(Instant::now())),
        }
    }

    fn wait_in(
        &self,
        group: &str,
        source: IpAddr,
        turn: oneshot::Sender<OwnedSemaphorePermit>,
        now: Instant,
    ) -> Result<(), Busy> {
        let mut state = self.state();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand at most")]
        let bound = ((state.pace.per_second * PATIENCE.as_secs_f64()) as usize).max(1);
        match state.queue.push(group, source, turn, bound) {
            // Whoever gave way hears it from its dropped turn.
            Ok(_) => Ok(()),
            Err(Full::Altogether) => Err(state.busy(now)),
            Err(Full::Source) => {
                let step = state.pace.step();
                let after = book(&mut state.crowd, now + Duration::from_secs(1), step, now);
                Err(Busy { after, alone: true })
            }
        }
    }

    /// Lets those pass whose turn it is, until `closed`; `replicas` says how many share the pace.
    pub(super) async fn keep(&self, replicas: impl Fn() -> usize, closed: CancellationToken) {
        let letting = async {
            while let Ok(permit) = Arc::clone(&self.room).acquire_owned().await {
                self.next(permit, &replicas).await;
            }
        };
        let _ = closed.run_until_cancelled(letting).await;
    }

    async fn next(&self, permit: OwnedSemaphorePermit, replicas: &impl Fn() -> usize) {
        loop {
            if self.state().queue.len() == 0 {
                self.news.notified().await;
                continue;
            }
            let wait = {
                let mut state = self.state();
                #[allow(clippy::cast_precision_loss, reason = "a handful")]
                let share = replicas().max(1) as f64;
                state.pace.per_second = PER_SECOND / share;
                state.pace.take(Instant::now())
            };
            if wait.is_zero() {
                self.admit(permit);
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Whoever has gone meanwhile takes nobody's turn.
    fn admit(&self, mut permit: OwnedSemaphorePermit) {
        let mut state = self.state();
        while let Some(turn) = state.queue.pop() {
            match turn.send(permit) {
                Ok(()) => return,
                Err(unused) => permit = unused,
            }
        }
        state.pace.left += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: usize) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0xc612_0000 + u32::try_from(number).unwrap()).into()
    }

    fn kept() -> Arc<Gate> {
        let gate = Arc::new(Gate::new());
        let keeper = Arc::clone(&gate);
        tokio::spawn(async move { keeper.keep(|| 1, CancellationToken::new()).await });
        gate
    }

    /// Asks until it is let in, as a sidecar does; answers how long that took.
    async fn client(gate: Arc<Gate>, group: &'static str, number: usize) -> Duration {
        let began = Instant::now();
        loop {
            match gate.enter(group, source(number)).await {
                Ok(_permit) => return began.elapsed(),
                Err(Busy { after, .. }) => tokio::time::sleep(after).await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_that_come_at_once_pass_within_a_minute_and_a_small_namespace_at_once() {
        let gate = kept();
        let began = Instant::now();
        let big: Vec<_> = (0..9_990).map(|number| tokio::spawn(client(Arc::clone(&gate), "big", number))).collect();
        let small: Vec<_> =
            (9_990..10_000).map(|number| tokio::spawn(client(Arc::clone(&gate), "small", number))).collect();
        let mut longest = Duration::ZERO;
        for one in small {
            longest = longest.max(one.await.unwrap());
        }
        for one in big {
            assert!(one.await.unwrap() <= Duration::from_secs(60));
        }
        assert!(began.elapsed() <= Duration::from_secs(60), "{:?}", began.elapsed());
        assert!(longest <= Duration::from_secs(10), "{longest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_sees_more_than_two_hundred() {
        let gate = kept();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let passed = Arc::new(Mutex::new(vec![]));
        let clients = (0..1_000).map(|number| {
            let (gate, passed) = (Arc::clone(&gate), Arc::clone(&passed));
            tokio::spawn(async move {
                client(gate, "shop", number).await;
                passed.lock().unwrap().push(Instant::now());
            })
        });
        for one in clients.collect::<Vec<_>>() {
            one.await.unwrap();
        }
        let passed = passed.lock().unwrap();
        for (index, start) in passed.iter().enumerate() {
            let within = passed[index..].iter().filter(|end| **end < *start + Duration::from_secs(1)).count();
            assert!(within <= 200, "{within}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_from_one_source_keeps_nobody_else_waiting() {
        let gate = kept();
        let flood: Vec<_> = (0..5_000)
            .map(|_| {
                let gate = Arc::clone(&gate);
                tokio::spawn(async move { gate.enter("thief", source(1)).await.map(drop) })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let waited = client(Arc::clone(&gate), "shop", 2).await;
        assert!(waited <= Duration::from_millis(50), "{waited:?}");
        let mut turned_away = 0;
        for one in flood {
            turned_away += usize::from(one.await.unwrap().is_err_and(|busy| busy.alone));
        }
        assert!(turned_away > 4_900, "{turned_away}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_takes_nobodys_turn() {
        let gate = Arc::new(Gate::new());
        for number in 0..100 {
            assert!(tokio::time::timeout(Duration::ZERO, gate.enter("shop", source(number))).await.is_err());
        }
        let keeper = Arc::clone(&gate);
        tokio::spawn(async move { keeper.keep(|| 1, CancellationToken::new()).await });
        assert!(client(gate, "shop", 200).await <= Duration::from_millis(1));
    }
}
