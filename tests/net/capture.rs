//! Every frame that crosses the hub.

use std::{
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// All protocols, in network byte order (linux/if_ether.h).
const ALL_PROTOCOLS: i32 = 0x0300;

pub(crate) struct Capture {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    /// Listens on every interface of this namespace from now on.
    pub(crate) fn start() -> Self {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL_PROTOCOLS))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        let (frames, stop) = (Arc::<Mutex<Vec<Vec<u8>>>>::default(), Arc::<AtomicBool>::default());
        let (into, until) = (frames.clone(), stop.clone());
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 70_000];
            // The last look comes after the stop, so that what was sent before it is seen.
            loop {
                let last = until.load(Ordering::SeqCst);
                while let Ok(length) = (&socket).read(&mut buffer) {
                    into.lock().unwrap().push(buffer[..length].to_vec());
                }
                if last {
                    return;
                }
            }
        });
        Self { frames, stop, reader: Some(reader) }
    }

    /// Frames so far that hold `bytes`.
    pub(crate) fn holding(&self, bytes: &[u8]) -> usize {
        let frames = self.frames.lock().unwrap();
        frames.iter().filter(|frame| frame.windows(bytes.len()).any(|window| window == bytes)).count()
    }

    /// Ends the capture; answers how many frames hold `bytes`.
    pub(crate) fn end(mut self, bytes: &[u8]) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.reader.take().unwrap().join().unwrap();
        self.holding(bytes)
    }
}
