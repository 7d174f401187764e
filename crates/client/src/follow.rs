//! The log followed: its entries, verified, as they are published, and its checkpoints.
//!
//! Entries come on a stream that proves nothing. Each part of it is verified before it is given out, as [`crate::entries`]
//! does it: against the root of its checkpoint where it reaches up to it, else by the receipt of its last entry under that
//! checkpoint. A checkpoint is believed only if it extends the pin.
//!
//! A cursor is the index of the next entry and nothing else: what lies to the left of it is verified anew when somebody goes on
//! from it, by the receipt of the first entry that comes, under a checkpoint that extends the pin.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::hash::leaf_hash;
use epigraph_core::{Checkpoint, Entropy, Frontier, LeafIndex, TreeHead, Verified};
use epigraph_rpc::CallError;
use epigraph_rpc::peer::{self, FollowEvent};

use crate::backoff::Backoff;
use crate::entries::{IMPOSSIBLE, push};
use crate::{Client, ClientError, is_passing};

/// Entries that were verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The index of the first one; the others follow.
    pub first_index: LeafIndex,
    /// Their bytes; at least one entry, and at most 4 MiB together.
    pub entries: Vec<Bytes>,
    /// A checkpoint that covers them.
    pub checkpoint: Arc<Verified<Checkpoint>>,
}

/// A log being followed. It connects anew by itself, and gives up only when it cannot begin any more.
pub struct Follower<'a> {
    client: &'a Client,
    entropy: Arc<dyn Entropy>,
    backoff: Backoff,
    stream: Option<peer::Follow>,
    /// The one whose entries come on this stream.
    current: Option<Arc<Verified<Checkpoint>>>,
    /// The newest that came on any.
    newest: Option<TreeHead>,
    next: LeafIndex,
    /// The tree up to `next`; `None` before the first entries.
    tree: Option<Frontier>,
}

/// A log's checkpoints, watched.
pub struct Watch<'a> {
    client: &'a Client,
    entropy: Arc<dyn Entropy>,
    backoff: Backoff,
    stream: Option<peer::Watch>,
    newest: Option<TreeHead>,
}

impl Client {
    /// Follows the log from the entry `first` on, which need not exist yet. Fails at once if the log cannot be reached
    /// now.
    pub async fn follow(
        &self,
        first: LeafIndex,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Follower<'_>, ClientError> {
        let stream = self.log.follow(self.origin.as_str(), first).await?;
        Ok(Follower {
            client: self,
            entropy,
            backoff: Backoff::default(),
            stream: Some(stream),
            current: None,
            newest: None,
            next: first,
            // To the left of the first entry there is nothing to be proven.
            tree: (first == LeafIndex::default()).then(Frontier::new),
        })
    }

    /// Watches the log's published checkpoints, the newest first. Fails at once if the log cannot be reached now.
    pub async fn watch(&self, entropy: Arc<dyn Entropy>) -> Result<Watch<'_>, ClientError> {
        let stream = self.log.watch_checkpoints(self.origin.as_str(), None).await?;
        let stream = Some(stream);
        Ok(Watch { client: self, entropy, backoff: Backoff::default(), stream, newest: None })
    }

    /// Accepts a checkpoint that must not be older than the newest one that came this way.
    async fn accept_onwards(
        &self,
        note: &[u8],
        newest: &mut Option<TreeHead>,
    ) -> Result<Verified<Checkpoint>, ClientError> {
        let checkpoint = self.accept(note).await?;
        let served = checkpoint.head();
        if let Some(pinned) = newest.filter(|newest| served.size < newest.size) {
            self.keep_older(&checkpoint);
            return Err(ClientError::RolledBack { served, pinned });
        }
        *newest = Some(served);
        Ok(checkpoint)
    }
}

