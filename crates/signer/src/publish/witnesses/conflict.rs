//! What becomes of a witness's word that this log's key signed another history: nothing, before the log's own tree has judged it.
//!
//! A witness that lies can show any note that the key ever signed, so that its word alone is no alarm. What proves nothing is the
//! fault of the witness; what proves two histories is kept as evidence, told, and stops a log that no quorum is left for.

use epigraph_core::TreeHead;
use epigraph_core::checkpoint::LogSigned;
use epigraph_core::{Checkpoint, TreeSize};

use super::{Effect, NotTaken, Trouble, Witnesses};

/// What the log's own tree says about a head that a witness holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judged {
    /// It is of another history than this head of the log, for certain.
    TwoHistories {
        /// What the witness holds.
        held: TreeHead,
        /// The head of this log.
        ours: TreeHead,
    },
    /// It is one of the log's own.
    OneHistory,
    /// The tree cannot be read.
    Unknown(String),
}

/// A conflict that a witness claims.
pub(super) struct Claim {
    /// What it holds.
    held: TreeHead,
    /// What it was asked to cosign.
    asked: TreeHead,
    otherwise: Otherwise,
    /// Judged once: the same note beside each new head would fill the disk and show nothing more.
    judged: Option<Judged>,
}

/// What a claim is that proves nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Otherwise {
    /// The witness said that there are two histories.
    FalseConflict,
    /// It said only that it refuses.
    Refused(String),
    /// It holds a later head of this log, and was shown an earlier one after it.
    Nothing,
}

impl Witnesses {
    /// Takes the note of a head that the witness at this place holds, and that the pending or published head of this size does
    /// not extend, as the witness says. It is judged as if it had been asked.
    pub fn handed_conflict(
        &mut self,
        place: usize,
        size: TreeSize,
        held: &[u8],
    ) -> (Vec<Effect>, Result<(), NotTaken>) {
        let mut heads = self.pending.iter().map(|pending| pending.gathering.head());
        let Some(head) = heads.find(|head| head.size == size) else {
            return (Vec::new(), Err(NotTaken::NoSuchHead(size)));
        };
        let (otherwise, taken) = match self.open(held) {
            Ok(shown) if shown.head() == head => {
                (Otherwise::FalseConflict, Err(NotTaken::NoConflict("it is the same head".into())))
            }
            Ok(shown) if shown.head().size > size => (Otherwise::Nothing, Ok(())),
            Ok(_) => (Otherwise::FalseConflict, Ok(())),
            Err(why) => (Otherwise::FalseConflict, Err(NotTaken::NoConflict(why))),
        };
        if let Some(peer) = self.peers.get_mut(&place) {
            peer.answers += 1;
            self.claimed(place, head, held, otherwise);
        }
        (std::mem::take(&mut self.effects), taken)
    }

    /// The witness was asked for `asked`, and shows that it holds something which that does not extend. Until it is judged it is
    /// left alone with that head.
    pub(super) fn claimed(&mut self, place: usize, asked: TreeHead, held: &[u8], otherwise: Otherwise) {
        self.skip(place, asked);
        let shown = match self.open(held) {
            Ok(shown) if shown.head() != asked => shown,
            Ok(_) => return self.unproven(place, asked, otherwise, "it is the same head".into()),
            Err(why) => return self.unproven(place, asked, otherwise, why),
        };
        if self.is_signed_elsewhere(&shown) {
            return self.stop(place, &shown);
        }
        let held = shown.head();
        let mut pending = self.pending.iter().map(|pending| pending.gathering.signed());
        // The one that it was asked for, unless that is smaller, or no longer waited for.
        let ours = pending.find(|signed| signed.head().size >= held.size.max(asked.size));
        let (Some(ours), Some(peer)) = (ours, self.peers.get_mut(&place)) else { return };
        let before = peer.claim.take().filter(|before| before.held == held);
        let judged = before.and_then(|before| before.judged);
        peer.claim = Some(Claim { held, asked, otherwise, judged: None });
        match judged {
            Some(judged) => self.judged(place, judged),
            None => {
                let (held, ours) = (shown.note().to_owned(), ours.note().to_owned());
                self.effects.push(Effect::Judge { place, held, ours });
            }
        }
    }

