//! Both ends of a multiplexed connection in memory, for counting what fixed work costs.

use std::task::{Context, Poll, Waker};

use anyhow::{Context as _, bail, ensure};

use super::{
    super::super::records::{HEADER, Records, STRIDE},
    frame::PREFIX,
    state::{Role, State, Taken},
};

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
            for id in &ids {
                ensure!(receive(to, *id)? == size, "a request of another length");
            }
        }
    }
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

fn receive(state: &mut State, id: u32) -> anyhow::Result<usize> {
    let cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Ok(Taken::Data(data))) = state.take(id, &cx) else { bail!("nothing came") };
    state.took(id, data.len(), true);
    Ok(data.len())
}

/// What one says, the other hears.
fn pass(from: &mut State, to: &mut State) -> anyhow::Result<()> {
    let mut wire = from.unwritten().to_vec();
    from.wrote(wire.len());
    ensure!(to.receive(&mut wire)?, "it goes on");
    Ok(())
}
