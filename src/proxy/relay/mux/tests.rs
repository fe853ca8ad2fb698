use std::{
    future::poll_fn,
    io::{self, IoSlice},
};

use tokio::{net::TcpListener, time::sleep};

use super::{frame::MAX_DATA, *};
use crate::proxy::{
    basis::Basis,
    records::{STRIDE, tests::both},
    registry::Registry,
    relay::application::Sink,
};

/// Takes everything.
#[derive(Debug)]
struct All;

impl Sink for All {
    fn take(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(pieces.iter().map(|piece| piece.len()).sum())
    }
}

/// A connection over loopback, at both ends.
async fn pair() -> [(Arc<Mux>, Life); 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    // It has a runtime of its own.
    let (ours, theirs) = std::thread::spawn(both).join().unwrap();
    let ends = [(Role::Caller, dialled.unwrap(), ours), (Role::Callee, accepted.unwrap().0, theirs)];
    ends.map(|(role, network, records)| {
        let place = Arc::new(Registry::default()).enter(Basis::Egress { address });
        Mux::new(role, Parts { network, records, left: (vec![], vec![]) }, place, Duration::from_secs(3600))
    })
}

/// Sends `length` bytes on stream 1, as the peer allows.
async fn send(mux: &Arc<Mux>, mut length: usize) {
    let mut buffer = vec![7; STRIDE];
    while length > 0 {
        let room = poll_fn(|cx| mux.lock().room(1, false, cx)).await.unwrap();
        let now = length.min(room).min(MAX_DATA);
        let mut state = mux.lock();
        let sealed = state.seal(1, &mut buffer, now).unwrap();
        // Whoever pumps writes it.
        if let Some(sealed) = sealed {
            state.wrote_past(sealed);
        }
        length -= now;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_says_nothing_gives_back_what_its_window_has_grown_by() {
    let [(caller, ours), (callee, theirs)] = pair().await;
    let draining = CancellationToken::new();
    let (mut taken, other) = (vec![], callee.clone());
    let accept = |begun: Begun| {
        other.lock().attach(1, Arc::new(All));
        taken.push(begun.accept().unwrap());
    };
    let script = async {
        let begun = caller.begin().unwrap();
        assert_eq!(begun.answered().await, Answer::Accepted);
        assert!(!caller.lock().outlook().lent);
        send(&caller, 4 << 20).await;
        assert!(caller.lock().outlook().lent);
        // Who goes on sending keeps it.
        for _ in 0..5 {
            sleep(QUIET / 2).await;
            send(&caller, 1000).await;
        }
        assert!(caller.lock().outlook().lent);
        sleep(QUIET * 3).await;
        assert!(!caller.lock().outlook().lent);
        send(&caller, 4 << 20).await;
        assert!(caller.lock().outlook().lent, "and it grows again");
    };
    tokio::select! {
        () = caller.run(ours, &draining, drop) => panic!("ours ended"),
        () = callee.run(theirs, &draining, accept) => panic!("theirs ended"),
        () = script => {}
    }
}
