//! What libFuzzer begins with: a few inputs of each target, so that none of what they choose from must be guessed.

/// The names of the targets.
pub const TARGETS: [&str; 4] = ["records", "tunnel", "mux", "handshake"];

/// Small pieces, and long ones.
const PIECES: [[u8; 8]; 2] = [[0, 0, 0, 4, 0, 1, 0, 9], [0xFF; 8]];

/// What a peer may say, as [`super::records`] reads it.
const SAID: [&[u8]; 14] = [
    // Data: a word, a full record, one that is too long, padded ones.
    &[0, 5, b'h', b'e', b'l', b'l', b'o', 0, 0x80, 0x40, 0x00],
    &[0, 0x80, 0x40, 0x01],
    &[132, 1, 4, 3, b'p', b'a', b'd', 132, 1, 40, 0x80, 0x3F, 0xF0],
    // Records without data, a few and too many.
    &[2, 0, 1, b'x', 2, 2, 0, 1, b'y'],
    &[10, 30, 0, 1, b'x', 10, 33],
    // Alerts: a goodbye, an old habit, a fatal one, half a one.
    &[3, 1, 90, 0, 1, b'x', 3, 1, 0],
    &[3, 2, 40],
    &[7, 21, 1, 1],
    // Tickets, in one piece and in several, and something between.
    &[5, 0x90, 0x00, 0xC8, 0x3F, 0xFF, 5, 0x90, 0x00, 0xC8, 0x00, 0x09, 0, 1, b'x'],
    &[4, 2, 4, 0, 0, 1, b'x'],
    // Keys: asked, not asked, wrong.
    &[6, 0, 0, 2, b'a', b'b', 6, 1, 0, 1, b'c', 6, 1, 6, 0, 6, 2],
    // A byte that is changed, bytes from nowhere, other types and versions.
    &[0, 1, b'x', 8, 5, 1, 2, 3, 4, 5, 0, 7, 1],
    &[11, 1, 9, 70, 9, 5, 23, 3, 3, 0, 2, 7, 20, 1, 1],
    &[11, 3, 3, 79, 6, 1, 11, 3, 3, 79, 6, 1],
];

/// What may happen, as [`super::tunnel`] reads it.
const DONE: [&[u8]; 6] = [
    // Everything at once; both ends; one end and much of the other side.
    &[0],
    &[1, 0, 40, 5, 0, 9, 4, 0, 3, 3, 0, 1, 1, 1, 0, 7, 0, 0],
    &[7, 1, 0xFF, 0xFF, 4, 0xFF, 0xFF, 3, 0, 20, 0],
    // The application is slow, the peer is, somebody leaves.
    &[5, 0xFF, 0xFF, 5, 0xFF, 0xFF, 1, 0xFF, 0xFF, 1, 0xFF, 0xFF, 11, 0, 5, 0, 9, 0],
    &[1, 0, 90, 5, 0, 90, 9, 1, 0xFF, 0xFF],
    &[5, 0, 90, 1, 0, 30, 10, 5, 0, 9],
];

/// The seeds of `target`; none for a target that is none.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "records" => records(),
        "tunnel" => tunnel(),
        "mux" => mux(),
        "handshake" => handshake(),
        _ => vec![],
    }
}

fn records() -> Vec<Vec<u8>> {
    let sealed = SAID.iter().zip(0..).map(|(said, choice)| {
        let pieces = PIECES[usize::from(choice) % 2];
        [&[choice, 1][..], &pieces, &[0, 100], said].concat()
    });
    let raw: [&[u8]; 3] = [&[23, 3, 3, 0, 17, 7], &[22, 3, 3, 0, 4, 24, 0, 0, 0], &[23, 3, 3, 0x41, 1]];
    let raw = raw.map(|raw| [&[0, 0][..], &PIECES[0], &[0x80, 0], raw].concat());
    sealed.chain(raw).collect()
}

fn tunnel() -> Vec<Vec<u8>> {
    let plays = SAID.iter().zip(DONE.iter().cycle()).zip(0..);
    plays
        .map(|((said, done), choice)| {
            // Streams of a few bytes or of many, a flight, a beginning.
            let head = [choice, 3 + choice % 15, 17 - choice % 15, 2, 0, choice * 4];
            [&head[..], &[0, said.len() as u8], b"Fi", said, done].concat()
        })
        .collect()
}

