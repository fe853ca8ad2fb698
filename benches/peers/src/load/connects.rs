//! Connections one after another: connect, one byte there and back, close.
//!
//! The server closes first and the client afterwards: so the port that waits for stray segments (TIME_WAIT) is the
//! server's, which there is only one of, and clients do not run out of theirs.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    time::Instant,
};

use mio::{Events, Interest, Poll, Token, unix::SourceFd};
use socket2::{Domain, Socket, Type};

use super::{PATIENCE, Share, TICK, lanes::ready, tally::Tally, window::Window};

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    Connects,
    Sent,
    Answered,
    Ended,
}

/// A worker's connection; none if the last one failed and the next is not due yet.
struct Worker {
    stream: Option<TcpStream>,
    began: Instant,
    step: Step,
}

pub(super) fn run(to: SocketAddr, share: Share, window: Window) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut workers: Vec<_> =
        (0..share.connections).map(|_| Worker { stream: None, began: Instant::now(), step: Step::Ended }).collect();
    let mut looked = Instant::now();
    for (place, worker) in workers.iter_mut().enumerate() {
        worker.next(&poll, to, place, &mut tally);
    }
    while Instant::now() < window.ends {
        match poll.poll(&mut events, Some(TICK)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            let place = event.token().0;
            let worker = &mut workers[place];
            match worker.turn(event.is_read_closed()) {
                Ok(Step::Ended) => {
                    let now = Instant::now();
                    let measured = window.holds(now);
                    tally.moved(1, measured);
                    tally.succeeded(now - worker.began, measured);
                    worker.next(&poll, to, place, &mut tally);
                }
                Ok(_) => {}
                Err(error) => worker.fail(&error, &mut tally),
            }
        }
        if looked.elapsed() >= TICK {
            looked = Instant::now();
            for (place, worker) in workers.iter_mut().enumerate() {
                if worker.stream.is_none() {
                    worker.next(&poll, to, place, &mut tally);
                } else if worker.began.elapsed() > PATIENCE {
                    worker.fail(&ErrorKind::TimedOut.into(), &mut tally);
                }
            }
        }
    }
    Ok(tally)
}

impl Worker {
    /// Closes what was and begins the next connection.
    fn next(&mut self, poll: &Poll, to: SocketAddr, place: usize, tally: &mut Tally) {
        self.stream = None;
        self.began = Instant::now();
        self.step = Step::Connects;
        let begun = begin(to).and_then(|stream| {
            let stream = self.stream.insert(stream);
            // Over loopback it is established by now.
            self.step = send(stream)?;
            let interest =
                if self.step == Step::Sent { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            poll.registry().register(&mut SourceFd(&stream.as_raw_fd()), Token(place), interest)
        });
        if let Err(error) = begun {
            self.fail(&error, tally);
        }
    }

    fn fail(&mut self, error: &io::Error, tally: &mut Tally) {
        self.stream = None;
        tally.failed("connection", error);
    }

    fn turn(&mut self, ended: bool) -> io::Result<Step> {
        // An event of a connection that failed a moment ago.
        let Some(stream) = &mut self.stream else { return Ok(Step::Connects) };
        if self.step == Step::Connects {
            self.step = send(stream)?;
        }
        if self.step == Step::Sent {
            let mut byte = [0; 8];
            match ready(stream.read(&mut byte))? {
                None => return Ok(self.step),
                Some(1) if byte[0] == b'C' => self.step = Step::Answered,
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(_) => return Err(io::Error::new(ErrorKind::InvalidData, "not the byte that was sent")),
            }
        }
        if self.step == Step::Answered && ended {
            // Told by the event; read, because it may be a reset.
            match ready(stream.read(&mut [0; 8]))? {
                Some(0) => self.step = Step::Ended,
                Some(_) => return Err(io::Error::new(ErrorKind::InvalidData, "more than one byte")),
                None => {}
            }
        }
        Ok(self.step)
    }
}

fn begin(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket.into()),
    }
}

fn send(stream: &mut TcpStream) -> io::Result<Step> {
    match stream.write(b"C") {
        Ok(_) => Ok(Step::Sent),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => Ok(Step::Connects),
        Err(error) => Err(error),
    }
}
