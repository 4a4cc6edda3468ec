//! A slow network: a relay in this process that lets so many bytes a second through, each way.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, sleep},
    time::Duration,
};

use anyhow::Result;

/// Bytes are let through in steps of so long.
const STEP: Duration = Duration::from_millis(20);

/// Ends when dropped, with its connections.
#[derive(Debug)]
pub struct Relay {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    to: u16,
    bytes_a_second: AtomicU64,
    connections: AtomicUsize,
    cut: AtomicBool,
    stopped: AtomicBool,
}

impl Relay {
    /// To a port of this machine.
    pub fn start(to: u16, bytes_a_second: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            to,
            bytes_a_second: AtomicU64::new(bytes_a_second),
            connections: AtomicUsize::new(0),
            cut: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                if accepting.cut.load(Ordering::Relaxed) {
                    continue;
                }
                // Nobody is there: the client sees its connection closed.
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", accepting.to))) else {
                    continue;
                };
                accepting.connections.fetch_add(1, Ordering::Relaxed);
                for (from, to) in [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))] {
                    let (Ok(from), Ok(to)) = (from, to) else { continue };
                    let shared = Arc::clone(&accepting);
                    thread::spawn(move || shared.pass(from, to));
                }
            }
        });
        Ok(Self { port, shared })
    }

    /// Connections that were made to the other side since the start, or since they were cut.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Ends all connections, and those that are made from now on.
    pub fn cut(&self, cut: bool) {
        self.shared.connections.store(0, Ordering::Relaxed);
        self.shared.cut.store(cut, Ordering::Relaxed);
    }

    pub fn set_speed(&self, bytes_a_second: u64) {
        self.shared.bytes_a_second.store(bytes_a_second, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

impl Shared {
    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = vec![0; 64 << 10];
        let _ = from.set_read_timeout(Some(Duration::from_millis(200)));
        while !self.stopped.load(Ordering::Relaxed) && !self.cut.load(Ordering::Relaxed) {
            let a_step = self.bytes_a_second.load(Ordering::Relaxed) / (1000 / STEP.as_millis() as u64);
            let most = usize::try_from(a_step).unwrap_or(usize::MAX).clamp(1, bytes.len());
            match from.read(&mut bytes[..most]) {
                Ok(0) => break,
                Ok(length) if to.write_all(&bytes[..length]).is_err() => break,
                Ok(length) if length == most && most < bytes.len() => sleep(STEP),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(_) => break,
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
