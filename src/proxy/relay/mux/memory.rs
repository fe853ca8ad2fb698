//! Both ends of a multiplexed connection in memory, for counting what fixed work costs.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use anyhow::{Context as _, bail, ensure};

use super::{
    super::{
        super::records::{HEADER, Records, STRIDE},
        application::Sink,
    },
    frame::PREFIX,
    state::{Role, State},
};

/// An application that takes everything: how much that was.
#[derive(Debug, Default)]
struct Taken(AtomicUsize);

impl Sink for Taken {
    fn take(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.0.fetch_add(length, Ordering::Relaxed);
        Ok(length)
    }
}

/// `count` requests of `size` bytes, one frame's at most, and as much back: on each of `streams` in turn one is sent before
/// the first is answered.
pub(in super::super::super) fn requests(
    [ours, theirs]: [Records; 2],
    streams: usize,
    count: usize,
    size: usize,
) -> anyhow::Result<()> {
    let mut caller = State::new(Role::Caller, ours, Default::default());
    let mut callee = State::new(Role::Callee, theirs, Default::default());
    let ids: Vec<u32> = (0..streams).map(|_| caller.open().context("a stream")).collect::<Result<_, _>>()?;
    pass(&mut caller, &mut callee)?;
    for id in callee.begun() {
        callee.accept(id).ok().context("a stream that is there")?;
    }
    pass(&mut callee, &mut caller)?;
    let taken = Arc::new(Taken::default());
    for id in &ids {
        caller.attach(*id, taken.clone());
        callee.attach(*id, taken.clone());
    }
    let mut buffer = vec![0; STRIDE];
    for _ in 0..count / streams.max(1) {
        for [from, to] in [[0, 1], [1, 0]] {
            let mut ends = [&mut caller, &mut callee];
            for id in &ids {
                send(ends[from], *id, &mut buffer, size)?;
            }
            let [one, other] = &mut ends;
            let (from, to) = if from < to { (one, other) } else { (other, one) };
            pass(from, to)?;
        }
    }
    ensure!(taken.0.load(Ordering::Relaxed) == 2 * size * (count / streams.max(1)) * streams, "what came is less");
    Ok(())
}

fn send(state: &mut State, id: u32, buffer: &mut [u8], size: usize) -> anyhow::Result<()> {
    let cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Ok(room)) = state.room(id, true, &cx) else { bail!("no room") };
    ensure!(room >= size, "room for {room} bytes");
    buffer[HEADER + PREFIX..HEADER + PREFIX + size].fill(7);
    let direct = state.seal(id, buffer, size).ok().context("a stream that is there")?;
    ensure!(direct.is_none(), "a frame waits for others");
    Ok(())
}

/// What one says, the other hears.
fn pass(from: &mut State, to: &mut State) -> anyhow::Result<()> {
    let mut wire = from.unwritten().to_vec();
    from.wrote(wire.len());
    ensure!(to.receive(&mut wire)?, "it goes on");
    Ok(())
}
