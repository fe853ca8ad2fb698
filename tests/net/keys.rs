//! Peers that change their keys, on their own or with the wish that we change ours: OpenSSL on both sides of a sidecar.

use entente::brief::Mode;

use super::{
    foreign::{Files, Typist, WORD},
    pods::in_own_network,
    roles::{Act, Fared},
    support::soon,
};

/// What OpenSSL's programs are typed: keys with the wish for ours, keys without.
const COMMANDS: [(&str, [usize; 2]); 4] = [("K\n", [1, 1]), ("k\n", [2, 1]), ("k\n", [3, 1]), ("K\n", [4, 2])];
/// Words between two changes.
const WORDS: usize = 3;

#[test]
fn a_caller_that_changes_its_keys_asked_or_not_goes_on_being_answered() {
    in_own_network("keys::a_caller_that_changes_its_keys_asked_or_not_goes_on_being_answered", |hub| async move {
        let server = hub.pod(3, "server", &[(5432, Mode::MutualTls)], "").await;
        let _application = server.start(Act::Echo(vec![server.v4(5432)])).await;
        let files = Files::write(hub.folder(), "client", &hub.control.domain.certificate("client"));
        let mut client = Typist::client(server.v4(5432), "server.sip.contoso.example", &files);
        client.until("---").await;
        for (command, updates) in COMMANDS {
            client.types(command).await;
            client.until("KEYUPDATE").await;
            for _ in 0..WORDS {
                client.types(WORD).await;
                client.until(WORD).await;
            }
            assert_eq!(client.updates, updates, "sent and got after {command:?}");
        }
    });
}

#[test]
fn a_callee_that_changes_its_keys_asked_or_not_goes_on_being_called() {
    in_own_network("keys::a_callee_that_changes_its_keys_asked_or_not_goes_on_being_called", |hub| async move {
        let far = hub.bare(4).await;
        let client = hub.pod(2, "client", &[], "").await;
        client.knows(&far, "far", 5432, Mode::MutualTls);
        let files = Files::write(hub.folder(), "far", &hub.control.domain.certificate("far"));
        let mut server = Typist::server(&far.name, 5432, &files).await;
        // The caller is told to have begun once it is answered, which is the typist's work.
        let call = client.start(Act::Hold(far.v4(5432), WORD.to_owned()));
        let (mut held, ()) = tokio::join!(call, answer(&mut server));
        for (command, updates) in COMMANDS {
            // A command is one where nothing typed before it waits to be read: the caller has its answer, and asked again.
            server.until(WORD).await;
            server.types(command).await;
            server.until("KeyUpdate").await;
            server.types(WORD).await;
            answer(&mut server).await;
            assert_eq!(server.updates, updates, "sent and got after {command:?}");
        }
        assert!(held.child.try_wait().unwrap().is_none(), "it goes on");
        drop(server);
        soon("the caller's end", held.child.wait()).await.unwrap();
        assert_eq!(held.told::<Fared>(), Fared::Reset);
    });
}

/// Sends some words back, as a server does that echoes.
async fn answer(server: &mut Typist) {
    for _ in 0..WORDS {
        server.until(WORD).await;
        server.types(WORD).await;
    }
}
