//! Many connections at once, played by one process: those that stall, those that talk, and callers that measure.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::roles::{Fared, call, once};

/// Dials under way at a time.
const DIALS: usize = 32;
/// How often a crowd tells how it fares.
const TELLS: Duration = Duration::from_millis(25);
/// What a connection that does not read sends, if it can: more than all buffers between here and there hold.
const UNREAD: &[u8] = &[7; 1 << 23];

/// Connections that say little and then nothing.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stall {
    pub(crate) to: SocketAddr,
    /// The first of the addresses that are dialled from.
    pub(crate) first: Ipv4Addr,
    pub(crate) sources: u32,
    pub(crate) count: usize,
    /// They say these in turn.
    pub(crate) words: Vec<Vec<u8>>,
}

/// Connections that talk.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Talk {
    pub(crate) to: SocketAddr,
    pub(crate) text: String,
    pub(crate) count: usize,
    /// So many of them send a lot and read nothing.
    pub(crate) deaf: usize,
    /// Whether they stay and talk again and again, or end after their first word.
    pub(crate) stay: bool,
}

/// How a crowd fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Crowd {
    /// Dialled so far.
    pub(crate) dialled: usize,
    /// Of these, without an answer to their first word.
    pub(crate) refused: usize,
    /// Ended after that; of those that stall: ended at all.
    pub(crate) lost: usize,
    /// How often every one that stays has been answered.
    pub(crate) rounds: usize,
}

/// What callers met.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Calls {
    /// Microseconds from dial to answer, in order of size.
    pub(crate) micros: Vec<u64>,
    /// Those that were not answered.
    pub(crate) failed: Vec<Fared>,
}

impl Calls {
    /// The time that `percent` of the calls did not exceed.
    pub(crate) fn at(&self, percent: usize) -> f64 {
        self.micros[(self.micros.len() - 1) * percent / 100] as f64
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.micros.extend(other.micros);
        self.micros.sort_unstable();
        self.failed.extend(other.failed);
    }
}

pub(super) async fn calls(address: SocketAddr, text: &str, count: usize, tell: impl Fn(&str)) {
    let mut calls = Calls::default();
    for _ in 0..count {
        let begun = Instant::now();
        match call(address, text).await {
            Fared::Answered => calls.micros.push(begun.elapsed().as_micros().try_into().unwrap()),
            other => calls.failed.push(other),
        }
    }
    calls.micros.sort_unstable();
    tell(&serde_json::to_string(&calls).unwrap());
}

pub(super) async fn stall(stall: Stall, tell: impl Fn(&str)) {
    let stall = Arc::new(stall);
    let (dialled, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let dials = Arc::new(Semaphore::new(DIALS));
    let mut tasks = JoinSet::new();
    for index in 0..stall.count {
        let (stall, dialled, ended, dials) = (stall.clone(), dialled.clone(), ended.clone(), dials.clone());
        tasks.spawn(async move {
            let dial = dials.acquire_owned().await.unwrap();
            let stream = from_one_of(&stall, index).await;
            dialled.fetch_add(1, Ordering::Relaxed);
            drop(dial);
            // A reset may be there before the connect is reported.
            if let Ok(mut stream) = stream {
                let _ = stream.write_all(&stall.words[index % stall.words.len()]).await;
                let _ = stream.read_u8().await;
            }
            ended.fetch_add(1, Ordering::Relaxed);
        });
    }
    loop {
        let (dialled, lost) = (dialled.load(Ordering::Relaxed), ended.load(Ordering::Relaxed));
        tell(&serde_json::to_string(&Crowd { dialled, lost, ..Crowd::default() }).unwrap());
        tokio::time::sleep(TELLS).await;
    }
}

async fn from_one_of(stall: &Stall, index: usize) -> std::io::Result<TcpStream> {
    let number = u32::try_from(index).unwrap() % stall.sources;
    let source = Ipv4Addr::from_bits(stall.first.to_bits() + number);
    let socket = TcpSocket::new_v4()?;
    socket.bind((IpAddr::from(source), 0).into())?;
    socket.connect(stall.to).await
}

/// What the connections of a crowd that talks have in common.
struct Talking {
    talk: Talk,
    crowd: Mutex<Crowd>,
    dials: Semaphore,
    /// The round that is to be talked in.
    round: watch::Sender<usize>,
    /// How many have been answered in it.
    answered: AtomicUsize,
}

impl Talking {
    fn count(&self, what: impl FnOnce(&mut Crowd)) {
        what(&mut self.crowd.lock().unwrap());
    }

    fn crowd(&self) -> Crowd {
        *self.crowd.lock().unwrap()
    }
}

pub(super) async fn talk(talk: Talk, tell: impl Fn(&str)) {
    let (count, deaf) = (talk.count, talk.deaf);
    let talking = Arc::new(Talking {
        talk,
        crowd: Mutex::default(),
        dials: Semaphore::new(DIALS),
        round: watch::Sender::new(0),
        answered: AtomicUsize::new(0),
    });
    let mut tasks = JoinSet::new();
    for index in 0..count {
        tasks.spawn(one_of(talking.clone(), index < deaf));
    }
    loop {
        let crowd = talking.crowd();
        tell(&serde_json::to_string(&crowd).unwrap());
        let all = count.saturating_sub(deaf + crowd.refused + crowd.lost);
        if crowd.dialled == count && talking.answered.load(Ordering::Relaxed) >= all {
            talking.count(|crowd| crowd.rounds += 1);
            talking.answered.store(0, Ordering::Relaxed);
            talking.round.send_modify(|round| *round += 1);
        }
        tokio::time::sleep(TELLS).await;
    }
}

async fn one_of(talking: Arc<Talking>, deaf: bool) {
    let dial = talking.dials.acquire().await.unwrap();
    let mut round = talking.round.subscribe();
    let stream = TcpStream::connect(talking.talk.to).await;
    let first = match stream {
        Ok(mut stream) => match once(&mut stream, &talking.talk.text).await {
            Fared::Answered => Some(stream),
            _ => None,
        },
        Err(_) => None,
    };
    talking.count(|crowd| {
        crowd.dialled += 1;
        crowd.refused += usize::from(first.is_none());
    });
    drop(dial);
    let Some(mut stream) = first.filter(|_| talking.talk.stay) else { return };
    if deaf {
        // All that fits between here and there; the writer then waits for ever.
        let _ = stream.write_all(UNREAD).await;
        return std::future::pending().await;
    }
    loop {
        talking.answered.fetch_add(1, Ordering::Relaxed);
        round.changed().await.unwrap();
        if once(&mut stream, &talking.talk.text).await != Fared::Answered {
            return talking.count(|crowd| crowd.lost += 1);
        }
    }
}
