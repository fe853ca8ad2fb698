//! Whatever a peer sends after the handshake, with the keys and without: what is opened is what was sealed, and nothing
//! that is kept grows beyond its bound.

mod model;
mod peer;
mod script;

pub(in crate::proxy) use self::{
    model::Said,
    peer::{Choice, Peer, ends},
    script::Script,
};
use super::{HEADER, MAX_MESSAGE, MAX_PLAINTEXT, MAX_PROTECTED, Opened, Records, STRIDE, alert_for, whole};
use crate::proxy::fuzz::{Input, Splits, pattern};

/// All that one input may make the peer send.
const MOST: usize = 1 << 18;

/// Feeds the record layer with the bytes of a stranger, or with records that a peer has sealed, in arbitrary pieces.
///
/// # Panics
///
/// Where anything is opened that was not sealed, or differs from it, or more is kept than may be.
pub fn records(input: &[u8]) {
    let mut input = Input::new(input);
    let choice = Choice::new(input.byte());
    let raw = input.byte().is_multiple_of(4);
    let mut splits = Splits::new(&mut input);
    let length = input.number();
    let (mut ours, mut peer) = ends(choice);
    let script = if raw { Script::raw(input.rest()) } else { Script::seal(&mut input, &mut peer, MOST) };
    let mut answers = read(&mut ours, &script, &mut splits);
    let heard = peer.hear(&mut answers);
    assert!(
        answers.is_empty()
            && heard.last().is_none_or(|(kind, content)| matches!((kind, content.len()), (21, 2) | (22, 5)))
    );
    if !ours.ended {
        converse(&mut ours, &mut peer, length);
    }
    peer.give_back(ours);
}

/// Opens what arrives as the relay does; answers what we say to it.
fn read(ours: &mut Records, script: &Script, splits: &mut Splits) -> Vec<u8> {
    let (mut buffer, mut answers) = (vec![], vec![]);
    let mut said = script.said.iter();
    for piece in splits.of(&script.wire) {
        buffer.extend_from_slice(piece);
        loop {
            let opened = match whole(&buffer) {
                Ok(None) => break,
                Ok(Some(length)) => ours.open(&mut buffer[..length]).map(|opened| (length, opened)),
                Err(error) => Err(error),
            };
            let expected = said.next();
            let Ok((length, opened)) = opened.map_err(|error| refuse(ours, &error, expected, &mut answers)) else {
                return answers;
            };
            let expected = expected.expect("no more is opened than was sealed");
            let asked = opened == Opened::UpdateRequested;
            assert!(expected.is(&opened), "{opened:?} came of {expected:?}");
            buffer.drain(..length);
            if asked {
                ours.update(&mut answers).expect("what was asked for can be answered");
            }
            bounded(ours);
        }
        assert!(buffer.len() < HEADER + MAX_PROTECTED, "{} bytes are no record", buffer.len());
    }
    let left = said.next();
    assert!(left.is_none_or(|said| *said == Said::Garbage), "{left:?} was not opened");
    answers
}

/// An error is one that the peer made, and the alert that tells it so is the last that we say.
fn refuse(ours: &mut Records, error: &rustls::Error, expected: Option<&Said>, answers: &mut Vec<u8>) {
    let wrong = expected.is_some_and(|said| matches!(said, Said::Garbage | Said::Wrong));
    assert!(wrong, "{error:?} came of {expected:?}");
    if let Some(description) = alert_for(error) {
        ours.alert(description, answers).expect("an alert can be sealed");
    }
}

fn bounded(ours: &Records) {
    let Records { message, .. } = ours;
    assert!(message.len() < 4 + MAX_MESSAGE, "{} bytes of a message are kept", message.len());
    assert!(message.capacity() <= 4 * MAX_MESSAGE && (!message.is_empty() || message.capacity() == 0));
}

/// After all that, either side still reads what the other says.
fn converse(ours: &mut Records, peer: &mut Peer, length: usize) {
    let data = pattern(length, length);
    let mut buffer = vec![0; (length / MAX_PLAINTEXT + 1) * STRIDE];
    for (slot, piece) in buffer.chunks_mut(STRIDE).zip(data.chunks(MAX_PLAINTEXT)) {
        slot[HEADER..HEADER + piece.len()].copy_from_slice(piece);
    }
    let sealed = ours.seal(&mut buffer, length).expect("there is room for all of it");
    buffer.truncate(sealed);
    let heard = peer.hear(&mut buffer);
    assert!(heard.iter().all(|(kind, content)| *kind == 23 && !content.is_empty()));
    assert!(heard.into_iter().flat_map(|(_, content)| content).eq(data), "{length} bytes arrive");
}
