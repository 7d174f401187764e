//! Counting what is in use, in all and per holder, so that no holder can take what all share.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

/// A number of units that are handed out and come back by themselves.
pub struct Quota<K> {
    /// Units that all holders may have together.
    total: usize,
    /// Units that one holder may have.
    each: usize,
    used: Mutex<Used<K>>,
}

struct Used<K> {
    total: usize,
    /// Only holders that have units, so the map is never larger than the quota.
    by_holder: BTreeMap<K, usize>,
}

/// There are no units left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Exceeded {
    /// For anybody.
    #[error("all {0} are in use")]
    Total(usize),
    /// For this holder.
    #[error("all {0} that one may have are in use")]
    Each(usize),
}

/// Units in one holder's hand; they go back when it is dropped.
pub struct Share<K: Ord> {
    quota: Arc<Quota<K>>,
    holder: K,
    units: usize,
}

impl<K: Ord + Clone> Quota<K> {
    /// So many units in all, and so many for one holder.
    pub fn new(total: usize, each: usize) -> Arc<Quota<K>> {
        Arc::new(Quota { total, each, used: Mutex::new(Used { total: 0, by_holder: BTreeMap::new() }) })
    }

    /// Takes `units` for `holder`.
    pub fn take(self: &Arc<Self>, holder: K, units: usize) -> Result<Share<K>, Exceeded> {
        let mut share = Share { quota: Arc::clone(self), holder, units: 0 };
        share.grow(units)?;
        Ok(share)
    }
}

impl<K: Ord> Quota<K> {
    /// Whether the holder could take so many.
    pub(crate) fn check(&self, holder: &K, units: usize) -> Result<(), Exceeded> {
        self.room(&self.used(), holder, units).map(drop)
    }

    /// What is in use, in all and by the holder, once it has so many more.
    fn room(&self, used: &Used<K>, holder: &K, units: usize) -> Result<(usize, usize), Exceeded> {
        let total = used.total.saturating_add(units);
        let held = used.by_holder.get(holder).copied().unwrap_or(0).saturating_add(units);
        if held > self.each {
            Err(Exceeded::Each(self.each))
        } else if total > self.total {
            Err(Exceeded::Total(self.total))
        } else {
            Ok((total, held))
        }
    }
}

impl<K> Quota<K> {
    /// Units in the hands of all holders.
    pub fn in_use(&self) -> usize {
        self.used().total
    }

    fn used(&self) -> MutexGuard<'_, Used<K>> {
        // Every change under the lock is made of steps that cannot panic half way.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord + Clone> Share<K> {
    /// Takes `units` more; after an error the share is what it was.
    pub fn grow(&mut self, units: usize) -> Result<(), Exceeded> {
        if units == 0 {
            return Ok(());
        }
        let mut used = self.quota.used();
        let (total, held) = self.quota.room(&used, &self.holder, units)?;
        used.total = total;
        used.by_holder.insert(self.holder.clone(), held);
        drop(used);
        self.units += units;
        Ok(())
    }
}

impl<K: Ord> Share<K> {
    /// Gives back all but `units`.
    pub(crate) fn shrink_to(&mut self, units: usize) {
        let back = self.units.saturating_sub(units);
        if back == 0 {
            return;
        }
        self.units -= back;
        let mut used = self.quota.used();
        used.total -= back;
        if let Some(held) = used.by_holder.get_mut(&self.holder) {
            *held -= back;
            if *held == 0 {
                used.by_holder.remove(&self.holder);
            }
        }
    }
}

impl<K: Ord> Drop for Share<K> {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

impl<K: Ord> fmt::Debug for Share<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("units", &self.units).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_cannot_take_what_all_share() {
        let quota = Quota::new(5, 3);
        let mut a = quota.take('a', 2).unwrap();
        assert_eq!(quota.take('a', 2).unwrap_err(), Exceeded::Each(3));
        let b = quota.take('b', 2).unwrap();
        assert_eq!(quota.take('c', 2).unwrap_err(), Exceeded::Total(5));
        a.grow(1).unwrap();
        a.shrink_to(2);
        a.shrink_to(3);
        a.grow(1).unwrap();
        assert_eq!(a.grow(1).unwrap_err(), Exceeded::Each(3));
        drop(a);
        assert!(quota.take('c', 3).is_ok());
        drop(b);
        // Who holds nothing is not remembered, or names alone could fill the memory.
        drop(quota.take('d', 0).unwrap());
        let used = quota.used();
        assert_eq!((used.total, used.by_holder.len()), (0, 0));
    }
}
