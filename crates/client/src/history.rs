//! The published checkpoints that a log kept, each verified and proven to be of one history with the pin.

use epigraph_core::{Checkpoint, TreeSize, Verified};

use crate::{Client, ClientError};

/// Kept checkpoints, page by page. After an error, start anew.
pub struct Checkpoints<'a> {
    pub(crate) client: &'a Client,
    pub(crate) min_size: TreeSize,
    /// The size of the last one.
    pub(crate) after: Option<TreeSize>,
    /// `None` after the last page.
    pub(crate) token: Option<String>,
}

impl Checkpoints<'_> {
    /// The next ones, in ascending order of their sizes; `None` after the last. A page may be empty.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Verified<Checkpoint>>>, ClientError> {
        let Some(token) = self.token.take() else { return Ok(None) };
        let Client { log, origin, .. } = self.client;
        let page = log.checkpoints(origin.as_str(), self.min_size, 0, &token).await?;
        if page.checkpoints.is_empty() && !page.next_page_token.is_empty() && page.next_page_token == token {
            return Err(ClientError::WrongAnswer("with the same empty page again"));
        }
        let mut checkpoints = Vec::with_capacity(page.checkpoints.len());
        for note in page.checkpoints {
            let checkpoint = self.client.accept(&note).await?;
            let size = checkpoint.head().size;
            if size < self.min_size || self.after.is_some_and(|after| size <= after) {
                return Err(ClientError::WrongAnswer(
                    "with checkpoints that are not in the order of their sizes",
                ));
            }
            self.after = Some(size);
            checkpoints.push(checkpoint);
        }
        self.token = Some(page.next_page_token).filter(|token| !token.is_empty());
        Ok(Some(checkpoints))
    }
}
