//! Messages of a gRPC stream, counted in the budget before they are read.
//!
//! gRPC sends each message behind five bytes: a flag, and its length. As soon as those are there, what the message will
//! need is taken from the connection's share; until it is, nothing more is read from that stream, and HTTP/2's flow control
//! holds the sender back. The handler that gets the decoded message takes what stands for it ([`PendingMessages::next`]) and
//! drops it when it is done with the message.
//!
//! A message must be whole within 30 seconds of its first byte: a peer that sends one byte a minute holds memory no
//! longer than that.

use super::connection::Peer;
use super::door::Limits;
use crate::intake::{Budget, Held, OverBudget};
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body as TonicBody;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// A message in memory: its bytes as they came, and the structures decoded from them.
const TIMES_ITS_LENGTH: usize = 5;
const PREFIX: usize = 5;

#[derive(Debug, Clone, Copy)]
struct Patience {
    /// How long a message waits for memory.
    memory: Duration,
    /// How long a message may take from its first byte to its last.
    whole: Duration,
}

/// For a message, from its first byte to its last.
const WHOLE_WITHIN: Duration = Duration::from_secs(30);

/// What stands for messages that have been let in and not yet been taken by the handler, in their order.
#[derive(Debug, Clone, Default)]
pub struct PendingMessages(Arc<Mutex<VecDeque<Held>>>);

/// Meters the request bodies of a gRPC service.
#[derive(Debug, Clone)]
pub struct Metered<S> {
    service: S,
    largest: usize,
    patience: Patience,
}

// === impl PendingMessages ===

impl PendingMessages {
    /// Stands for the oldest message not taken yet.
    pub fn next(&self) -> Held {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or_default()
    }

    fn push(&self, held: Held) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(held);
    }
}

// === impl Metered ===

impl<S> Metered<S> {
    /// `largest`: bytes of one message.
    pub fn new(service: S, largest: usize, limits: &Limits) -> Self {
        Self { service, largest, patience: Patience { memory: limits.memory_within, whole: WHOLE_WITHIN } }
    }
}

impl<S: NamedService> NamedService for Metered<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Metered<S>
where
    S: Service<http::Request<TonicBody>>,
    B: Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let pending = PendingMessages::default();
        let (mut head, body) = request.into_parts();
        let memory = head.extensions.get::<Peer>().map(|peer| peer.memory().clone());
        head.extensions.insert(pending.clone());
        let body = match memory {
            Some(memory) => TonicBody::new(Meter::new(body, memory, self.largest, pending, self.patience)),
            // Not from one of our listeners: there is no budget to count in.
            None => TonicBody::new(body),
        };
        self.service.call(http::Request::from_parts(head, body))
    }
}

type Taking = Pin<Box<dyn Future<Output = Result<Held, OverBudget>> + Send>>;

struct Meter<B> {
    body: B,
    memory: Budget,
    largest: usize,
    pending: PendingMessages,
    /// Of the next message, as far as it has come.
    prefix: [u8; PREFIX],
    prefix_length: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    /// Read, and waiting for memory.
    waiting: Option<(bytes::Bytes, usize, Taking)>,
    patience: Patience,
    until: Pin<Box<Sleep>>,
}

impl<B> Meter<B> {
    fn new(body: B, memory: Budget, largest: usize, pending: PendingMessages, patience: Patience) -> Self {
        let until = Box::pin(tokio::time::sleep(patience.whole));
        let (prefix, prefix_length, left, waiting) = ([0; PREFIX], 0, 0, None);
        Self { body, memory, largest, pending, prefix, prefix_length, left, waiting, patience, until }
    }

    fn is_inside_a_message(&self) -> bool {
        self.prefix_length > 0 || self.left > 0
    }

    /// Goes on in `data` from `at`. `Ok(None)`: all of it is let through. `Ok(Some)`: memory must be waited for, and then it
    /// goes on from there.
    fn walk(&mut self, data: &[u8], mut at: usize) -> Result<Option<(usize, Taking)>, Status> {
        while at < data.len() {
            if self.left > 0 {
                let step = self.left.min(data.len() - at);
                self.left -= step;
                at += step;
                continue;
            }
            if self.prefix_length == 0 {
                self.until.as_mut().reset(Instant::now() + self.patience.whole);
            }
            let step = (PREFIX - self.prefix_length).min(data.len() - at);
            self.prefix[self.prefix_length..self.prefix_length + step].copy_from_slice(&data[at..at + step]);
            self.prefix_length += step;
            at += step;
            if self.prefix_length < PREFIX {
                continue;
            }
            self.prefix_length = 0;
            let [_, a, b, c, d] = self.prefix;
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if length > self.largest {
                return Err(Status::resource_exhausted(format!(
                    "a message of {length} bytes; this correlator takes {} bytes at most",
                    self.largest
                )));
            }
            self.left = length;
            let wanted = length.saturating_mul(TIMES_ITS_LENGTH);
            match self.memory.try_take(wanted) {
                Ok(held) => self.pending.push(held),
                Err(why @ OverBudget::Never { .. }) => return Err(Status::resource_exhausted(why.to_string())),
                Err(OverBudget::Now { .. }) => {
                    let memory = self.memory.clone();
                    let patience = self.patience.memory;
                    let taking: Taking = Box::pin(async move { memory.take(wanted, patience).await });
                    return Ok(Some((at, taking)));
                }
            }
        }
        Ok(None)
    }
}

