//! Requests at a fixed rate, whatever the answers do (open loop).
//!
//! Each latency counts from the time at which the request was meant to be sent: where one waits for a free connection,
//! its wait is part of what a user would have seen.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::{
    PATIENCE, Share, TICK,
    lanes::{Lanes, ready},
    pattern::{self, CHUNK},
    session::PACED_REQUEST,
    tally::Tally,
    window::Window,
};

/// Requests are sent at so many a second, by all threads together, and answered with so many bytes.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) rate: u32,
    pub(super) size: usize,
}

/// The request that a connection waits for.
#[derive(Default)]
struct Asked {
    meant: Option<Instant>,
    /// Of this answer
    missing: usize,
    /// Of all answers on this connection
    read: u64,
}

pub(super) fn run(to: SocketAddr, share: Share, pace: Pace, window: Window) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    let size = u32::try_from(pace.size)?;
    anyhow::ensure!(pace.rate > 0 && size > 0, "a rate and a size of nothing is no load");
    let first = [&b"P"[..], &size.to_le_bytes()].concat();
    let mut free = Vec::with_capacity(2 * share.connections);
    let lanes = Lanes::<Asked>::open(to, &first, Interest::READABLE, share.connections, &mut tally, |place, _, _| {
        free.push(place);
        Ok(())
    })?;
    let schedule = Schedule::new(pace.rate, share, window)?;
    lanes.also(&schedule.timer, Token(usize::MAX))?;
    let (waiting, buffer) = (VecDeque::with_capacity(schedule.expected), vec![0; CHUNK]);
    Paced { size: pace.size, window, lanes, free, waiting, schedule, buffer, tally }.run()
}

/// When requests are meant to be sent, and the timer that wakes for them.
struct Schedule {
    period: Duration,
    next: Instant,
    timer: OwnedFd,
    armed: Option<Instant>,
    expected: usize,
}

impl Schedule {
    fn new(rate: u32, share: Share, window: Window) -> io::Result<Self> {
        let now = Instant::now();
        let between = Duration::from_secs(1) / rate;
        let period = between * share.threads as u32;
        let expected = window.ends.duration_since(now).as_secs_f64() / period.as_secs_f64();
        // Poll knows milliseconds only, and sleeps up to 50 µs longer than it is told; a timer does neither.
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let next = now + between * share.thread as u32;
        Ok(Self { period, next, timer, armed: None, expected: expected as usize + 1 })
    }

    fn arm(&mut self, now: Instant) -> io::Result<()> {
        if self.armed == Some(self.next) {
            return Ok(());
        }
        self.armed = Some(self.next);
        // A timer of zero would never ring.
        let wait = self.next.saturating_duration_since(now).max(Duration::from_nanos(1));
        let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        let spec = Itimerspec { it_interval: nothing, it_value: once };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}

/// One thread of the load.
struct Paced {
    size: usize,
    window: Window,
    lanes: Lanes<Asked>,
    /// Places of connections that wait for nothing; some may have been lost meanwhile.
    free: Vec<usize>,
    /// Requests that are due and have no connection.
    waiting: VecDeque<Instant>,
    schedule: Schedule,
    buffer: Vec<u8>,
    tally: Tally,
}

impl Paced {
    fn run(mut self) -> anyhow::Result<Tally> {
        let mut events = Events::with_capacity(1024);
        let mut looked = Instant::now();
        loop {
            let now = Instant::now();
            self.send(now);
            if now >= self.window.ends && (self.is_answered() || now > self.window.ends + PATIENCE) {
                break;
            }
            if now < self.window.ends {
                self.schedule.arm(now)?;
            }
            self.lanes.wait(&mut events, false)?;
            for event in &events {
                self.receive(event.token().0);
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.look(looked);
            }
        }
        self.give_up();
        Ok(self.tally)
    }

    /// Sends what is due on the connections that are free.
    fn send(&mut self, now: Instant) {
        while self.schedule.next <= now && self.schedule.next < self.window.ends {
            self.waiting.push_back(self.schedule.next);
            self.schedule.next += self.schedule.period;
        }
        while let Some(meant) = self.waiting.front() {
            let Some(place) = self.free.pop() else { return };
            let Some((stream, asked)) = self.lanes.at(place) else { continue };
            if asked.meant.is_some() {
                continue;
            }
            match stream.write_all(&[b'r'; PACED_REQUEST]) {
                Ok(()) => {
                    (asked.meant, asked.missing) = (Some(*meant), self.size);
                    self.waiting.pop_front();
                }
                Err(error) => self.lose(place, &error),
            }
        }
    }

    fn receive(&mut self, place: usize) {
        // Not of the timer, and not of a connection that was lost a moment ago.
        let Some((stream, asked)) = self.lanes.at(place) else { return };
        match read(stream, asked, &mut self.buffer) {
            Ok(0) => {}
            Ok(length) => {
                let Some(meant) = asked.meant else { return };
                let measured = self.window.holds(meant);
                if asked.missing == 0 {
                    asked.meant = None;
                    self.free.push(place);
                    self.tally.succeeded(meant.elapsed(), measured);
                }
                self.tally.moved(length, measured);
            }
            Err(error) => self.lose(place, &error),
        }
    }

    fn lose(&mut self, place: usize, error: &io::Error) {
        let meant = self.lanes.at(place).and_then(|(_, asked)| asked.meant);
        if let Some(meant) = meant.filter(|meant| self.window.holds(*meant)) {
            self.tally.took(meant.elapsed());
        }
        self.tally.failed("paced request", error);
        self.lanes.lose(place);
    }

    /// Gives up what is overdue, and replaces what was lost.
    fn look(&mut self, now: Instant) {
        for place in 0..self.lanes.len() {
            let meant = self.lanes.at(place).and_then(|(_, asked)| asked.meant);
            if meant.is_some_and(|meant| now.saturating_duration_since(meant) > PATIENCE) {
                self.lose(place, &ErrorKind::TimedOut.into());
            }
        }
        let free = &mut self.free;
        self.lanes.mend(&mut self.tally, |place, _, _| {
            free.push(place);
            Ok(())
        });
    }

    fn is_answered(&mut self) -> bool {
        self.waiting.is_empty()
            && (0..self.lanes.len()).all(|place| self.lanes.at(place).is_none_or(|(_, asked)| asked.meant.is_none()))
    }

    /// What was never answered has taken at least as long as it was waited for.
    fn give_up(&mut self) {
        let late = io::Error::from(ErrorKind::TimedOut);
        for place in 0..self.lanes.len() {
            if self.lanes.at(place).is_some_and(|(_, asked)| asked.meant.is_some()) {
                self.lose(place, &late);
            }
        }
        for meant in std::mem::take(&mut self.waiting) {
            if self.window.holds(meant) {
                self.tally.took(meant.elapsed());
            }
            self.tally.failed("paced request without a connection", &late);
        }
    }
}

/// Reads what there is of an answer.
fn read(stream: &mut TcpStream, asked: &mut Asked, buffer: &mut [u8]) -> io::Result<usize> {
    let mut all = 0;
    loop {
        let Some(length) = ready(stream.read(buffer))? else { return Ok(all) };
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if length > asked.missing || !pattern::seems(&buffer[..length], asked.read) {
            return Err(io::Error::new(ErrorKind::InvalidData, "not the answer"));
        }
        asked.missing -= length;
        asked.read += length as u64;
        all += length;
        // Complete: a FIN behind it is met by the next request.
        if asked.missing == 0 {
            return Ok(all);
        }
    }
}
