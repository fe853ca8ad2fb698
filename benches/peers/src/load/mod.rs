//! The load generator: a server that answers every load on one port, and a client that drives one load at a time.
//!
//! Whatever it costs dilutes every ratio between the proxies in its middle. Hence threads over epoll, buffers that are
//! made once, and no allocation for a request or a chunk.

mod bulk;
mod connects;
mod fixed;
mod idle;
mod lanes;
mod paced;
mod pattern;
mod requests;
mod server;
mod session;
mod tally;
mod window;

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{anyhow, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
pub use tally::Outcome;

use self::{tally::Tally, window::Window};

/// A wait of the generator that lasts longer is a failure of what it waits for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a loop looks up from its events: for the end of the load, for what is overdue, and to try again.
const TICK: Duration = Duration::from_millis(100);

/// Of keep-alive HTTP: all that is ever asked.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// What a client does to an address.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "load", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Load {
    /// Bytes in one direction, as many as pass
    Bulk { up: bool, connections: usize, seconds: f64, warmup: f64 },
    /// Keep-alive HTTP with answers of 1 KiB, each connection asks again as soon as it is answered
    Requests { connections: usize, seconds: f64, warmup: f64 },
    /// Requests of 64 bytes at a rate, answered with `size` bytes; latencies from when each was meant to be sent
    Paced { rate: u32, connections: usize, size: usize, seconds: f64, warmup: f64 },
    /// One connection after another for each worker: connect, one byte there and back, close
    Connects { workers: usize, seconds: f64, warmup: f64 },
    /// Connections that moved one byte each way and are held until standard input ends
    Idle { connections: usize },
    /// The latencies of `Paced` while `Connects` runs beside it
    Storm { rate: u32, connections: usize, size: usize, workers: usize, seconds: f64, warmup: f64 },
    /// Fixed work, one thing after another, for counting what it costs; every byte is verified
    Fixed { bytes_up: u64, bytes_down: u64, requests: u64, connects: u64 },
}

/// Answer every load on one port, until killed.
#[derive(Args)]
pub struct Serve {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Put one load on an address.
#[derive(Args)]
pub struct Drive {
    #[arg(long)]
    to: SocketAddr,
    /// As JSON, such as {"load":"requests","connections":32,"seconds":5,"warmup":1}
    #[arg(long, value_parser = load)]
    load: Load,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn load(json: &str) -> Result<Load, serde_json::Error> {
    serde_json::from_str(json)
}

impl Serve {
    /// Serves until the process ends.
    pub fn run(self) -> anyhow::Result<()> {
        server::bind(self.listen, self.threads)?.run()
    }
}

impl Drive {
    /// Runs the load and prints its outcome.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { to, load, threads } = self;
        if let Load::Idle { connections } = load {
            return idle::run(to, connections);
        }
        println!("{}", serde_json::to_string(&drive(to, &load, threads)?)?);
        Ok(())
    }
}

fn drive(to: SocketAddr, load: &Load, threads: usize) -> anyhow::Result<Outcome> {
    Ok(match *load {
        Load::Bulk { up, connections, seconds, warmup } => {
            let window = Window::new(warmup, seconds);
            spread(threads, connections, |share| bulk::run(to, share, up, window))?.outcome(seconds)
        }
        Load::Requests { connections, seconds, warmup } => {
            let window = Window::new(warmup, seconds);
            spread(threads, connections, |share| requests::run(to, share, window))?.outcome(seconds)
        }
        Load::Paced { rate, connections, size, seconds, warmup } => {
            let (window, pace) = (Window::new(warmup, seconds), paced::Pace { rate, size });
            spread(threads, connections, |share| paced::run(to, share, pace, window))?.outcome(seconds)
        }
        Load::Connects { workers, seconds, warmup } => {
            let window = Window::new(warmup, seconds);
            spread(threads, workers, |share| connects::run(to, share, window))?.outcome(seconds)
        }
        Load::Storm { rate, connections, size, workers, seconds, warmup } => {
            let (window, pace) = (Window::new(warmup, seconds), paced::Pace { rate, size });
            let threads = threads.div_ceil(2);
            let (mut paced, connects) = thread::scope(|scope| {
                let beside = scope.spawn(|| spread(threads, workers, |share| connects::run(to, share, window)));
                let paced = spread(threads, connections, |share| paced::run(to, share, pace, window));
                Ok::<_, anyhow::Error>((paced?, beside.join().map_err(|_| anyhow!("a thread of the storm panicked"))??))
            })?;
            paced.beside(connects);
            paced.outcome(seconds)
        }
        Load::Fixed { bytes_up, bytes_down, requests, connects } => {
            fixed::run(to, &fixed::Work { bytes_up, bytes_down, requests, connects })
        }
        Load::Idle { .. } => bail!("idle connections are held, they have no outcome"),
    })
}

/// What one thread has of a load.
#[derive(Clone, Copy)]
struct Share {
    connections: usize,
    thread: usize,
    threads: usize,
}

/// Runs a load of so many connections on threads that have about the same number of them.
fn spread(
    threads: usize,
    connections: usize,
    run: impl Fn(Share) -> anyhow::Result<Tally> + Sync,
) -> anyhow::Result<Tally> {
    let threads = threads.clamp(1, connections.max(1));
    let run = &run;
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let connections = connections / threads + usize::from(thread < connections % threads);
                scope.spawn(move || run(Share { connections, thread, threads }))
            })
            .collect();
        let mut all = Tally::new();
        for thread in running {
            all.add(thread.join().map_err(|_| anyhow!("a thread of the load panicked"))??);
        }
        Ok(all)
    })
}
