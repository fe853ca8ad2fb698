//! Keep-alive HTTP in a closed loop: each connection asks again as soon as it is answered.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use mio::{Events, Interest};

use super::{
    PATIENCE, REQUEST, Share, TICK,
    lanes::{Lanes, ready},
    session::ANSWER,
    tally::Tally,
    window::Window,
};

/// The request that a connection waits for.
#[derive(Default)]
struct Asked {
    at: Option<Instant>,
    read: usize,
}

pub(super) fn run(to: SocketAddr, share: Share, window: Window) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    let mut lanes = Lanes::<Asked>::open(to, &[], Interest::READABLE, share.connections, &mut tally, ask)?;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 16 * 1024];
    let mut looked = Instant::now();
    while Instant::now() < window.ends {
        lanes.wait(&mut events, false)?;
        for event in &events {
            let place = event.token().0;
            let Some((stream, asked)) = lanes.at(place) else { continue };
            if let Err(error) = turn(stream, asked, &mut buffer, event.is_read_closed(), &window, &mut tally) {
                tally.failed("request", &error);
                lanes.lose(place);
            }
        }
        if looked.elapsed() >= TICK {
            looked = Instant::now();
            let overdue = |asked: &Asked| asked.at.is_some_and(|at| looked - at > PATIENCE);
            lanes.lose_those(overdue, "request", &mut tally);
            lanes.mend(&mut tally, ask);
        }
    }
    Ok(tally)
}

fn ask(_: usize, stream: &mut TcpStream, asked: &mut Asked) -> io::Result<()> {
    *asked = Asked { at: Some(Instant::now()), read: 0 };
    // There is room for it: nothing else is under way on this connection.
    stream.write_all(REQUEST)
}

/// Reads what there is of the answer and asks again once it is complete.
fn turn(
    stream: &mut TcpStream,
    asked: &mut Asked,
    buffer: &mut [u8],
    ended: bool,
    window: &Window,
    tally: &mut Tally,
) -> io::Result<()> {
    let answer = &**ANSWER;
    loop {
        let Some(length) = ready(stream.read(buffer))? else { return Ok(()) };
        let expected = answer.get(asked.read..asked.read + length);
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if expected != Some(&buffer[..length]) {
            return Err(io::Error::new(ErrorKind::InvalidData, "not the answer"));
        }
        asked.read += length;
        if asked.read == answer.len() {
            let now = Instant::now();
            let measured = window.holds(now);
            tally.moved(answer.len(), measured);
            tally.succeeded(asked.at.map(|at| now - at).unwrap_or_default(), measured);
            *asked = Asked { at: Some(now), read: 0 };
            stream.write_all(REQUEST)?;
        }
        // All was read that is there; only a FIN would not be told again.
        if !ended {
            return Ok(());
        }
    }
}
