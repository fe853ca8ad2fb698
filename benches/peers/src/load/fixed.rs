//! Fixed work, one thing after another, for counting what it costs. Every byte is verified.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    time::Instant,
};

use super::{
    Outcome, REQUEST, bulk,
    lanes::connect,
    pattern::{self, CHUNK},
    session::ANSWER,
    tally::Tally,
};

/// How much there is to do.
pub(super) struct Work {
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
    pub(super) requests: u64,
    pub(super) connects: u64,
}

/// Does all of it; what fails does not keep the rest from being done.
pub(super) fn run(to: SocketAddr, work: &Work) -> Outcome {
    let Work { bytes_up, bytes_down, requests, connects } = *work;
    let mut tally = Tally::new();
    let began = Instant::now();
    let mut done = |what, result: io::Result<()>| {
        if let Err(error) = result {
            tally.failed(what, &error);
        }
    };
    let mut parts = Tally::new();
    if bytes_up > 0 {
        done("bytes up", up(to, bytes_up, &mut parts));
    }
    if bytes_down > 0 {
        done("bytes down", down(to, bytes_down, &mut parts));
    }
    if requests > 0 {
        done("requests", ask(to, requests, &mut parts));
    }
    for _ in 0..connects {
        done("connects", once(to, &mut parts));
    }
    tally.add(parts);
    tally.outcome(began.elapsed().as_secs_f64())
}

fn up(to: SocketAddr, bytes: u64, tally: &mut Tally) -> io::Result<()> {
    let mut stream = connect(to, b"V")?;
    let mut sent = 0;
    while sent < bytes {
        let length = (CHUNK as u64).min(bytes - sent) as usize;
        let written = stream.write(&pattern::at(sent)[..length])?;
        sent += written as u64;
        tally.moved(written, true);
    }
    bulk::acknowledged(stream, bytes)
}

fn down(to: SocketAddr, bytes: u64, tally: &mut Tally) -> io::Result<()> {
    let mut stream = connect(to, &[&b"D"[..], &bytes.to_le_bytes()].concat())?;
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 if received == bytes => return Ok(()),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            length if !pattern::is(&buffer[..length], received) => return Err(ErrorKind::InvalidData.into()),
            length => {
                received += length as u64;
                tally.moved(length, true);
            }
        }
    }
}

fn ask(to: SocketAddr, requests: u64, tally: &mut Tally) -> io::Result<()> {
    let mut stream = connect(to, &[])?;
    let mut answer = vec![0; ANSWER.len()];
    for _ in 0..requests {
        let began = Instant::now();
        stream.write_all(REQUEST)?;
        stream.read_exact(&mut answer)?;
        if answer != *ANSWER {
            return Err(ErrorKind::InvalidData.into());
        }
        tally.succeeded(began.elapsed(), true);
    }
    Ok(())
}

fn once(to: SocketAddr, tally: &mut Tally) -> io::Result<()> {
    let began = Instant::now();
    let mut stream = connect(to, b"C")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer != b"C" {
        return Err(ErrorKind::InvalidData.into());
    }
    tally.succeeded(began.elapsed(), true);
    Ok(())
}
