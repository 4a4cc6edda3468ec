//! Accepts, shakes hands, and hands over connections that have a place.

use super::connection::Connection;
use super::door::Door;
use crate::intake::RateLimit;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;

/// Connections that wait for the server to take them.
const WAITING: usize = 16;
/// After an accept that failed: most often no more files may be open, which passes as connections end.
const BREATH: Duration = Duration::from_millis(100);

/// Connections as they come. Dropping it ends accepting.
#[derive(Debug)]
pub struct Incoming {
    connections: mpsc::Receiver<Connection>,
    _accepting: JoinSet<()>,
}

impl Incoming {
    pub fn new(listener: TcpListener, door: Door) -> Self {
        let (sender, connections) = mpsc::channel(WAITING);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, door, sender));
        Self { connections, _accepting: accepting }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

async fn accept(listener: TcpListener, door: Door, to: mpsc::Sender<Connection>) {
    let told = Arc::new(RateLimit::default());
    // Handshakes end with this task.
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
            () = to.closed() => return,
        };
        let (stream, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                door.counters().accept_failed.fetch_add(1, Ordering::Relaxed);
                if let Some(held_back) = told.pass() {
                    tracing::warn!(held_back, "a connection could not be accepted: {error}");
                }
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        door.counters().accepted.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_nodelay(true);
        let Some((greeting, within)) = door.handshake() else {
            close(&door, &told, addr, "too many TLS handshakes are under way");
            continue;
        };
        let (door, to, told) = (door.clone(), to.clone(), Arc::clone(&told));
        handshakes.spawn(async move {
            if let Some(connection) = greet(stream, addr, &door, within, &told).await {
                drop(greeting);
                let _ = to.send(connection).await;
            }
        });
    }
}

async fn greet(
    stream: TcpStream,
    addr: SocketAddr,
    door: &Door,
    within: Duration,
    told: &RateLimit,
) -> Option<Connection> {
    let Some(config) = door.tls() else {
        let place = door.place();
        if place.is_none() {
            close(door, told, addr, "too many connections are open");
        }
        return Some(Connection::plain(stream, addr, door, place?));
    };
    let counters = door.counters();
    let shaken = tokio::time::timeout(within, TlsAcceptor::from(config).accept(stream)).await;
    let (counter, why) = match shaken {
        Ok(Ok(stream)) => {
            let place = door.place();
            if place.is_none() {
                close(door, told, addr, "too many connections are open");
            }
            return Some(Connection::tls(stream, addr, door, place?));
        }
        Ok(Err(error)) => (&counters.handshakes_failed, error.to_string()),
        Err(_) => (&counters.handshakes_late, format!("no TLS handshake within {within:?}")),
    };
    counter.fetch_add(1, Ordering::Relaxed);
    if let Some(held_back) = told.pass() {
        tracing::warn!(peer = %addr, held_back, "connection refused: {why}");
    }
    None
}

fn close(door: &Door, told: &RateLimit, addr: SocketAddr, why: &str) {
    door.counters().closed_full.fetch_add(1, Ordering::Relaxed);
    if let Some(held_back) = told.pass() {
        tracing::warn!(peer = %addr, held_back, "connection closed: {why}");
    }
}