/// What streams and their peer may do, as [`super::mux`] reads it.
const TALKED: [&[u8]; 12] = [
    // We call: opened, taken, data both ways, fetched, ends, left in order.
    &[8, 0, 0, 1, 1, 0, 10, 1, 9, 9, 0, 1, 3, 2, b'h', b'i', 12, 1, 0, 9, 13, 1, 0, 1, 4, 0, 12, 1, 0, 9, 14, 1, 2],
    // Refused, reset, left without order.
    &[8, 0, 8, 0, 0, 1, 2, 0, 0, 2, 1, 0, 0, 2, 5, 0, 10, 2, 1, 1, 14, 1, 1, 14, 2, 1],
    // All of the window, and one byte more.
    &[8, 0, 0, 1, 1, 0, 0, 1, 3, 0x80, 0x3F, 0xFB, 0, 1, 3, 0x80, 0, 5, 0, 1, 3, 1, b'x'],
    // Much of ours: without credit, with some, behind what the socket did not take, and when it has.
    &[8, 0, 0, 1, 1, 0, 10, 1, 0xFF, 0xFF, 10, 1, 9, 9, 0, 1, 6, 0x84, 0x20, 0, 10, 1, 0xFF, 0xFF, 10, 1, 0xFF, 0xFF],
    &[
        8, 0, 0, 1, 1, 0, 0, 1, 6, 0x84, 0x20, 0, 10, 1, 0xFF, 0xFF, 15, 0, 0xFF, 0xFF, 15, 0, 0xFF, 0xFF, 11, 1, 0xFF,
        0xFF,
    ],
    // Both ends, twice.
    &[8, 0, 0, 1, 1, 0, 13, 1, 13, 1, 0, 1, 4, 0, 0, 1, 4, 0],
    // Given to the application at once, in part, behind that although there is room again, and when it is polled.
    &[
        8, 0, 0, 1, 1, 0, 9, 1, 12, 1, 0, 5, 0, 1, 3, 2, b'h', b'i', 0, 1, 3, 4, b'p', b'a', b'r', b't', 12, 1, 0, 3,
        0, 1, 3, 1, b'x', 12, 1, 0x20, 0, 0, 1, 3, 0x80, 0x20, 0, 0, 1, 4, 0, 12, 1, 0, 0,
    ],
    // Credit of ours that is used and then given back, and the peer's: some, and more than there is.
    &[
        8, 0, 0, 1, 1, 0, 0, 1, 6, 0x84, 0x20, 0, 10, 1, 0, 9, 7, 0, 7, 0, 10, 1, 0, 9, 0, 1, 23, 2, 1, 1, 0, 1, 3, 1,
        b'x', 0, 1, 0x77, 0x84, 0x20, 0,
    ],
    // We are called: begun, taken, begun again.
    &[0, 1, 128, 0, 9, 1, 0, 1, 3, 1, b'x', 12, 1, 0, 1, 10, 1, 0, 90, 0, 1, 0, 0],
    // Begun and reset, begun and left, new keys.
    &[
        0, 1, 128, 0, 0, 1, 5, 0, 9, 1, 0, 2, 128, 0, 14, 2, 1, 7, 1, 7, 1, 15, 0, 0xFF, 0xFF, 7, 1, 14, 7, 0, 0, 3,
        128, 0,
    ],
    // Data before it was taken, of no stream, no frame at all.
    &[0, 1, 128, 0, 0, 1, 3, 1, b'x'],
    &[0, 1, 7, 5, 0, 0, 0, 1, 9],
];

fn mux() -> Vec<Vec<u8>> {
    let plays = TALKED.iter().zip(0..).flat_map(|(talked, number): (_, u8)| {
        // Some are what the caller does, some what the callee.
        [number, number + 1].map(|choice| [&[choice, u8::from(number > 7)][..], talked].concat())
    });
    plays.collect()
}

fn handshake() -> Vec<Vec<u8>> {
    let said: [&[u8]; 5] =
        [&client_hello(), &server_hello(), b"GET / HTTP/1.1\r\n\r\n", &[21, 3, 3, 0, 2, 2, 40], &[20, 3, 3, 0, 1, 1]];
    let strangers = said.iter().flat_map(|said| [2, 11].map(|how| [&[how][..], &PIECES[0], said].concat()));
    // Whoever shakes hands: undisturbed, with a byte more, a byte less, and much behind the handshake.
    let edits: [&[u8]; 4] =
        [&[0, 0, 0], &[1, 0, 0, 0, 1, 22, 0, 9], &[1, 0, 9, 1, 0, 0, 9], &[1, 0xFF, 0xFF, 0, 0, 0x40, 1]];
    let wires = edits.iter().zip([0, 1].iter().cycle());
    let knowing = wires.flat_map(|(edit, role)| PIECES.map(|pieces| [&[*role][..], &pieces, edit].concat()));
    strangers.chain(knowing).collect()
}

/// A hello of a client that offers X25519 and AES-128 alone (RFC 8446 §4.1.2); its share is no secret of anybody's.
fn client_hello() -> Vec<u8> {
    let mut extensions = vec![];
    extend(&mut extensions, 43, &[2, 3, 4]);
    extend(&mut extensions, 10, &[0, 2, 0, 29]);
    extend(&mut extensions, 13, &[0, 4, 4, 3, 8, 7]);
    extend(&mut extensions, 51, &[&[0, 36, 0, 29, 0, 32][..], &[9; 32]].concat());
    extend(&mut extensions, 16, &[0, 13, 11, 101, 110, 116, 101, 110, 116, 101, 47, 109, 117, 120, 0]);
    hello(1, &[0, 2, 0x13, 1, 1, 0], &extensions)
}

/// A server's answer to somebody else's hello.
fn server_hello() -> Vec<u8> {
    let mut extensions = vec![];
    extend(&mut extensions, 43, &[3, 4]);
    extend(&mut extensions, 51, &[&[0, 29, 0, 32][..], &[9; 32]].concat());
    hello(2, &[0x13, 1, 0], &extensions)
}

fn extend(extensions: &mut Vec<u8>, kind: u8, content: &[u8]) {
    extensions.extend([0, kind, 0, content.len() as u8]);
    extensions.extend(content);
}

/// A record with a message: a version, a random number, a session, `chosen`, extensions.
fn hello(kind: u8, chosen: &[u8], extensions: &[u8]) -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &[32], &[8; 32], chosen, &[0, extensions.len() as u8], extensions].concat();
    [&[22, 3, 1, 0, body.len() as u8 + 4, kind, 0, 0, body.len() as u8][..], &body].concat()
}
