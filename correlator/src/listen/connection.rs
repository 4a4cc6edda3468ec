//! A connection that has a place, and who is at its other end.

use super::door::{Door, Place};
use crate::intake::Budget;
use rustls_pki_types::CertificateDer;
use seclog_identity::Facts;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Who is at the other end. Clones are the same peer.
#[derive(Debug, Clone)]
pub struct Peer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    addr: SocketAddr,
    chain: Vec<CertificateDer<'static>>,
    not_after: i64,
    refused: bool,
    memory: Budget,
    open: AtomicUsize,
    begun: AtomicU64,
}

/// A request of a peer, as long as it lasts.
#[derive(Debug)]
pub struct OpenRequest(Peer);

/// A connection with its place.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    peer: Peer,
    door: Door,
    idle: Pin<Box<Sleep>>,
    /// Requests begun when it was last looked for idleness.
    begun: u64,
    _place: Place,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

// === impl Peer ===

impl Peer {
    fn new(addr: SocketAddr, chain: Vec<CertificateDer<'static>>, refused: bool, memory: Budget) -> Self {
        let facts = chain.first().map(|own| Facts::of(own));
        let not_after = facts.and_then(Result::ok).map_or(i64::MAX, |facts| facts.not_after);
        let (open, begun) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self(Arc::new(Inner { addr, chain, not_after, refused, memory, open, begun }))
    }

    pub fn addr(&self) -> SocketAddr {
        self.0.addr
    }

    /// Its own certificate first; empty where it showed none.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// When its certificate ends, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.0.not_after
    }

    /// There are too many connections: it is to be told so, and nothing else.
    pub fn is_refused(&self) -> bool {
        self.0.refused
    }

    /// Its share of the memory for intakes.
    pub fn memory(&self) -> &Budget {
        &self.0.memory
    }

    /// A request begins.
    pub fn request(&self) -> OpenRequest {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        OpenRequest(self.clone())
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Connection ===

impl Connection {
    pub(super) fn plain(stream: TcpStream, addr: SocketAddr, door: &Door, place: Place) -> Self {
        Self::new(Io::Plain(stream), addr, Vec::new(), door, place)
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, addr: SocketAddr, door: &Door, place: Place) -> Self {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        Self::new(Io::Tls(Box::new(stream)), addr, chain, door, place)
    }

    fn new(io: Io, addr: SocketAddr, chain: Vec<CertificateDer<'static>>, door: &Door, place: Place) -> Self {
        let memory = door.budget().share(door.limits().connection_memory);
        let peer = Peer::new(addr, chain, place.refused, memory);
        let idle = Box::pin(tokio::time::sleep(door.limits().idle_within));
        Self { io, peer, door: door.clone(), idle, begun: 0, _place: place }
    }

    /// An error when it is idle.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while self.idle.as_mut().poll(context).is_ready() {
            let begun = self.peer.0.begun.load(Ordering::Relaxed);
            if begun == self.begun && self.peer.0.open.load(Ordering::Relaxed) == 0 {
                self.door.counters().closed_idle.fetch_add(1, Ordering::Relaxed);
                return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was asked for on this connection"));
            }
            self.begun = begun;
            self.idle.as_mut().reset(Instant::now() + self.door.limits().idle_within);
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Err(error) = this.poll_idle(context) {
            return Poll::Ready(Err(error));
        }
        match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, from),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, from),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
