//! The threads that carry data: each has a runtime and listeners of its own, and a connection stays where it began.
//!
//! The kernel deals connections out to the listeners by a hash, which is uneven for few of them: a shard that has more
//! than its share gives a new connection to the one that has least, before anything was done for it.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use tokio::{
    net::TcpStream,
    runtime::{Builder, Handle, Runtime},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// A shard may have a share more than the one with least: 1/4 of it.
const SLACK: usize = 4;

/// All threads of one proxy that carry data.
#[derive(Clone, Debug)]
pub(super) struct Shards(Arc<[Shard]>);

#[derive(Debug)]
struct Shard {
    handle: Handle,
    /// Connections that it carries.
    open: Arc<AtomicUsize>,
    /// Multiplexed ones that it was given.
    muxes: Arc<AtomicUsize>,
}

/// Where a connection is carried, and what counts it.
#[derive(Clone, Debug)]
pub(super) struct Host {
    shards: Shards,
    index: usize,
    tasks: TaskTracker,
}

impl Host {
    /// Carries a part of the connection beside it.
    pub(super) fn spawn(&self, part: impl Future<Output = ()> + Send + 'static) {
        self.shards.handle(self.index).spawn(self.tasks.track_future(part));
    }

    /// Carries the multiplexed connection `stream`, here or where fewest are: it will have many, which cannot be moved.
    pub(super) fn settle<F>(&self, stream: TcpStream, serve: impl FnOnce(TcpStream, Self) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let index = self.shards.choose(self.index, |shard| &shard.muxes, |own, least| own > least);
        let there = Self { index, ..self.clone() };
        there.give(&self.shards.0[index].muxes, Given::new(stream, index == self.index), serve);
    }

    /// Serves there what is `given`; among `counted` as long as that takes.
    fn give<F>(
        self,
        counted: &Arc<AtomicUsize>,
        given: Given,
        serve: impl FnOnce(TcpStream, Self) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        counted.fetch_add(1, Ordering::Relaxed);
        let carried = Carried { among: counted.clone(), _tracked: self.tasks.token() };
        let (given, handle) = (Box::new(given), self.shards.handle(self.index).clone());
        handle.spawn(async move {
            // What is captured is kept beside what is awaited: so that is made in here, and the rest is small.
            match given.taken() {
                Ok(stream) => serve(stream, self).await,
                // What cannot be taken over is closed, which is what would befall it at the first read.
                Err(error) => tracing::warn!(%error, "cannot take a connection over"),
            }
            drop(carried);
        });
    }
}

/// The threads themselves; they end with the token that they were started with.
#[derive(Debug)]
pub(super) struct Threads(Vec<JoinHandle<()>>);

/// A connection's place on a shard, left when dropped.
#[derive(Debug)]
struct Carried {
    among: Arc<AtomicUsize>,
    _tracked: TaskTrackerToken,
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.among.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection on its way to a shard.
enum Given {
    Here(TcpStream),
    Moved(io::Result<std::net::TcpStream>),
}

impl Given {
    fn new(stream: TcpStream, stays: bool) -> Self {
        if stays { Self::Here(stream) } else { Self::Moved(stream.into_std()) }
    }

    /// On the thread that will carry it.
    fn taken(self) -> io::Result<TcpStream> {
        match self {
            Self::Here(stream) => Ok(stream),
            Self::Moved(stream) => TcpStream::from_std(stream?),
        }
    }
}

impl Shards {
    /// Starts `count` threads that run until `stop`; what is left then on a shard is dropped.
    pub(super) fn start(count: usize, stop: &CancellationToken) -> io::Result<(Self, Threads)> {
        let (mut shards, mut threads) = (Vec::new(), Vec::new());
        for index in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            shards.push(Shard { handle, open: Arc::default(), muxes: Arc::default() });
            threads.push(spawn(index, runtime, stop.clone())?);
        }
        Ok((Self(shards.into()), Threads(threads)))
    }

    /// Where the shard `index` runs.
    pub(super) fn handle(&self, index: usize) -> &Handle {
        &self.0[index].handle
    }

    /// Serves a connection that the shard `index` accepted, there or where least is to do; `tasks` counts it.
    pub(super) fn carry<F>(
        &self,
        index: usize,
        tasks: &TaskTracker,
        stream: TcpStream,
        serve: impl FnOnce(TcpStream, Host) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let to = self.choose(index, |shard| &shard.open, |own, least| own > least + least / SLACK);
        let host = Host { shards: self.clone(), index: to, tasks: tasks.clone() };
        host.give(&self.0[to].open, Given::new(stream, to == index), serve);
    }

    /// The shard that has least of what `counted` counts, where the shard `index` has `too_many` beside that.
    fn choose(
        &self,
        index: usize,
        counted: impl Fn(&Shard) -> &Arc<AtomicUsize>,
        too_many: impl Fn(usize, usize) -> bool,
    ) -> usize {
        let count = |shard: &Shard| counted(shard).load(Ordering::Relaxed);
        let own = count(&self.0[index]);
        let least = self.0.iter().map(count).enumerate().min_by_key(|(_, count)| *count);
        least.filter(|(_, least)| too_many(own, *least)).map_or(index, |(other, _)| other)
    }
}

fn spawn(index: usize, runtime: Runtime, stop: CancellationToken) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || runtime.block_on(stop.cancelled()))
}

impl Threads {
    /// Waits for the end of all; their token must have been cancelled.
    pub(super) async fn ended(self) {
        let wait = || self.0.into_iter().for_each(|thread| drop(thread.join()));
        // A thread that panicked has ended too.
        let _ = tokio::task::spawn_blocking(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// The threads on which `count` connections are served that all came in on one shard.
    async fn spread(count: usize) -> Vec<String> {
        let stop = CancellationToken::new();
        let (shards, threads) = Shards::start(2, &stop).unwrap();
        let (said, mut heard) = mpsc::unbounded_channel();
        let tasks = TaskTracker::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..count {
            let (_, accepted) =
                tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async { listener.accept().await });
            let said = said.clone();
            shards.carry(0, &tasks, accepted.unwrap().0, |stream, _| async move {
                said.send((std::thread::current().name().unwrap_or_default().to_owned(), stream.peer_addr().is_ok()))
                    .unwrap();
                std::future::pending().await
            });
        }
        let mut names = vec![];
        for _ in 0..count {
            let (name, whole) = heard.recv().await.unwrap();
            assert!(whole);
            names.push(name);
        }
        assert_eq!(tasks.len(), count);
        stop.cancel();
        threads.ended().await;
        assert_eq!(tasks.len(), 0, "what a shard carried ends with it");
        names
    }

    #[tokio::test]
    async fn connections_that_all_come_in_on_one_shard_are_carried_by_both() {
        let names = spread(100).await;
        let other = names.iter().filter(|name| *name == "shard-1").count();
        assert!((40..=50).contains(&other), "{other} of 100");
    }

    #[tokio::test]
    async fn a_shard_that_has_no_more_than_its_share_keeps_what_it_accepts() {
        assert_eq!(spread(1).await, ["shard-0"]);
    }
}
