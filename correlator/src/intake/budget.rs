//! Memory that intakes may hold of what peers sent, all together and each connection of its own.
//!
//! What holds: bytes are taken before they are read from a socket, and given back when the [`Held`] that stands for them is
//! dropped. So the sum of what is held never exceeds the budget, however many peers send and however slow the rest is. A
//! share is a smaller budget inside a larger one: what it takes is taken from both.
//!
//! Who wants more than there is waits its turn (first come, first served) no longer than it has patience for, and is then
//! to be told: 429 with Retry-After over HTTP, RESOURCE_EXHAUSTED over gRPC.

use crate::telemetry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of bytes that may be held at once. Clones are the same budget.
#[derive(Debug, Clone)]
pub struct Budget {
    pool: Arc<Pool>,
    /// The budget that this is a share of.
    whole: Option<Arc<Pool>>,
}

#[derive(Debug)]
struct Pool {
    bytes: usize,
    free: Arc<Semaphore>,
    most_held: AtomicUsize,
    refused: AtomicU64,
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug, Default)]
#[must_use = "what is dropped is given back"]
pub struct Held(Vec<OwnedSemaphorePermit>);

/// There is no room, and there was none for as long as was waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    #[error("{wanted} bytes are more than may ever be held at once here ({most})")]
    Never { wanted: usize, most: usize },
    #[error("no room in memory for {wanted} bytes: what came before is not done yet; come again")]
    Now { wanted: usize },
}

// === impl Budget ===

impl Budget {
    pub fn new(bytes: usize) -> Self {
        Self { pool: Pool::new(bytes), whole: None }
    }

    /// A budget of `bytes` inside this one, say of one connection. A share of a share is a share of the whole.
    pub fn share(&self, bytes: usize) -> Self {
        let whole = self.whole.as_ref().unwrap_or(&self.pool);
        Self { pool: Pool::new(bytes.min(whole.bytes)), whole: Some(Arc::clone(whole)) }
    }

    /// Takes `bytes` if they are free now.
    pub fn try_take(&self, bytes: usize) -> Result<Held, OverBudget> {
        let count = self.count(bytes)?;
        let mut held = Held::default();
        for pool in self.pools() {
            match Arc::clone(&pool.free).try_acquire_many_owned(count) {
                Ok(permit) => held.0.push(permit),
                Err(_) => return Err(pool.refuse(OverBudget::Now { wanted: bytes })),
            }
            pool.note();
        }
        Ok(held)
    }

    /// Takes `bytes`, waiting for them no longer than `patience`.
    pub async fn take(&self, bytes: usize, patience: Duration) -> Result<Held, OverBudget> {
        let count = self.count(bytes)?;
        let taking = async {
            let mut held = Held::default();
            // One's own share first: who waits for that holds nothing that others wait for.
            for pool in self.pools() {
                // The semaphore is never closed.
                held.0.extend(Arc::clone(&pool.free).acquire_many_owned(count).await.ok());
                pool.note();
            }
            held
        };
        let taken = tokio::time::timeout(patience, taking).await;
        taken.map_err(|_| self.pool.refuse(OverBudget::Now { wanted: bytes }))
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.pool.bytes
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.pool.held()
    }

    /// The most bytes that were ever held at once.
    pub fn most_held(&self) -> usize {
        self.pool.most_held.load(Ordering::Relaxed)
    }

    /// Shows this budget in the metrics.
    pub fn register(&self, telemetry: &telemetry::Telemetry) {
        telemetry.collect(self.clone());
    }

    fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        [&self.pool].into_iter().chain(&self.whole)
    }

    fn count(&self, bytes: usize) -> Result<u32, OverBudget> {
        let fits = |count: &u32| *count as usize <= self.pool.bytes;
        u32::try_from(bytes).ok().filter(fits).ok_or_else(|| {
            let most = self.pool.bytes.min(u32::MAX as usize);
            self.pool.refuse(OverBudget::Never { wanted: bytes, most })
        })
    }
}

impl telemetry::Collect for Budget {
    fn collect(&self, to: &mut telemetry::Sample<'_>) -> std::fmt::Result {
        to.gauge("intake_memory_bytes", "Bytes of what peers sent that intakes hold now.", self.held() as u64)?;
        to.gauge("intake_memory_limit_bytes", "Bytes that intakes may hold (--intake-memory).", self.bytes() as u64)?;
        to.gauge("intake_memory_most_bytes", "The most that intakes held at once.", self.most_held() as u64)?;
        let refused = self.pool.refused.load(Ordering::Relaxed);
        to.counter("intake_memory_refused", "Times that a peer was told to come again for want of memory.", refused)
    }
}

