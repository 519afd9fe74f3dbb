//! How much memory the bytes of pictures under way may take together: of bodies that are being read, and of what was made of
//! them, until it is written.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in units of this size.
const UNIT: u64 = 1024;
/// What a body of unknown length reserves to begin with.
const UNKNOWN: u64 = 64 * UNIT;

#[derive(Clone, Debug)]
pub(super) struct Budget {
    units: Arc<Semaphore>,
    total: u32,
    /// Whoever has it may take more than there is. It has one permit, so that bodies of unknown length cannot wait for each
    /// other for ever, and the budget is exceeded by one of them at most.
    overdraft: Arc<Semaphore>,
}

/// A share of the budget; given back when it is dropped.
#[derive(Debug)]
pub(in super::super) struct Share {
    budget: Budget,
    units: Option<OwnedSemaphorePermit>,
    overdraft_held: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).clamp(1, Semaphore::MAX_PERMITS as u32);
        Self { units: Arc::new(Semaphore::new(total as usize)), total, overdraft: Arc::new(Semaphore::new(1)) }
    }

    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.total)
    }

    /// A share for a body of `bytes` bytes, or of unknown length. Waits until there is one.
    pub(super) async fn reserve(&self, bytes: Option<u64>) -> Share {
        let units = Arc::clone(&self.units).acquire_many_owned(self.units(bytes.unwrap_or(UNKNOWN)));
        // The semaphore is never closed.
        Share { budget: self.clone(), units: units.await.ok(), overdraft_held: None }
    }
}

impl Share {
    /// Makes it one for `bytes` bytes; waits for more where it must.
    pub(super) async fn grow(&mut self, bytes: u64) {
        if self.overdraft_held.is_some() {
            return;
        }
        let held = self.units.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) as u32;
        let wanted = self.budget.units(bytes);
        if wanted <= held {
            return;
        }
        // By doubling, so that a long body does not ask for each of its pieces.
        let more = wanted.max((2 * held).min(self.budget.total)) - held;
        match Arc::clone(&self.budget.units).try_acquire_many_owned(more) {
            Ok(units) => match &mut self.units {
                Some(held) => held.merge(units),
                none => *none = Some(units),
            },
            Err(_none_free) => self.overdraft_held = Arc::clone(&self.budget.overdraft).acquire_owned().await.ok(),
        }
    }

    /// Gives back all but what `bytes` bytes need, and the overdraft in any case: a picture that waits for earlier rows to be
    /// written must not hold what one of those may need.
    pub(in super::super) fn shrink(&mut self, bytes: u64) {
        self.overdraft_held = None;
        let keep = self.budget.units(bytes) as usize;
        if let Some(units) = &mut self.units {
            let surplus = units.num_permits().saturating_sub(keep);
            drop(units.split(surplus));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_picture_that_is_made_leaves_the_overdraft_to_the_rows_before_it() {
        let budget = Budget::new(128 * UNIT);
        let (mut earlier, mut later) = (budget.reserve(None).await, budget.reserve(None).await);
        later.grow(200 * UNIT).await;
        later.shrink(10 * UNIT);
        // More than is free: what the later one gave back is not enough.
        let waited = tokio::time::timeout(std::time::Duration::from_secs(5), earlier.grow(200 * UNIT)).await;
        assert!(waited.is_ok());
        drop((earlier, later));
        assert_eq!((budget.units.available_permits(), budget.overdraft.available_permits()), (128, 1));
    }

    #[tokio::test]
    async fn all_of_it_comes_back_and_bodies_of_unknown_length_cannot_block_each_other() {
        let budget = Budget::new(256 * UNIT);
        let free = || budget.units.available_permits();
        let mut shares = Vec::new();
        for _ in 0..4 {
            shares.push(budget.reserve(None).await);
        }
        assert_eq!(free(), 0);
        // The first takes the overdraft and goes on; the second has to wait for it, and gets it.
        shares[0].grow(1000 * UNIT).await;
        shares[0].grow(2000 * UNIT).await;
        let mut second = shares.remove(1);
        let waiting = tokio::spawn(async move { second.grow(100 * UNIT).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(shares.remove(0));
        waiting.await.unwrap();
        shares[0].shrink(UNIT);
        assert_eq!(free(), 256 - 65);
        drop(shares);
        assert_eq!(free(), 256);
        let all = budget.reserve(Some(u64::MAX)).await;
        assert_eq!(free(), 0);
        drop(all);
    }
}
