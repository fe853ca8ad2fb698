use std::{
    io::{Read, Write},
    sync::Arc,
};

use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, Connection, ConnectionTrafficSecrets, RootCertStore, ServerConfig,
    ServerConnection,
    client::UnbufferedClientConnection,
    crypto::cipher::{AeadKey, Iv},
    server::UnbufferedServerConnection,
    version::TLS13,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use super::*;
use crate::{proxy::tls::tests::shake, telemetry};

pub(in crate::proxy) fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["far.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(telemetry::crypto());
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    server.send_tls13_tickets = 0;
    (Arc::new(client), Arc::new(server))
}

pub(in crate::proxy) fn name() -> ServerName<'static> {
    "far.example".try_into().unwrap()
}

/// Our records beside rustls' own, in either role.
fn pairs() -> [(Records, Connection); 2] {
    let (client, server) = configs();
    let theirs = Connection::Server(ServerConnection::new(server.clone()).unwrap());
    let called = shake(UnbufferedClientConnection::new(client.clone(), name()).unwrap(), theirs);
    let theirs = Connection::Client(ClientConnection::new(client, name()).unwrap());
    let answered = shake(UnbufferedServerConnection::new(server).unwrap(), theirs);
    [called, answered]
}

/// Seals `data` as the tunnel does.
fn sealed(ours: &mut Records, data: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0xAA; (data.len() / MAX_PLAINTEXT + 1) * STRIDE];
    for (slot, piece) in buffer.chunks_mut(STRIDE).zip(data.chunks(MAX_PLAINTEXT)) {
        slot[HEADER..HEADER + piece.len()].copy_from_slice(piece);
    }
    let length = ours.seal(&mut buffer, data.len()).unwrap();
    buffer.truncate(length);
    buffer
}

/// What rustls reads of `wire`.
fn read(theirs: &mut Connection, mut wire: &[u8]) -> Result<Vec<u8>, Error> {
    let mut all = vec![];
    while !wire.is_empty() {
        theirs.read_tls(&mut wire).unwrap();
        theirs.process_new_packets()?;
        let mut some = vec![0; 1 << 16];
        while let Ok(length @ 1..) = theirs.reader().read(&mut some) {
            all.extend_from_slice(&some[..length]);
        }
    }
    Ok(all)
}

/// What rustls has to say.
fn said(theirs: &mut Connection) -> Vec<u8> {
    let mut wire = vec![];
    while theirs.wants_write() {
        theirs.write_tls(&mut wire).unwrap();
    }
    wire
}

/// What we read of `wire`; our answers go to `out`.
fn opened(ours: &mut Records, wire: &[u8], out: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
    let (mut wire, mut all) = (wire.to_vec(), vec![]);
    let mut rest = wire.as_mut_slice();
    while let Some(length) = whole(rest)? {
        let (record, behind) = rest.split_at_mut(length);
        match ours.open(record)? {
            Opened::Data(data) => all.extend_from_slice(data),
            Opened::UpdateRequested => ours.update(out)?,
            Opened::Nothing | Opened::Closed => {}
        }
        rest = behind;
    }
    assert!(rest.is_empty());
    Ok(all)
}

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

#[test]
fn records_of_every_size_at_the_edges_are_what_rustls_reads_and_writes() {
    for (mut ours, mut theirs) in pairs() {
        theirs.set_buffer_limit(None);
        for length in (1..300).chain(MAX_PLAINTEXT - 20..MAX_PLAINTEXT + 20).chain([3 * MAX_PLAINTEXT, 100_000]) {
            let data = data(length);
            assert!(read(&mut theirs, &sealed(&mut ours, &data)).unwrap() == data, "{length} out");
            theirs.writer().write_all(&data).unwrap();
            let wire = said(&mut theirs);
            assert!(opened(&mut ours, &wire, &mut vec![]).unwrap() == data, "{length} in");
        }
    }
}

