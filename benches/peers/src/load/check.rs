//! That bytes arrive unharmed, and that each direction of a connection closes by itself.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{Outcome, PATIENCE, lanes::connect, pattern, tally::Tally};

/// What is sent there and back.
const ECHOED: usize = 4 * 1024 * 1024;

/// What is sent in a direction whose opposite has ended.
const HALF: usize = 100_000;

/// Tries each by itself, so that a proxy that cannot do the one is still seen to do the others.
pub(super) fn run(to: SocketAddr) -> Outcome {
    let mut tally = Tally::new();
    let began = Instant::now();
    for (what, check) in [
        ("echo", echo as fn(SocketAddr) -> io::Result<u64>),
        ("half-close of the client", half_close_of_client),
        ("half-close of the server", half_close_of_server),
    ] {
        match check(to) {
            Ok(bytes) => {
                tally.moved(bytes as usize, true);
                tally.succeeded(began.elapsed(), true);
            }
            Err(error) => tally.failed(what, &error),
        }
    }
    tally.outcome(began.elapsed().as_secs_f64())
}

/// Much more than any buffer holds there and back, then FIN there and back.
fn echo(to: SocketAddr) -> io::Result<u64> {
    let mut stream = connect(to, b"E")?;
    let bytes = pattern::seeded(13, ECHOED);
    let mut echoed = vec![0; ECHOED];
    let mut reader = stream.try_clone()?;
    thread::scope(|scope| {
        let reading = scope.spawn(|| reader.read_exact(&mut echoed));
        let written = stream.write_all(&bytes);
        reading.join().unwrap_or_else(|_| Err(ErrorKind::Other.into())).and(written)
    })?;
    if Sha256::digest(&echoed) != Sha256::digest(&bytes) {
        return Err(io::Error::new(ErrorKind::InvalidData, "other bytes came back"));
    }
    stream.shutdown(Shutdown::Write)?;
    end_of(&mut stream)?;
    Ok(2 * ECHOED as u64)
}

/// The client ends its direction before it has read anything: all of the echo must still come, then the end.
fn half_close_of_client(to: SocketAddr) -> io::Result<u64> {
    let bytes = pattern::seeded(17, HALF);
    let mut stream = connect(to, b"E")?;
    stream.write_all(&bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed)?;
    if echoed != bytes {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("{} of {HALF} bytes came back", echoed.len())));
    }
    Ok(2 * HALF as u64)
}

/// The server ends its direction at once: all that the client sends after it has seen that must still arrive.
fn half_close_of_server(to: SocketAddr) -> io::Result<u64> {
    let before = late(to)?;
    let mut stream = connect(to, b"H")?;
    end_of(&mut stream)?;
    stream.write_all(&pattern::seeded(19, HALF))?;
    stream.shutdown(Shutdown::Write)?;
    let sent = Instant::now();
    loop {
        let arrived = late(to)? - before;
        if arrived == HALF as u64 {
            return Ok(arrived);
        }
        if sent.elapsed() > PATIENCE {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("{arrived} of {HALF} bytes arrived")));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn end_of(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "more bytes than were sent")),
    }
}

/// Bytes that have reached the server on connections whose other direction it had ended.
fn late(to: SocketAddr) -> io::Result<u64> {
    let mut count = [0; 8];
    connect(to, b"L")?.read_exact(&mut count)?;
    Ok(u64::from_le_bytes(count))
}
