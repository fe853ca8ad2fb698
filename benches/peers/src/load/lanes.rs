//! The connections of a client's thread: opened before the load begins, replaced when they fail.

use std::{
    io::{self, ErrorKind, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    time::Duration,
};

use mio::{Events, Interest, Poll, Token, unix::SourceFd};

use super::{PATIENCE, TICK, tally::Tally};

/// A connection without delay and with bounds on every blocking wait, which has sent its first bytes.
pub(super) fn connect(to: SocketAddr, first: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(first)?;
    Ok(stream)
}

/// What a call on a socket that must not wait came to; none if it would have to.
pub(super) fn ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Connections of one load, each with what the load knows of it.
pub(super) struct Lanes<T> {
    poll: Poll,
    to: SocketAddr,
    first: Vec<u8>,
    interest: Interest,
    lanes: Vec<Option<(TcpStream, T)>>,
    missing: usize,
}

impl<T: Default> Lanes<T> {
    /// Opens so many; what fails is tried again with each `mend`.
    pub(super) fn open(
        to: SocketAddr,
        first: &[u8],
        interest: Interest,
        connections: usize,
        tally: &mut Tally,
        begin: impl FnMut(usize, &mut TcpStream, &mut T) -> io::Result<()>,
    ) -> io::Result<Self> {
        let lanes = (0..connections).map(|_| None).collect();
        let mut lanes = Self { poll: Poll::new()?, to, first: first.to_vec(), interest, lanes, missing: connections };
        lanes.mend(tally, begin);
        Ok(lanes)
    }

    /// Opens what is missing and has each begin.
    pub(super) fn mend(
        &mut self,
        tally: &mut Tally,
        mut begin: impl FnMut(usize, &mut TcpStream, &mut T) -> io::Result<()>,
    ) {
        if self.missing == 0 {
            return;
        }
        for place in 0..self.lanes.len() {
            if self.lanes[place].is_some() {
                continue;
            }
            match self.put(place).and_then(|(stream, known)| begin(place, stream, known)) {
                Ok(()) => self.missing -= 1,
                Err(error) => {
                    self.lanes[place] = None;
                    tally.failed("cannot connect", &error);
                    // The others would wait as long and fail as well: they are due at the next tick.
                    return;
                }
            }
        }
    }

    fn put(&mut self, place: usize) -> io::Result<&mut (TcpStream, T)> {
        let stream = connect(self.to, &self.first)?;
        stream.set_nonblocking(true)?;
        self.poll.registry().register(&mut SourceFd(&stream.as_raw_fd()), Token(place), self.interest)?;
        Ok(self.lanes[place].insert((stream, T::default())))
    }

    /// Waits for events, a tick at most.
    pub(super) fn wait(&mut self, events: &mut Events, at_once: bool) -> io::Result<()> {
        let patience = if at_once { Duration::ZERO } else { TICK };
        match self.poll.poll(events, Some(patience)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn at(&mut self, place: usize) -> Option<&mut (TcpStream, T)> {
        self.lanes.get_mut(place)?.as_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    /// Waits for something else as well.
    pub(super) fn also(&self, what: &impl AsRawFd, token: Token) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&what.as_raw_fd()), token, Interest::READABLE)
    }

    /// Closes one, which `mend` replaces.
    pub(super) fn lose(&mut self, place: usize) {
        self.missing += usize::from(self.lanes[place].take().is_some());
    }

    /// Closes those that have waited too long.
    pub(super) fn lose_those(&mut self, overdue: impl Fn(&T) -> bool, what: &str, tally: &mut Tally) {
        for place in 0..self.lanes.len() {
            if self.lanes[place].as_ref().is_some_and(|(_, known)| overdue(known)) {
                tally.failed(what, &ErrorKind::TimedOut.into());
                self.lose(place);
            }
        }
    }

    pub(super) fn into_open(self) -> impl Iterator<Item = (TcpStream, T)> {
        self.lanes.into_iter().flatten()
    }
}
