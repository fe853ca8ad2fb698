//! Bytes in one direction, as many as pass.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Instant,
};

use mio::{Events, Interest};

use super::{
    Share, TICK,
    lanes::{Lanes, ready},
    pattern::{self, CHUNK},
    tally::Tally,
    window::Window,
};

/// Reads or writes of one connection before others have their turn.
const BURST: usize = 16;

pub(super) fn run(to: SocketAddr, share: Share, up: bool, window: Window) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    let (first, interest) =
        if up { (&b"U"[..], Interest::WRITABLE) } else { (&b"D\0\0\0\0\0\0\0\0"[..], Interest::READABLE) };
    // What is known of each connection: how many bytes have passed.
    let mut lanes = Lanes::<u64>::open(to, first, interest, share.connections, &mut tally, |_, _, _| Ok(()))?;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; CHUNK];
    let (mut again, mut due) = (Vec::new(), Vec::new());
    let mut looked = Instant::now();
    while Instant::now() < window.ends {
        lanes.wait(&mut events, !again.is_empty())?;
        std::mem::swap(&mut again, &mut due);
        due.extend(events.iter().map(|event| event.token().0));
        due.sort_unstable();
        due.dedup();
        for place in due.drain(..) {
            let Some((stream, moved)) = lanes.at(place) else { continue };
            match turn(stream, moved, up, &mut buffer, &window, &mut tally) {
                Ok(true) => again.push(place),
                Ok(false) => {}
                Err(error) => {
                    tally.failed("bulk", &error);
                    lanes.lose(place);
                }
            }
        }
        if looked.elapsed() >= TICK {
            looked = Instant::now();
            lanes.mend(&mut tally, |_, _, _| Ok(()));
        }
    }
    for (stream, moved) in lanes.into_open() {
        if let Err(error) = if up { acknowledged(stream, moved) } else { passed(moved) } {
            tally.failed("end of bulk", &error);
        }
    }
    Ok(tally)
}

/// Moves what is possible, within a burst; whether more may be possible.
fn turn(
    stream: &mut TcpStream,
    moved: &mut u64,
    up: bool,
    buffer: &mut [u8],
    window: &Window,
    tally: &mut Tally,
) -> io::Result<bool> {
    for _ in 0..BURST {
        let call = if up { stream.write(pattern::at(*moved)) } else { stream.read(buffer) };
        let Some(length) = ready(call)? else { return Ok(false) };
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if !up && !pattern::seems(&buffer[..length], *moved) {
            return Err(io::Error::new(ErrorKind::InvalidData, "not the pattern"));
        }
        *moved += length as u64;
        tally.moved(length, window.holds(Instant::now()));
    }
    Ok(true)
}

/// Ends a stream of bytes; the server must have counted all of them.
pub(super) fn acknowledged(mut stream: TcpStream, moved: u64) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    match u64::from_le_bytes(count) {
        u64::MAX => Err(io::Error::new(ErrorKind::InvalidData, "the server did not receive the pattern")),
        count if count == moved => passed(moved),
        count => Err(io::Error::new(ErrorKind::InvalidData, format!("{moved} bytes sent, {count} received"))),
    }
}

fn passed(moved: u64) -> io::Result<()> {
    if moved > 0 { Ok(()) } else { Err(io::Error::new(ErrorKind::TimedOut, "no byte passed")) }
}
