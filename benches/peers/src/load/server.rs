//! The server: threads over epoll, the first of which accepts and hands out in turn.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use mio::{
    Events, Interest, Poll, Registry, Token,
    net::{TcpListener, TcpStream},
};
use socket2::{Domain, Socket, Type};

use super::{
    TICK, pattern,
    session::{ANSWER, Session, Turn},
};

const LISTENER: Token = Token(usize::MAX);

/// Connections that wait to be accepted: a burst of thousands must not meet SYN retransmissions.
const BACKLOG: i32 = 8192;

/// A server that is bound but answers nobody yet.
pub(super) struct Bound {
    listener: TcpListener,
    threads: usize,
}

/// Binds the port of every load.
pub(super) fn bind(address: SocketAddr, threads: usize) -> anyhow::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(Bound { listener: TcpListener::from_std(socket.into()), threads: threads.max(1) })
}

impl Bound {
    /// Serves until the process ends.
    pub(super) fn run(self) -> anyhow::Result<()> {
        // Made before the first connection, not during it.
        let _ = (pattern::at(0), ANSWER.len());
        let mut workers = (0..self.threads).map(|_| Worker::new()).collect::<io::Result<Vec<_>>>()?;
        let inboxes = workers.iter().map(|worker| worker.inbox.clone()).collect();
        let mut first = workers.swap_remove(0);
        let mut door = Door { listener: self.listener, inboxes, next: 0 };
        first.poll.registry().register(&mut door.listener, LISTENER, Interest::READABLE)?;
        let others: Vec<_> = workers.into_iter().map(|mut worker| thread::spawn(move || worker.run(None))).collect();
        first.run(Some(&mut door))?;
        for other in others {
            other.join().map_err(|_| anyhow::anyhow!("a thread of the server panicked"))??;
        }
        Ok(())
    }
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    inboxes: Vec<Arc<Inbox>>,
    next: usize,
}

/// Connections that a worker owns but has not seen: its epoll knows them, so their first byte wakes it.
struct Inbox {
    registry: Registry,
    arrivals: Mutex<Vec<TcpStream>>,
}

impl Door {
    fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // Without descriptors, for instance: tried again with the next connection or tick.
                Err(_) => return,
            };
            let inbox = &self.inboxes[self.next % self.inboxes.len()];
            self.next += 1;
            inbox.put(stream);
        }
    }
}

impl Inbox {
    fn put(&self, mut stream: TcpStream) {
        // Held over both, so that whoever is woken by the first byte finds the connection.
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let token = Token(stream.as_raw_fd() as usize);
        if self.registry.register(&mut stream, token, Interest::READABLE).is_ok() {
            arrivals.push(stream);
        }
    }
}

/// One thread and its connections, by their descriptors.
struct Worker {
    poll: Poll,
    inbox: Arc<Inbox>,
    sessions: Vec<Option<Session>>,
    buffer: Vec<u8>,
    again: Vec<usize>,
}

impl Worker {
    fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let inbox = Arc::new(Inbox { registry: poll.registry().try_clone()?, arrivals: Mutex::default() });
        Ok(Self { poll, inbox, sessions: Vec::new(), buffer: vec![0; pattern::CHUNK], again: Vec::new() })
    }

    fn run(&mut self, mut door: Option<&mut Door>) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut due = Vec::new();
        loop {
            let patience = if self.again.is_empty() { TICK } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(patience)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if let Some(door) = &mut door
                && (events.is_empty() || events.iter().any(|event| event.token() == LISTENER))
            {
                door.accept();
            }
            std::mem::swap(&mut self.again, &mut due);
            for token in due.drain(..) {
                if let Some(Some(session)) = self.sessions.get_mut(token) {
                    session.queued = false;
                }
                // Its FIN may have been told while it waited for its turn.
                self.turn(token, true);
            }
            for event in events.iter().filter(|event| event.token() != LISTENER) {
                self.turn(event.token().0, event.is_read_closed());
            }
        }
    }

    fn turn(&mut self, token: usize, ended: bool) {
        if self.sessions.get(token).is_none_or(Option::is_none) {
            self.arrive();
        }
        // Of a connection that was closed a moment ago.
        let Some(Some(session)) = self.sessions.get_mut(token) else { return };
        match session.turn(&mut self.buffer, ended) {
            Ok(Turn::Wait) => {}
            Ok(Turn::Again) if session.queued => {}
            Ok(Turn::Again) => {
                session.queued = true;
                self.again.push(token);
            }
            Ok(Turn::Full) if session.writes => {}
            Ok(Turn::Full) => {
                session.writes = true;
                let both = Interest::READABLE | Interest::WRITABLE;
                if self.poll.registry().reregister(&mut session.stream, Token(token), both).is_err() {
                    self.sessions[token] = None;
                }
            }
            Ok(Turn::Done) | Err(_) => self.sessions[token] = None,
        }
    }

    fn arrive(&mut self) {
        let mut arrivals = self.inbox.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in arrivals.drain(..) {
            let token = stream.as_raw_fd() as usize;
            if token >= self.sessions.len() {
                self.sessions.resize_with(token + 1, || None);
            }
            self.sessions[token] = Some(Session::new(stream));
        }
    }
}
