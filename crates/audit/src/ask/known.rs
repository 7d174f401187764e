//! What has to be known before a question is decided: statistics of the indexes, pseudonyms of the vault, requests of the desk. No row.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::guard::approval::{Approval, ApprovalId};
use crate::guard::plan::{Known, Unavailable};
use crate::index::{IndexError, View};
use crate::query::row::Pseudonyms;
use crate::query::{Column, Estimate, Pseudonym, Scan, Window};
use crate::store::Follow;

/// The indexes and the vault at one moment, and the requests.
pub(super) struct Sight<'a> {
    view: &'a View,
    vault: Mutex<Follow>,
    approvals: &'a BTreeMap<ApprovalId, Approval>,
}

impl<'a> Sight<'a> {
    /// Of these.
    pub(super) fn new(
        view: &'a View,
        vault: Follow,
        approvals: &'a BTreeMap<ApprovalId, Approval>,
    ) -> Sight<'a> {
        Sight { view, vault: Mutex::new(vault), approvals }
    }
}

impl Known for Sight<'_> {
    fn estimate(&self, scan: &Scan) -> Result<Option<Estimate>, Unavailable> {
        match self.view.estimate(scan) {
            Err(IndexError::TooMany) => Ok(None),
            estimate => estimate.map(Some).map_err(|error| Unavailable(error.to_string())),
        }
    }

    fn pseudonyms(
        &self,
        tenant: Option<&str>,
        window: &Window,
        column: Column,
        id: &str,
    ) -> Result<Vec<Pseudonym>, Unavailable> {
        let failed = |error: &dyn std::fmt::Display| Unavailable(error.to_string());
        let mut vault = self.vault.lock().unwrap_or_else(PoisonError::into_inner);
        if column == Column::Address {
            let found = vault.address(id).map_err(|error| failed(&error))?;
            return Ok(found.into_iter().collect());
        }
        let tenants: Vec<String> = match tenant {
            Some(tenant) => vec![tenant.to_owned()],
            None => {
                let tenants = self.view.tenants(window).map_err(|error| failed(&error))?;
                tenants.iter().map(|tenant| (**tenant).to_owned()).collect()
            }
        };
        let mut found = Vec::new();
        for tenant in &tenants {
            let one = match column {
                Column::Actor | Column::OnBehalfOf => vault.subject(tenant, id),
                _ => vault.thing(tenant, id),
            };
            found.extend(one.map_err(|error| failed(&error))?);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn numbered(&self, window: &Window) -> Result<u64, Unavailable> {
        let spans = self.view.sources(window).map_err(|error| Unavailable(error.to_string()))?;
        Ok(spans.iter().map(|span| (span.last - span.first).saturating_add(1)).fold(0, u64::saturating_add))
    }

    fn approval(&self, id: &ApprovalId) -> Result<Option<Approval>, Unavailable> {
        Ok(self.approvals.get(id).cloned())
    }
}