#[test]
fn a_record_is_whole_when_its_last_byte_is_there_and_not_before() {
    let [(mut ours, _), _] = pairs();
    let wire = sealed(&mut ours, &data(300));
    for length in 0..wire.len() {
        assert_eq!(whole(&wire[..length]), Ok(None), "{length}");
    }
    assert_eq!(whole(&wire), Ok(Some(wire.len())));
}

#[test]
fn either_side_changes_keys_as_often_as_it_likes_asked_or_not() {
    for (mut ours, mut theirs) in pairs() {
        for _ in 0..3 {
            // rustls asks us to follow.
            theirs.refresh_traffic_keys().unwrap();
            theirs.writer().write_all(b"new key").unwrap();
            let mut answer = vec![];
            let wire = said(&mut theirs);
            assert_eq!(opened(&mut ours, &wire, &mut answer).unwrap(), b"new key");
            assert!(!answer.is_empty(), "we follow");
            answer.extend(sealed(&mut ours, b"ours too"));
            assert_eq!(read(&mut theirs, &answer).unwrap(), b"ours too");
            // And by ourselves.
            let mut wire = vec![];
            ours.update(&mut wire).unwrap();
            wire.extend(sealed(&mut ours, b"ours alone"));
            assert_eq!(read(&mut theirs, &wire).unwrap(), b"ours alone");
            theirs.writer().write_all(b"as before").unwrap();
            let wire = said(&mut theirs);
            assert_eq!(opened(&mut ours, &wire, &mut vec![]).unwrap(), b"as before");
        }
    }
}

#[test]
fn a_key_that_has_sealed_its_share_is_worn_and_its_successor_is_not() {
    let [(mut ours, mut theirs), _] = pairs();
    ours.max_sealed = 4;
    let mut wire = vec![];
    while !ours.is_worn() {
        wire.extend(sealed(&mut ours, b"x"));
    }
    ours.update(&mut wire).unwrap();
    assert!(!ours.is_worn());
    wire.extend(sealed(&mut ours, b"y"));
    assert_eq!(read(&mut theirs, &wire).unwrap().last(), Some(&b'y'));
}

#[test]
fn a_byte_changed_anywhere_is_noticed() {
    let length = {
        let [(mut ours, _), _] = pairs();
        sealed(&mut ours, &data(40)).len()
    };
    let (client, server) = configs();
    for position in 0..length {
        let theirs = Connection::Server(ServerConnection::new(server.clone()).unwrap());
        let (mut ours, mut theirs) = shake(UnbufferedClientConnection::new(client.clone(), name()).unwrap(), theirs);
        theirs.writer().write_all(&data(40)).unwrap();
        let mut wire = said(&mut theirs);
        wire[position] ^= 0x10;
        let seen = match whole(&wire) {
            Ok(None) => continue,
            Ok(Some(length)) => ours.open(&mut wire[..length]).map(drop),
            Err(error) => Err(error),
        };
        assert!(seen.is_err(), "{position}");
    }
}

#[test]
fn what_is_not_protected_or_too_long_is_refused_with_its_alert() {
    let refused = |header: &[u8]| alert_for(&whole(header).unwrap_err()).unwrap();
    assert_eq!(refused(&[0x14, 3, 3, 0, 1, 1]), AlertDescription::UnexpectedMessage);
    assert_eq!(refused(&[0x16, 3, 3, 0, 1, 1]), AlertDescription::UnexpectedMessage);
    assert_eq!(refused(&[0x15, 3, 3, 0, 2, 2]), AlertDescription::UnexpectedMessage);
    assert_eq!(refused(&[0x17, 3, 3, 0x41, 1]), AlertDescription::RecordOverflow);
    assert_eq!(whole(&[0x17, 3, 3, 0x41, 0]), Ok(None));
}

