//! A tunnel between an application and a peer that do whatever they like, one step at a time: what arrives is what was
//! sealed, nothing is kept beyond its bound, and nobody waits for what has happened already.

mod scene;

use tokio::{
    io::duplex,
    runtime::{Builder, Runtime},
};

use self::scene::Scene;
use super::{super::End, Tunnel};
use crate::proxy::{
    fuzz::Input,
    records::fuzz::{Choice, Said, Script, ends},
};

/// All that one input may make the peer send.
const MOST: usize = 1 << 17;
/// Steps of one input.
const STEPS: usize = 500;

thread_local! {
    /// Of timers alone; nobody waits until one of them is due.
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

/// Carries a connection between a peer that knows the keys and an application.
///
/// # Panics
///
/// Where an application is given anything else than what was sealed for it, in order; where more is kept than may be;
/// where somebody waits in vain, or one end is taken for another.
pub fn tunnel(input: &[u8]) {
    RUNTIME.with(|runtime| {
        let _timers = runtime.enter();
        play(&mut Input::new(input));
    });
}

fn play(input: &mut Input<'_>) {
    let (ours, mut peer) = ends(Choice::new(input.byte()));
    let [network, near] = [input.byte(), input.byte()].map(|byte| 1 << (byte % 18));
    let (flight, behind, length) = (input.byte(), input.number() % 4096, input.number());
    let flight = input.take(flight.into()).to_vec();
    // A byte at a time takes its time.
    let most = MOST.min(network.min(near) * 4096);
    let script = Script::seal(&mut Input::new(input.take(length)), &mut peer, most);
    let (behind, wire) = script.wire.split_at(behind.min(script.wire.len()));
    let (network, far) = duplex(network);
    let tunnel = Tunnel::new(network, ours, (flight.clone(), behind.to_vec()));
    let mut scene = Scene::new(tunnel, (peer, far), (flight, wire.to_vec()), near);
    let steps = (0..STEPS).take_while(|_| scene.act(input));
    steps.for_each(drop);
    scene.settle();
    judge(&mut scene, &script.said);
    scene.leave();
}

/// What must come to the application, and by what that must end.
fn due(said: &[Said]) -> (Vec<u8>, Option<&Said>) {
    let mut data = vec![];
    for one in said {
        match one {
            Said::Data(some) => data.extend_from_slice(some),
            Said::Nothing | Said::Update { .. } => {}
            Said::Closed | Said::Wrong | Said::Garbage => return (data, Some(one)),
        }
    }
    (data, None)
}

/// Everybody has read and written as far as it goes: that must be so, and the connection must end as it should.
fn judge(scene: &mut Scene, said: &[Said]) {
    let (data, last) = due(said);
    let ordered = last == Some(&Said::Closed);
    if scene.is_disturbed() {
        assert!(data.starts_with(&scene.came), "what came is no beginning of what was sealed");
        assert!(ordered || scene.end != Some(End::Closed), "{last:?} is no end");
        return;
    }
    if last == Some(&Said::Garbage) && scene.end.is_none() {
        // It waits for the end of a record.
        scene.cut();
    }
    if matches!(last, Some(Said::Wrong | Said::Garbage)) {
        assert!(data.starts_with(&scene.came), "what came is no beginning of what was sealed");
        assert!(matches!(scene.end, Some(End::Refused(_))), "{last:?} ended it as {:?}", scene.end);
        return;
    }
    assert!(scene.came == data, "{} bytes came of {}", scene.came.len(), data.len());
    assert_eq!(scene.ended, ordered, "{last:?}");
    let asked = said.iter().take_while(|said| Some(*said) != last).any(|said| *said == Said::Update { asked: true });
    scene.finish(asked);
    if !ordered {
        assert_eq!(scene.end, None, "one direction goes on");
        scene.cut();
        assert!(matches!(scene.end, Some(End::Refused(_))), "a cut is {:?}", scene.end);
        return;
    }
    assert_eq!(scene.end, Some(End::Closed));
}