impl Follower<'_> {
    /// Where to go on, in this process or another: the index after the last entry that was given out.
    pub fn cursor(&self) -> LeafIndex {
        self.next
    }

    /// The next entries, as soon as there are some. May be dropped and asked anew, also after an error: it then goes on from
    /// the cursor. An error that speaks of the log itself will come again.
    pub async fn next(&mut self) -> Result<Batch, ClientError> {
        loop {
            match self.attempt().await {
                Ok(Some(batch)) => {
                    self.backoff.succeeded();
                    return Ok(batch);
                }
                ended => {
                    self.stream = None;
                    pause(ended.map(drop), &mut self.backoff, &*self.entropy).await?;
                }
            }
        }
    }

    /// `None` if the log wants its client to connect anew.
    async fn attempt(&mut self) -> Result<Option<Batch>, ClientError> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    let stream = self.client.log.follow(self.client.origin.as_str(), self.next).await?;
                    self.backoff.began();
                    self.current = None;
                    self.stream.insert(stream)
                }
            };
            let event = stream.next().await?;
            // Only if all goes well it is put back: whoever drops this future here would lose the event.
            let stream = self.stream.take();
            let batch = match event {
                None | Some(FollowEvent::End(_)) => return Ok(None),
                Some(FollowEvent::Checkpoint(note)) => {
                    self.begin(&note).await?;
                    None
                }
                Some(FollowEvent::Entries { first_index, entries }) => {
                    Some(self.verify(first_index, entries.into_bytes()).await?)
                }
            };
            self.stream = stream;
            if batch.is_some() {
                return Ok(batch);
            }
        }
    }

    async fn begin(&mut self, note: &[u8]) -> Result<(), ClientError> {
        let outstanding =
            self.current.as_ref().is_some_and(|current| current.head().size.contains(self.next));
        if outstanding {
            return Err(ClientError::WrongAnswer(
                "with a checkpoint before all entries of the one before it",
            ));
        }
        let checkpoint = self.client.accept_onwards(note, &mut self.newest).await?;
        if !checkpoint.head().size.contains(self.next) {
            return Err(ClientError::WrongAnswer(
                "with a checkpoint that covers none of the entries to come",
            ));
        }
        self.current = Some(Arc::new(checkpoint));
        Ok(())
    }

    /// Moves on past these entries if they are the log's.
    async fn verify(&mut self, first_index: LeafIndex, entries: Vec<Bytes>) -> Result<Batch, ClientError> {
        let Some(checkpoint) = self.current.clone() else {
            return Err(ClientError::WrongAnswer("with entries before their checkpoint"));
        };
        let head = checkpoint.head();
        let Some((last, others)) = entries.split_last() else {
            return Err(ClientError::WrongAnswer("without entries"));
        };
        let index = first_index.checked_add(others.len() as u64).ok_or(IMPOSSIBLE)?;
        if !head.size.contains(index) {
            return Err(ClientError::WrongAnswer("with more entries than its checkpoint covers"));
        }
        let mut tree = match &self.tree {
            Some(tree) => tree.clone(),
            None => {
                let leaf = leaf_hash(others.first().unwrap_or(last));
                self.client.left_of(first_index, &leaf, Some(&checkpoint)).await?
            }
        };
        for entry in others {
            push(&mut tree, leaf_hash(entry))?;
        }
        let leaf = leaf_hash(last);
        let proven = if index.size_after() == head.size {
            push(&mut tree, leaf)?;
            tree.root() == head.root
        } else {
            let left = self.client.left_of(index, &leaf, Some(&checkpoint)).await?;
            let same = left == tree;
            push(&mut tree, leaf)?;
            same
        };
        if !proven {
            return Err(ClientError::OtherEntries { first: first_index, last: index });
        }
        self.next = tree.size().next_index().ok_or(IMPOSSIBLE)?;
        self.tree = Some(tree);
        Ok(Batch { first_index, entries, checkpoint })
    }
}

impl Watch<'_> {
    /// The next checkpoint, as soon as there is one: verified, and proven to extend those before. May be dropped and asked anew.
    pub async fn next(&mut self) -> Result<Verified<Checkpoint>, ClientError> {
        loop {
            match self.attempt().await {
                Ok(Some(checkpoint)) => {
                    self.backoff.succeeded();
                    return Ok(checkpoint);
                }
                ended => {
                    self.stream = None;
                    pause(ended.map(drop), &mut self.backoff, &*self.entropy).await?;
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<Option<Verified<Checkpoint>>, ClientError> {
        let after = self.newest.map(|newest| newest.size);
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = self.client.log.watch_checkpoints(self.client.origin.as_str(), after).await?;
                self.backoff.began();
                self.stream.insert(stream)
            }
        };
        let Some(note) = stream.next().await? else { return Ok(None) };
        let stream = self.stream.take();
        let checkpoint = self.client.accept_onwards(&note, &mut self.newest).await?;
        if after.is_some_and(|after| checkpoint.head().size <= after) {
            return Err(ClientError::WrongAnswer("with a checkpoint that it has sent before"));
        }
        self.stream = stream;
        Ok(Some(checkpoint))
    }
}

/// Waits before the next attempt, if there is to be one.
async fn pause(
    ended: Result<(), ClientError>,
    backoff: &mut Backoff,
    entropy: &dyn Entropy,
) -> Result<(), ClientError> {
    let wait = match ended {
        Ok(()) => backoff.after_end(entropy),
        Err(error) => match retry_delay(&error).zip(backoff.after_failure(entropy)) {
            Some((asked, own)) => own.max(asked.min(MAX_ASKED)),
            None => return Err(error),
        },
    };
    tokio::time::sleep(wait).await;
    Ok(())
}

/// What a log may ask its clients to wait.
const MAX_ASKED: Duration = Duration::from_secs(60);

/// How long the log asks to wait; `None` if trying again will not help. What does not verify is no matter of patience.
fn retry_delay(error: &ClientError) -> Option<Duration> {
    match error {
        ClientError::Call(CallError::Unreachable(_) | CallError::TimedOut) => Some(Duration::ZERO),
        ClientError::Call(CallError::Refused(refusal)) if is_passing(refusal) => {
            Some(refusal.retry_delay().unwrap_or_default())
        }
        _ => None,
    }
}
