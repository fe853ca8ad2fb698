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

/// Carries a connection, or several on one session, between a peer that knows the keys and an application.
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
    let session = input.byte() % 2 == 1;
    let [network, near] = [input.byte(), input.byte()].map(|byte| 1 << (byte % 18));
    let (flight, behind, length) = (input.byte(), input.number() % 4096, input.number());
    let flight = input.take(flight.into()).to_vec();
    // A byte at a time takes its time.
    let most = MOST.min(network.min(near) * 4096);
    let script = Script::seal(&mut Input::new(input.take(length)), &mut peer, (session, most));
    let (behind, wire) = script.wire.split_at(behind.min(script.wire.len()));
    let (network, far) = duplex(network);
    let tunnel = Tunnel::new(network, ours, (flight.clone(), behind.to_vec()), session);
    let mut scene = Scene::new(tunnel, (peer, far), (flight, wire.to_vec()), near);
    let mut said = script.said.as_slice();
    for step in 0..STEPS {
        if step + 1 == STEPS || !scene.act(input) {
            scene.settle();
            let Some(rest) = judge(&mut scene, said, session) else { return scene.leave() };
            said = rest;
        }
    }
}

/// What one connection must bring to the application, and by what its direction must end.
fn due(said: &[Said], session: bool) -> (Vec<u8>, Option<&Said>, &[Said]) {
    let mut data = vec![];
    for (index, one) in said.iter().enumerate() {
        match one {
            Said::Data(some) => data.extend_from_slice(some),
            Said::Mark if !session => {}
            Said::Nothing | Said::Update { .. } => {}
            Said::Mark | Said::Closed | Said::Wrong | Said::Garbage => return (data, Some(one), &said[index + 1..]),
        }
    }
    (data, None, &[])
}

/// Everybody has read and written as far as it goes: that must be so, and the connection must end as it should. Answers
/// what is left to be said where another connection begins.
fn judge<'a>(scene: &mut Scene, said: &'a [Said], session: bool) -> Option<&'a [Said]> {
    let (data, last, rest) = due(said, session);
    let ordered = matches!(last, Some(Said::Closed | Said::Mark));
    if scene.is_disturbed() {
        assert!(data.starts_with(&scene.came), "what came is no beginning of what was sealed");
        assert!(ordered || scene.end != Some(End::Closed), "{last:?} is no end");
        return None;
    }
    if last == Some(&Said::Garbage) && scene.end.is_none() {
        // It waits for the end of a record.
        scene.cut();
    }
    if matches!(last, Some(Said::Wrong | Said::Garbage)) {
        assert!(data.starts_with(&scene.came), "what came is no beginning of what was sealed");
        assert!(matches!(scene.end, Some(End::Refused(_))), "{last:?} ended it as {:?}", scene.end);
        return None;
    }
    if last == Some(&Said::Mark) && matches!(scene.end, Some(End::Refused(_))) {
        assert!(data.starts_with(&scene.came), "what came is no beginning of what was sealed");
        assert!(rest.len() > 1, "a mark alone is the beginning of another connection");
        return None;
    }
    assert!(scene.came == data, "{} bytes came of {}", scene.came.len(), data.len());
    assert_eq!(scene.ended, ordered, "{last:?}");
    let asked = said[..said.len() - rest.len()].contains(&Said::Update { asked: true });
    scene.finish(asked);
    if !ordered {
        assert_eq!(scene.end, None, "one direction goes on");
        scene.cut();
        assert!(matches!(scene.end, Some(End::Refused(_))), "a cut is {:?}", scene.end);
        return None;
    }
    assert_eq!(scene.end, Some(End::Closed));
    (last == Some(&Said::Mark) && begins(scene, rest)).then_some(after(rest))
}

/// Whether the peer begins another connection, and we accept it.
fn begins(scene: &mut Scene, said: &[Said]) -> bool {
    let first = said.iter().find(|said| !matches!(said, Said::Nothing | Said::Update { .. }));
    match scene.marked() {
        Some(Ok(())) => assert_eq!(first, Some(&Said::Mark)),
        Some(Err(_)) => assert!(!matches!(first, None | Some(Said::Mark)), "{first:?} is no error"),
        None => assert!(matches!(first, None | Some(Said::Garbage)), "{first:?} is waited for"),
    }
    if first == Some(&Said::Mark) {
        scene.begin();
        return true;
    }
    false
}

/// What is said behind the next mark.
fn after(said: &[Said]) -> &[Said] {
    let mark = said.iter().position(|said| *said == Said::Mark);
    mark.and_then(|mark| said.get(mark + 1..)).unwrap_or_default()
}