// === impl Pool ===

impl Pool {
    fn new(bytes: usize) -> Arc<Self> {
        let bytes = bytes.min(Semaphore::MAX_PERMITS);
        let free = Arc::new(Semaphore::new(bytes));
        Arc::new(Self { bytes, free, most_held: AtomicUsize::new(0), refused: AtomicU64::new(0) })
    }

    fn held(&self) -> usize {
        self.bytes.saturating_sub(self.free.available_permits())
    }

    fn note(&self) {
        self.most_held.fetch_max(self.held(), Ordering::Relaxed);
    }

    fn refuse(&self, why: OverBudget) -> OverBudget {
        self.refused.fetch_add(1, Ordering::Relaxed);
        why
    }
}

// === impl Held ===

impl Held {
    /// Both together.
    pub fn add(&mut self, more: Self) {
        for permit in more.0 {
            match self.0.iter_mut().find(|held| Arc::ptr_eq(held.semaphore(), permit.semaphore())) {
                Some(held) => held.merge(permit),
                None => self.0.push(permit),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT_ONCE: Duration = Duration::ZERO;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::new(100);
        let mut held = budget.try_take(60).unwrap();
        assert_eq!(budget.try_take(41).unwrap_err(), OverBudget::Now { wanted: 41 });
        held.add(budget.try_take(40).unwrap());
        assert_eq!((budget.held(), budget.most_held()), (100, 100));
        drop(held);
        assert_eq!((budget.held(), budget.most_held()), (0, 100));
        assert!(budget.try_take(100).is_ok());
    }

    #[test]
    fn what_never_fits_is_told_from_what_does_not_fit_now() {
        let budget = Budget::new(100);
        assert_eq!(budget.try_take(101).unwrap_err(), OverBudget::Never { wanted: 101, most: 100 });
        let huge = Budget::new(usize::MAX);
        assert!(matches!(huge.try_take(usize::MAX).unwrap_err(), OverBudget::Never { .. }));
        assert!(huge.try_take(u32::MAX as usize).is_ok());
    }

    #[test]
    fn a_share_takes_from_the_whole_and_no_more_than_its_own() {
        let whole = Budget::new(100);
        let (one, other) = (whole.share(60), whole.share(60));
        let held = one.try_take(60).unwrap();
        assert!(one.try_take(1).is_err(), "its own share is used up");
        assert_eq!(other.try_take(41).unwrap_err(), OverBudget::Now { wanted: 41 }, "the whole has 40 left");
        assert_eq!(other.held(), 0, "what could not be taken whole was not taken at all");
        drop(held);
        assert!(other.try_take(60).is_ok());
        assert_eq!(whole.share(1000).bytes(), 100);
    }

    #[tokio::test]
    async fn who_waits_is_served_when_there_is_room_and_told_when_there_is_none() {
        let budget = Budget::new(10);
        let held = budget.take(10, AT_ONCE).await.unwrap();
        assert_eq!(budget.take(1, AT_ONCE).await.unwrap_err(), OverBudget::Now { wanted: 1 });
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(10, Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        drop(held);
        let held = waiting.await.unwrap().unwrap();
        assert_eq!(budget.held(), 10);
        drop(held);
    }

    proptest! {
        #[test]
        fn never_more_is_held_than_there_is_and_in_the_end_nothing(
            steps in proptest::collection::vec((0usize..4, 0usize..120, any::<bool>()), 1..80),
        ) {
            let whole = Budget::new(100);
            let shares: Vec<Budget> = (0..4).map(|_| whole.share(50)).collect();
            let mut taken: Vec<(usize, usize, Held)> = Vec::new();
            for (share, bytes, give_back) in steps {
                if give_back && !taken.is_empty() {
                    drop(taken.remove(bytes % taken.len()));
                }
                if let Ok(held) = shares[share].try_take(bytes) {
                    taken.push((share, bytes, held));
                }
                let sum: usize = taken.iter().map(|(_, bytes, _)| bytes).sum();
                prop_assert_eq!(whole.held(), sum);
                prop_assert!(sum <= 100);
                for (at, budget) in shares.iter().enumerate() {
                    let own: usize = taken.iter().filter(|(share, ..)| *share == at).map(|(_, bytes, _)| bytes).sum();
                    prop_assert_eq!(budget.held(), own);
                    prop_assert!(own <= 50);
                }
            }
            taken.clear();
            prop_assert_eq!(whole.held(), 0);
        }
    }
}