    pub(super) fn judged(&mut self, place: usize, judged: Judged) {
        let Some(peer) = self.peers.get_mut(&place) else { return };
        let Some(claim) = &mut peer.claim else { return };
        let (asked, otherwise) = (claim.asked, claim.otherwise.clone());
        match judged.clone() {
            Judged::Unknown(why) => self.tell(place, Trouble::UnjudgedConflict(why)),
            Judged::OneHistory => {
                claim.judged = Some(judged);
                let why = "the head that it holds is one of this log's own history".to_owned();
                self.unproven(place, asked, otherwise, why);
            }
            Judged::TwoHistories { held, ours } => {
                claim.judged = Some(judged);
                peer.elsewhere = true;
                self.tell(place, Trouble::Conflict { held, ours });
                self.stop_without_a_quorum(place, held, ours);
            }
        }
    }

    /// If the witnesses that hold another history are so many that this one can never be published, this log is the copy that
    /// came too late.
    fn stop_without_a_quorum(&mut self, place: usize, held: TreeHead, ours: TreeHead) {
        let with_us =
            self.peers.iter().filter(|(_, peer)| !peer.elsewhere).map(|(place, _)| *place).collect();
        if !self.policy.is_met_by(with_us) {
            self.effects.push(Effect::Stop(format!(
                "too many witnesses hold another history under this log's own key for this one to be published: {} holds size \
                 {} (root {}), and this log has signed size {} (root {})",
                self.name(place),
                held.size,
                held.root,
                ours.size,
                ours.root
            )));
        }
    }

    fn unproven(&mut self, place: usize, asked: TreeHead, otherwise: Otherwise, why: String) {
        match otherwise {
            Otherwise::FalseConflict => self.tell(place, Trouble::FalseConflict(why)),
            Otherwise::Refused(refusal) => {
                // As any other refusal: it may do better after a rest.
                if let Some(pending) = self.pending(asked) {
                    pending.skipped = pending.skipped.without([place].into_iter().collect());
                }
                self.fail(place, Trouble::Refused(refusal));
            }
            Otherwise::Nothing => {}
        }
    }

    pub(super) fn open(&self, note: &[u8]) -> Result<LogSigned, String> {
        Checkpoint::open_log_signed(note, &self.policy).map_err(|error| error.to_string())
    }

    /// The log's own signature under a head that is larger than any it was asked for here.
    pub(super) fn is_signed_elsewhere(&self, shown: &LogSigned) -> bool {
        let newest = self.pending.back().map(|newest| newest.gathering.head().size);
        newest.is_some_and(|newest| shown.head().size > newest)
    }

    /// No evidence can be made of this: whether the one head extends the other, only the tree can tell that has the larger one.
    pub(super) fn stop(&mut self, place: usize, shown: &LogSigned) {
        let TreeHead { size, root } = shown.head();
        let newest = self.pending.back().map_or(TreeHead::EMPTY, |newest| newest.gathering.head());
        self.effects.push(Effect::Stop(format!(
            "the witness {} holds size {size} (root {root}) under this log's own key, and the newest head that was signed \
             here has size {} (root {}). Whether these are two histories only the log can show that has the larger one; the \
             witness keeps it (`epigraph witness status`)",
            self.name(place),
            newest.size,
            newest.root
        )));
    }

    pub(super) fn skip(&mut self, place: usize, head: TreeHead) {
        if let Some(pending) = self.pending(head) {
            pending.skipped = pending.skipped.union([place].into_iter().collect());
        }
    }

    fn pending(&mut self, head: TreeHead) -> Option<&mut super::Pending> {
        self.pending.iter_mut().find(|pending| pending.gathering.head() == head)
    }
}