impl<B> Body for Meter<B>
where
    B: Body<Data = bytes::Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            if let Some((data, at, mut taking)) = this.waiting.take() {
                match taking.as_mut().poll(context) {
                    Poll::Pending => {
                        this.waiting = Some((data, at, taking));
                        return Poll::Pending;
                    }
                    Poll::Ready(Err(why)) => {
                        return Poll::Ready(Some(Err(Status::resource_exhausted(why.to_string()))));
                    }
                    Poll::Ready(Ok(held)) => this.pending.push(held),
                }
                // Waiting was ours, not the peer's.
                this.until.as_mut().reset(Instant::now() + this.patience.whole);
                match this.walk(&data, at) {
                    Ok(None) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(Some((at, taking))) => this.waiting = Some((data, at, taking)),
                    Err(status) => return Poll::Ready(Some(Err(status))),
                }
                continue;
            }
            let data = match Pin::new(&mut this.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    if this.is_inside_a_message() && this.until.as_mut().poll(context).is_ready() {
                        let why = format!("a message was not whole within {:?}", this.patience.whole);
                        return Poll::Ready(Some(Err(Status::deadline_exceeded(why))));
                    }
                    return Poll::Pending;
                }
            };
            match this.walk(&data, 0) {
                Ok(None) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Some((at, taking))) => this.waiting = Some((data, at, taking)),
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, StreamBody};
    use proptest::prelude::*;

    fn framed(lengths: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for length in lengths {
            bytes.push(0);
            bytes.extend(u32::try_from(*length).unwrap().to_be_bytes());
            bytes.extend(std::iter::repeat_n(7, *length));
        }
        bytes
    }

    fn meter<B>(body: B, budget: &Budget, pending: &PendingMessages, patience: Patience) -> Meter<B> {
        Meter::new(body, budget.clone(), 300, pending.clone(), patience)
    }

    const PATIENCE: Patience = Patience { memory: Duration::from_secs(20), whole: WHOLE_WITHIN };
    const AT_ONCE: Patience = Patience { memory: Duration::ZERO, whole: Duration::ZERO };

    type Chunks = tokio_stream::Iter<std::vec::IntoIter<Result<Frame<bytes::Bytes>, Status>>>;

    fn body(bytes: &[u8], chunk: usize) -> StreamBody<Chunks> {
        let frames: Vec<_> =
            bytes.chunks(chunk).map(|chunk| Ok(Frame::data(bytes::Bytes::copy_from_slice(chunk)))).collect();
        StreamBody::new(tokio_stream::iter(frames))
    }

    proptest! {
        #[test]
        fn every_byte_goes_through_and_every_message_is_counted(
            lengths in proptest::collection::vec(0usize..300, 0..20),
            chunk in 1usize..200,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let (bytes, budget, pending) = (framed(&lengths), Budget::new(1 << 20), PendingMessages::default());
                let meter = meter(body(&bytes, chunk), &budget, &pending, PATIENCE);
                let through = meter.collect().await.unwrap().to_bytes();
                assert_eq!(through, bytes);
                assert_eq!(budget.held(), lengths.iter().sum::<usize>() * TIMES_ITS_LENGTH);
                for _ in &lengths {
                    drop(pending.next());
                }
                assert_eq!(budget.held(), 0);
            });
        }
    }

    #[tokio::test]
    async fn a_message_waits_for_memory_and_is_refused_when_there_is_none_in_time() {
        let (budget, pending) = (Budget::new(1000), PendingMessages::default());
        let taken = budget.try_take(900).unwrap();
        let waiting = tokio::spawn(meter(body(&framed(&[100]), 20), &budget, &pending, PATIENCE).collect());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(taken);
        assert_eq!(waiting.await.unwrap().unwrap().to_bytes().len(), 105);
        drop(pending.next());

        let _taken = budget.try_take(900).unwrap();
        let status = meter(body(&framed(&[100]), 20), &budget, &pending, AT_ONCE).collect().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn what_is_too_long_is_refused_before_it_comes() {
        let (budget, pending) = (Budget::new(1 << 20), PendingMessages::default());
        let status = meter(body(&framed(&[301])[..5], 5), &budget, &pending, PATIENCE).collect().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().contains("301 bytes"), "{status}");
    }

    #[tokio::test]
    async fn a_message_that_does_not_go_on_is_given_up() {
        let (budget, pending) = (Budget::new(1 << 20), PendingMessages::default());
        let begun = tokio_stream::StreamExt::chain(
            tokio_stream::iter([Ok::<_, Status>(Frame::data(bytes::Bytes::from_static(&[0, 0, 0, 0, 9, 1])))]),
            tokio_stream::pending(),
        );
        let status = meter(StreamBody::new(begun), &budget, &pending, AT_ONCE).collect().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    }
}
