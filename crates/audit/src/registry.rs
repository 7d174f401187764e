//! Which sources are enrolled, and who may send for them. A list that grows: a source may be retired and given another owner, but it
//! is never taken out, because its events stay.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use epigraph_core::Hash;
use thiserror::Error;

use crate::source::Enrolled;

/// Sources of one service: each is a small state in memory.
pub const MAX_SOURCES: usize = 10_000;

/// The longest name of an owner: a team and how to reach it.
pub const MAX_OWNER_BYTES: usize = 256;

/// Why a list is not accepted; the one before stays in force.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RegistryError {
    /// Above [`MAX_SOURCES`].
    #[error("the list has {0} sources, and a service takes at most {MAX_SOURCES}")]
    TooMany(usize),
    /// One key twice.
    #[error("the key of {0} is listed twice")]
    Twice(String),
    /// One that was enrolled is not there any more.
    #[error(
        "the source {0} is enrolled and not in the list: a source is never taken out. To take nothing more from it, give it a `retired` time"
    )]
    TakenOut(String),
    /// One that was retired is not any more.
    #[error("the source {0} is retired, and stays so: enrol a new key for what sends under it")]
    Revived(String),
    /// A source without anybody who answers for it, or with a name that is too long.
    #[error("the owner of {0} has {1} bytes: 1 to {MAX_OWNER_BYTES} are allowed")]
    Owner(String, usize),
}

/// The list in force. Cheap to clone; clones are one list.
#[derive(Clone, Default, Debug)]
pub struct Registry {
    sources: Arc<RwLock<BTreeMap<Hash, Arc<Enrolled>>>>,
}

impl Registry {
    /// Puts a list in force that contains everything that is in force now. Returns how many are new.
    pub fn replace(&self, list: Vec<Enrolled>) -> Result<usize, RegistryError> {
        if list.len() > MAX_SOURCES {
            return Err(RegistryError::TooMany(list.len()));
        }
        let mut next = BTreeMap::new();
        for source in list {
            let name = source.vkey.name().to_string();
            if source.owner.is_empty() || source.owner.len() > MAX_OWNER_BYTES {
                return Err(RegistryError::Owner(name, source.owner.len()));
            }
            if next.insert(source.vkey.id(), Arc::new(source)).is_some() {
                return Err(RegistryError::Twice(name));
            }
        }
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        for (id, source) in &*sources {
            let name = || source.vkey.name().to_string();
            let again = next.get(id).ok_or_else(|| RegistryError::TakenOut(name()))?;
            if source.retired_at.is_some() && again.retired_at.is_none() {
                return Err(RegistryError::Revived(name()));
            }
        }
        let new = next.len() - sources.len();
        *sources = next;
        Ok(new)
    }

    /// A source, by the id of its key.
    pub fn get(&self, source: &Hash) -> Option<Arc<Enrolled>> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner).get(source).cloned()
    }

    /// A source that this collector may send for.
    pub fn of_collector(&self, source: &Hash, collector: &str) -> Option<Arc<Enrolled>> {
        self.get(source).filter(|source| source.collector == collector)
    }

    /// At most `most` sources behind `after`, in the order of their ids.
    pub fn page(&self, after: Option<&Hash>, most: usize) -> Vec<Arc<Enrolled>> {
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        let behind = sources.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
        behind.take(most).map(|(_, source)| Arc::clone(source)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epigraph_core::{SourceKey, UnixMillis};
    use zeroize::Zeroizing;

    fn source(seed: u8) -> Enrolled {
        let key =
            SourceKey::from_seed(format!("source-{seed}").parse().unwrap(), &Zeroizing::new([seed; 32]));
        Enrolled {
            vkey: key.vkey().clone(),
            owner: "a team".into(),
            collector: "spiffe://a/epigraph/collector/x".into(),
            enrolled_at: UnixMillis(1),
            retired_at: None,
            heartbeat_ms: 1_000,
        }
    }

    #[test]
    fn a_list_only_grows_and_nobody_who_was_retired_comes_back() {
        let registry = Registry::default();
        assert_eq!(registry.replace(vec![source(1)]), Ok(1));
        assert_eq!(registry.replace(vec![source(2), source(1)]), Ok(1));
        assert_eq!(registry.replace(vec![source(2)]), Err(RegistryError::TakenOut("source-1".into())));
        let retired = Enrolled { retired_at: Some(UnixMillis(9)), owner: "another".into(), ..source(1) };
        assert_eq!(registry.replace(vec![retired, source(2)]), Ok(0));
        assert_eq!(
            registry.replace(vec![source(1), source(2)]),
            Err(RegistryError::Revived("source-1".into()))
        );
        assert_eq!(registry.get(&source(1).vkey.id()).unwrap().owner, "another");
    }

    #[test]
    fn what_is_not_in_order_changes_nothing() {
        let registry = Registry::default();
        let nobody = Enrolled { owner: String::new(), ..source(1) };
        assert_eq!(registry.replace(vec![nobody]), Err(RegistryError::Owner("source-1".into(), 0)));
        assert_eq!(
            registry.replace(vec![source(1), source(1)]),
            Err(RegistryError::Twice("source-1".into()))
        );
        assert_eq!(registry.page(None, 10), []);
    }

    #[test]
    fn only_its_own_collector_may_send_for_a_source() {
        let registry = Registry::default();
        registry.replace(vec![source(1)]).unwrap();
        let id = source(1).vkey.id();
        assert!(registry.of_collector(&id, "spiffe://a/epigraph/collector/x").is_some());
        assert!(registry.of_collector(&id, "spiffe://a/epigraph/collector/y").is_none());
    }
}
