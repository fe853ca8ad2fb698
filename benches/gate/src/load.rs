//! The applications on both sides of two sidecars, outside what is counted.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};

use crate::sidecars::REQUEST;

/// What is written at a time.
const PIECE: usize = 1 << 18;
/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is done over connections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Requests on one connection, one after the other.
    Requests,
    /// Connections, one after the other, with a request each.
    Connections,
    /// MiB to the server.
    Up,
    /// MiB to the client.
    Down,
}

/// A server that reads, answers and sends as much as each call's first 16 bytes say.
pub(crate) fn serve(address: IpAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((address, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut header = [0; 16];
    while stream.read_exact(&mut header).is_ok() {
        let [request, answer] =
            [&header[..8], &header[8..]].map(|half| u64::from_be_bytes(half.try_into().unwrap_or_default()) as usize);
        receive(&mut stream, request)?;
        send(&mut stream, answer)?;
    }
    stream.shutdown(Shutdown::Write)
}

/// Does `load` so many times with the server behind `address`.
pub(crate) fn put(address: SocketAddr, load: Load, times: usize) -> anyhow::Result<()> {
    match load {
        Load::Requests => {
            let mut stream = open(address)?;
            for _ in 0..times {
                call(&mut stream, REQUEST, REQUEST)?;
            }
            close(stream)
        }
        Load::Connections => (0..times).try_for_each(|_| {
            let mut stream = open(address)?;
            call(&mut stream, REQUEST, REQUEST)?;
            close(stream)
        }),
        Load::Up => {
            let mut stream = open(address)?;
            call(&mut stream, times << 20, 1)?;
            close(stream)
        }
        Load::Down => {
            let mut stream = open(address)?;
            call(&mut stream, 0, times << 20)?;
            close(stream)
        }
    }
}

fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn call(stream: &mut TcpStream, request: usize, answer: usize) -> anyhow::Result<()> {
    let mut header = [(request as u64).to_be_bytes(), (answer as u64).to_be_bytes()].concat();
    // One write, so that a request is one piece on its way.
    header.resize(16 + request.min(REQUEST), 7);
    stream.write_all(&header)?;
    send(stream, request.saturating_sub(REQUEST))?;
    receive(stream, answer).context("no whole answer came")
}

/// Ends in order, and waits until the other side has.
fn close(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let left = stream.read(&mut [0; 1])?;
    ensure!(left == 0, "more came than was asked for");
    Ok(())
}

fn send(stream: &mut TcpStream, length: usize) -> io::Result<()> {
    let piece = vec![7; length.min(PIECE)];
    let mut left = length;
    while left > 0 {
        let now = left.min(PIECE);
        stream.write_all(&piece[..now])?;
        left -= now;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, length: usize) -> io::Result<()> {
    let copied = io::copy(&mut stream.take(length as u64), &mut io::sink())?;
    if copied == length as u64 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
