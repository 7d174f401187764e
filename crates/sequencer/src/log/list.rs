//! Published checkpoints that were kept, page by page. What the disk gives is served only if it still is what it was when it was
//! published: signed, of this log, and of the size that it is filed under.

use std::sync::Arc;

use epigraph_core::hash::leaf_hash;
use epigraph_core::{Checkpoint, TreeSize, Verified};
use epigraph_rpc::limits::MAX_READ_BYTES;
use epigraph_store::history::Page;
use thiserror::Error;

use super::{Log, ReadError};

/// Digits of the checksum in a page token: enough to tell a token from something else.
const CHECK_DIGITS: usize = 16;

/// Some of the published checkpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// In ascending order of their sizes.
    pub checkpoints: Vec<Verified<Checkpoint>>,
    /// What to ask with for those that follow, if there are any.
    pub next: Option<String>,
}

/// Why there is no page.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ListError {
    /// Not one that this log gave out for this question.
    #[error(
        "the page token is none that this log gave out for this question: leave `min_size` as it was, or begin again without a token"
    )]
    Token,
    /// The history could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Log {
    /// Kept checkpoints of at least `min_size`, at most so many, from the one on that `token` names; empty for the first page.
    pub async fn list_checkpoints(
        &self,
        min_size: TreeSize,
        most: u32,
        token: &str,
    ) -> Result<Listed, ListError> {
        let from = match token {
            "" => min_size,
            token => self.parse_token(min_size, token).ok_or(ListError::Token)?,
        };
        let Some(history) = self.history.clone() else {
            return Err(
                ReadError::Damaged("the history of its checkpoints could not be opened".into()).into()
            );
        };
        let permit =
            Arc::clone(&self.entry_reads).try_acquire_owned().map_err(|_| ReadError::TooManyReads)?;
        let (origin, policy) = (self.origin.clone(), self.policy.clone());
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let Page { notes, next, mut damaged } =
                history.page(from, most as usize, MAX_READ_BYTES).map_err(|error| error.to_string())?;
            let mut checkpoints = Vec::with_capacity(notes.len());
            for (size, note) in notes {
                match Checkpoint::open(&note, &policy) {
                    Ok(checkpoint) if *checkpoint.origin() == origin && checkpoint.head().size == size => {
                        checkpoints.push(checkpoint);
                    }
                    _ => damaged += 1,
                }
            }
            if damaged > 0 {
                tracing::warn!(damaged, "checkpoints in the history are damaged; they are not served");
            }
            Ok((checkpoints, next))
        });
        let read = read.await.map_err(|error| error.to_string()).and_then(|read: Result<_, String>| read);
        let (checkpoints, next) = read.map_err(ReadError::Damaged)?;
        Ok(Listed { checkpoints, next: next.map(|next| self.token(min_size, next)) })
    }

    /// The size to go on from, and a checksum that ties it to the question.
    fn token(&self, min_size: TreeSize, next: TreeSize) -> String {
        let mut check = leaf_hash(format!("{}\n{min_size}\n{next}", self.origin).as_bytes()).to_string();
        check.truncate(CHECK_DIGITS);
        format!("{next}.{check}")
    }

    fn parse_token(&self, min_size: TreeSize, token: &str) -> Option<TreeSize> {
        let next = TreeSize::new(token.split_once('.')?.0.parse().ok()?)?;
        (self.token(min_size, next) == token).then_some(next)
    }
}
