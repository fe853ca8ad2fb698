//! Connections that are held open and do nothing.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
};

use super::lanes::connect;

/// Threads that open connections; more would not open them faster.
const OPENERS: usize = 4;

/// How often a connection is tried.
const ATTEMPTS: usize = 3;

/// Opens them, says how many are open, and holds them until standard input ends.
pub(super) fn run(to: SocketAddr, connections: usize) -> anyhow::Result<()> {
    let open: Vec<TcpStream> = thread::scope(|scope| {
        let share = |opener| connections / OPENERS + usize::from(opener < connections % OPENERS);
        let openers: Vec<_> = (0..OPENERS)
            .map(|opener| scope.spawn(move || (0..share(opener)).filter_map(|_| open(to)).collect::<Vec<_>>()))
            .collect();
        openers.into_iter().flat_map(|opener| opener.join().unwrap_or_default()).collect()
    });
    println!("{}", serde_json::json!({ "open": open.len() }));
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn open(to: SocketAddr) -> Option<TcpStream> {
    (0..ATTEMPTS).find_map(|_| greeted(to).ok())
}

/// A connection on which a byte has gone each way.
fn greeted(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = connect(to, b"E")?;
    stream.write_all(b"i")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    if byte == *b"i" { Ok(stream) } else { Err(ErrorKind::InvalidData.into()) }
}