/// Two ends of our own: what one says, the other opens.
pub(in crate::proxy) fn both() -> (Records, Records) {
    let secrets =
        |byte| ConnectionTrafficSecrets::Aes128Gcm { key: AeadKey::from([byte; 32]), iv: Iv::from([byte; 12]) };
    let [(ours, _), (theirs, _)] = pairs();
    let keys = |tx, rx| ExtractedSecrets { tx: (0, secrets(tx)), rx: (0, secrets(rx)) };
    let (ours, theirs) = (ours.secrets, theirs.secrets);
    (Records::new(keys(1, 2), ours).unwrap(), Records::new(keys(2, 1), theirs).unwrap())
}

fn told(kind: ContentType, contents: &[&[u8]]) -> Result<Vec<String>, Error> {
    let (mut sender, mut receiver) = both();
    let open = |content: &&[u8]| {
        let mut record = vec![];
        sender.say(kind, content, &mut record).unwrap();
        receiver.open(&mut record).map(|opened| format!("{opened:?}"))
    };
    contents.iter().map(open).collect()
}

#[test]
fn tickets_are_passed_over_in_pieces_too_and_nothing_comes_between() {
    let ticket = [&[NEW_SESSION_TICKET, 0, 0, 200][..], &[7; 200]].concat();
    assert_eq!(told(ContentType::Handshake, &[&ticket]).unwrap(), ["Nothing"]);
    let two = [ticket.clone(), ticket.clone()].concat();
    assert_eq!(told(ContentType::Handshake, &[&two[..100], &two[100..300], &two[300..]]).unwrap().len(), 3);
    // As many as there is room for, the last one in two parts.
    let empty = [[NEW_SESSION_TICKET, 0, 0, 0]; MAX_PLAINTEXT / 4].concat();
    let begun = empty.len() - 2;
    assert_eq!(told(ContentType::Handshake, &[&empty, &empty[..begun], &empty[begun..]]).unwrap(), ["Nothing"; 3]);
    let (mut sender, mut receiver) = both();
    let mut record = vec![];
    sender.say(ContentType::Handshake, &ticket[..10], &mut record).unwrap();
    receiver.open(&mut record).unwrap();
    let error = receiver.open(&mut sealed(&mut sender, b"data")).unwrap_err();
    assert_eq!(error, PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
}

#[test]
fn what_has_no_place_after_a_handshake_is_refused() {
    for (what, content) in [
        ("a hello", &[1, 0, 0, 0][..]),
        ("a request for a certificate", &[13, 0, 0, 3, 0, 0, 0]),
        ("a key update that says nothing", &[KEY_UPDATE, 0, 0, 0]),
        ("a key update that asks for something else", &[KEY_UPDATE, 0, 0, 1, 2]),
        ("a key update with something behind it", &[KEY_UPDATE, 0, 0, 1, 0, NEW_SESSION_TICKET]),
        ("a message without end", &[NEW_SESSION_TICKET, 0xFF, 0, 0]),
        ("an empty one", &[]),
    ] {
        let error = told(ContentType::Handshake, &[content]).unwrap_err();
        assert!(alert_for(&error).is_some(), "{what}");
    }
    assert!(told(ContentType::Heartbeat, &[b"bleed"]).is_err());
    assert!(told(ContentType::ChangeCipherSpec, &[&[1]]).is_err());
    assert!(told(ContentType::Alert, &[&[2]]).is_err());
}

#[test]
fn a_fatal_alert_is_an_error_and_a_goodbye_is_none() {
    assert_eq!(told(ContentType::Alert, &[&[1, 0]]).unwrap(), ["Closed"]);
    let revoked = told(ContentType::Alert, &[&[2, 44]]).unwrap_err();
    assert_eq!(revoked, Error::AlertReceived(AlertDescription::CertificateRevoked));
}

#[test]
fn whoever_sends_nothing_again_and_again_is_stopped() {
    let nothing = vec![&[][..]; 33];
    assert!(told(ContentType::ApplicationData, &nothing[..32]).is_ok());
    assert_eq!(told(ContentType::ApplicationData, &nothing).unwrap_err(), PeerMisbehaved::TooManyEmptyFragments.into());
}

#[test]
fn after_a_goodbye_nothing_is_sealed_and_rustls_sees_a_clean_end() {
    for (mut ours, mut theirs) in pairs() {
        let mut wire = sealed(&mut ours, b"the last word");
        ours.alert(AlertDescription::CloseNotify, &mut wire).unwrap();
        let length = wire.len();
        ours.alert(AlertDescription::InternalError, &mut wire).unwrap();
        ours.update(&mut wire).unwrap();
        assert_eq!(wire.len(), length);
        assert_eq!(read(&mut theirs, &wire).unwrap(), b"the last word");
        assert_eq!(theirs.reader().read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn behind_an_alert_nothing_can_be_sealed() {
    let (mut ours, _) = both();
    let mut wire = vec![];
    ours.alert(AlertDescription::UnexpectedMessage, &mut wire).unwrap();
    let length = wire.len();
    assert!(ours.seal(&mut [0; STRIDE], 5).is_err());
    assert!(ours.say(ContentType::ApplicationData, b"data", &mut wire).is_err());
    assert_eq!(wire.len(), length);
}

#[test]
fn the_records_of_rfc_8448_are_sealed_and_opened_as_it_says() {
    let bytes = |hex: &str| -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
    };
    let protection = |key: &str, iv: &str, sequence| {
        let mut long = [0; 32];
        long[..16].copy_from_slice(&bytes(key));
        let secrets = ConnectionTrafficSecrets::Aes128Gcm { key: AeadKey::from(long), iv: Iv::copy(&bytes(iv)) };
        Protection::new((sequence, secrets)).unwrap()
    };
    // §3: what the client says after the handshake, and the server after its ticket.
    let said = [
        (
            "17422dda596ed5d9acd890e3c63f5051",
            "5b78923dee08579033e523d9",
            0,
            "17030300 43a23f70 54b62c94 d0affafe 8228ba55 \
          cbefacea 42f914aa 66bcab3f 2b9819a8 a5b46b39 5bd54a9a 20441e2b 62974e1f 5a6292a2 977014bd 1e3deae6 3aeebb21 694915e4",
        ),
        (
            "9f02283b6c9c07efc26bb9f2ac92e356",
            "cf782b88dd83549aadf1e984",
            1,
            "17030300 432e937e 11ef4ac7 40e538ad 36005fc4 \
          a46932fc 3225d05f 82aa1b36 e30efaf9 7d90e6df fc602dcb 501a59a8 fcc49c4b f2e5f0a2 1c0047c2 abf33254 0dd032e1 67c2955d",
        ),
    ];
    let plaintext: Vec<u8> = (0..50).collect();
    for (key, iv, sequence, record) in said {
        let mut record = bytes(record);
        let mut buffer = vec![0; record.len()];
        buffer[HEADER..HEADER + 50].copy_from_slice(&plaintext);
        protection(key, iv, sequence).seal(&mut buffer, 50, ContentType::ApplicationData).unwrap();
        assert_eq!(buffer, record);
        let (kind, opened) = protection(key, iv, sequence).open(&mut record).unwrap();
        assert_eq!((kind, opened), (ContentType::ApplicationData, plaintext.as_slice()));
    }
}

#[test]
fn padding_is_taken_off_and_a_record_of_nothing_else_is_refused() {
    let (mut sender, mut receiver) = both();
    let mut padded = |content: &[u8]| {
        // The inner type is the first zero of the padding, and the real one stands before.
        let mut record = vec![];
        sender.say(ContentType::from(0), content, &mut record).unwrap();
        receiver.open(&mut record).map(|opened| format!("{opened:?}"))
    };
    assert_eq!(padded(&[1, 2, 23, 0, 0, 0]).unwrap(), "Data([1, 2])");
    assert_eq!(padded(&[0, 0, 23, 0, 0, 0]).unwrap(), "Data([0, 0])");
    assert!(padded(&[0, 0, 0]).is_err());
}
