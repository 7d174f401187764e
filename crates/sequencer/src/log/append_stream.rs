//! Appending as a stream: reads ahead within limits, answers in order, ends with the first refusal.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use epigraph_core::Hash;
use epigraph_core::bundle::LENGTH_BYTES;
use epigraph_rpc::limits::{MAX_APPEND_BYTES, MAX_APPEND_ENTRIES};
use epigraph_store::journal::{MARK_BYTES, SEQUENCE_WINDOW};
use tokio::sync::mpsc;
use tokio_stream::Stream;

use super::append::check_call;
use super::{AppendError, Appended, Call, Log, Wait};
use crate::machine::{Line, MAX_BATCH_BYTES, MAX_BATCH_ENTRIES, Numbers, Refused, share};

/// Requests of one stream under way: half of the ranges that are kept of a producer, so that whatever was not answered when a
/// stream broke off is still recognised.
pub const MAX_AHEAD: usize = 64;

/// What the entries under way may take before no more are read. With one more largest request they are below one caller's
/// share of a batch, so that a stream alone is never refused because the log is busy.
pub const MAX_AHEAD_BYTES: usize = (2 << 20) - (16 << 10);

const _: () = assert!(
    MAX_AHEAD_BYTES + MAX_APPEND_BYTES + MAX_APPEND_ENTRIES * LENGTH_BYTES + MAX_AHEAD * MARK_BYTES
        <= share(MAX_BATCH_BYTES)
        && 2 * MAX_APPEND_ENTRIES <= SEQUENCE_WINDOW as usize
        && MAX_AHEAD_BYTES / ENTRY_OVERHEAD_BYTES + MAX_APPEND_ENTRIES <= share(MAX_BATCH_ENTRIES)
);

/// What an entry counts beside its bytes: so many of the smallest are below the entries of one batch.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Why a stream of appends ended before its requests did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamError<E> {
    /// A request was not appended.
    Append(AppendError),
    /// There is no next request.
    Request(E),
}

impl<E> From<AppendError> for StreamError<E> {
    fn from(error: AppendError) -> StreamError<E> {
        StreamError::Append(error)
    }
}

impl Log {
    /// Appends the entries of each request, as [`Log::append`] does, and sends an answer for each, in their order. The
    /// numbers run on from request to request. Nothing is appended behind a request that is refused.
    ///
    /// Requests that are there together are submitted together, and their answers are sent together unless they carry proofs.
    ///
    /// It ends when the requests do, or the receiver is gone; and well, with all answers sent, when `leave` is over, the log
    /// drains, or a request was answered before and is to be sent first in another stream.
    pub async fn append_stream<E>(
        self: Arc<Log>,
        identity: Hash,
        wait: Wait,
        numbers: Option<Numbers>,
        mut requests: impl Stream<Item = Result<Vec<Bytes>, E>> + Unpin,
        leave: impl Future<Output = ()>,
        answers: &mpsc::Sender<Result<Vec<Appended>, StreamError<E>>>,
    ) -> Result<(), StreamError<E>> {
        let mut lane = Lane {
            identity,
            wait,
            numbers,
            line: numbers.is_none().then(Line::default),
            log: Arc::clone(&self),
            under_way: VecDeque::new(),
        };
        let (mut leave, mut draining) = (pin!(leave), pin!(self.draining()));
        let mut reading = true;
        // Why nothing more is read; told once everything before it is answered.
        let mut end = Ok(());
        while reading || !lane.under_way.is_empty() {
            let room = lane.room().filter(|_| reading);
            tokio::select! {
                biased;
                answer = lane.answered() => match answer {
                    Ok(appended) => if answers.send(Ok(appended)).await.is_err() { return Ok(()) },
                    Err(error) => return ended_by(error),
                },
                () = &mut leave, if reading => reading = false,
                () = &mut draining, if reading => reading = false,
                (group, ended) = next_group(&mut requests, room.unwrap_or_default()), if room.is_some() => {
                    if let Some(ended) = ended {
                        (reading, end) = (false, ended);
                    }
                    if let Err(error) = lane.submit(group) {
                        (reading, end) = (false, ended_by(error));
                    }
                }
            }
        }
        end
    }
}

/// How a stream ends whose request was not appended: a client that only has to connect anew is told nothing else.
fn ended_by<E>(error: AppendError) -> Result<(), StreamError<E>> {
    match error {
        AppendError::Refused(Refused::Draining | Refused::RepeatInLine) => Ok(()),
        error => Err(error.into()),
    }
}

/// What may be read before something is answered.
#[derive(Clone, Copy, Default)]
struct Room {
    requests: usize,
    bytes: usize,
}

/// Requests that came together.
#[derive(Default)]
struct Group {
    entries: Vec<Bytes>,
    /// How many entries there are up to the end of each request.
    ends: Vec<usize>,
    bytes: usize,
}

/// The requests that are there, at least one, as far as there is room, and within what is taken of a producer's numbers at
/// once; and how the stream is to end behind them, if it is. May be dropped and asked anew.
async fn next_group<E>(
    requests: &mut (impl Stream<Item = Result<Vec<Bytes>, E>> + Unpin),
    room: Room,
) -> (Group, Option<Result<(), StreamError<E>>>) {
    let mut group = Group::default();
    let ended = poll_fn(|context| {
        while group.ends.len() < room.requests
            && group.bytes < room.bytes
            && group.entries.len() < MAX_APPEND_ENTRIES
        {
            match Pin::new(&mut *requests).poll_next(context) {
                Poll::Ready(Some(Ok(entries))) => match check_call(&entries) {
                    Ok(()) => group.add(entries),
                    Err(error) => return Poll::Ready(Some(ended_by(error))),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(StreamError::Request(error)))),
                Poll::Ready(None) => return Poll::Ready(Some(Ok(()))),
                Poll::Pending if group.ends.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(None)
    })
    .await;
    (group, ended)
}

impl Group {
    fn add(&mut self, entries: Vec<Bytes>) {
        self.bytes += entries.iter().map(|entry| entry.len() + ENTRY_OVERHEAD_BYTES).sum::<usize>();
        self.entries.extend(entries);
        self.ends.push(self.entries.len());
    }
}

/// The requests of one stream that are under way.
struct Lane {
    log: Arc<Log>,
    identity: Hash,
    wait: Wait,
    /// Of the next request.
    numbers: Option<Numbers>,
    /// Under numbers, requests are sent one by one as long as they repeat what was sent before, because it takes a look at
    /// the disk to say whether they do. From the first new one on they do not wait for each other.
    line: Option<Line>,
    under_way: VecDeque<UnderWay>,
}

/// A group, and its answers once they are there.
struct UnderWay {
    ends: Vec<usize>,
    bytes: usize,
    answering: Answering,
    answers: Option<Result<Answers, AppendError>>,
}

type Answering = Pin<Box<dyn Future<Output = Result<(Appended, Option<Refused>), AppendError>> + Send>>;

/// The answers to the requests that were appended and have none yet, and why the one behind them was refused.
struct Answers {
    appended: VecDeque<Appended>,
    cut: Option<Refused>,
}

impl Lane {
    fn room(&self) -> Option<Room> {
        if self.line.is_none() {
            return self.under_way.is_empty().then_some(Room { requests: 1, bytes: MAX_AHEAD_BYTES });
        }
        let held = |room: Room, group: &UnderWay| Room {
            requests: room.requests.saturating_sub(group.ends.len()),
            bytes: room.bytes.saturating_sub(group.bytes),
        };
        let room = self.under_way.iter().fold(Room { requests: MAX_AHEAD, bytes: MAX_AHEAD_BYTES }, held);
        (room.requests > 0 && room.bytes > 0).then_some(room)
    }

    fn submit(&mut self, group: Group) -> Result<(), AppendError> {
        let Group { entries, ends, bytes } = group;
        let Some((count, before)) = ends.split_last() else { return Ok(()) };
        let (numbers, line) = (self.numbers, self.line.clone());
        let call = Call { entries, wait: self.wait, numbers, line, identity: self.identity };
        let submitted = self.log.submit(call, before.to_vec())?;
        if let Some(numbers) = &mut self.numbers {
            numbers.first_sequence = numbers.first_sequence.saturating_add(*count as u64);
        }
        let log = Arc::clone(&self.log);
        let answering = Box::pin(async move { log.answer(submitted).await });
        self.under_way.push_back(UnderWay { ends, bytes, answering, answers: None });
        Ok(())
    }

    /// The answers to the oldest requests; pends if there are none. All are waited for at once, so that the times for which
    /// they wait do not add up.
    async fn answered(&mut self) -> Result<Vec<Appended>, AppendError> {
        let answers = poll_fn(|context| {
            self.under_way.iter_mut().for_each(|group| group.poll(context));
            match self.under_way.front_mut().and_then(|oldest| oldest.answers.as_mut()) {
                Some(Ok(answers)) => Poll::Ready(answers.next()),
                Some(Err(error)) => Poll::Ready(Err(error.clone())),
                None => Poll::Pending,
            }
        })
        .await;
        let over = |answers: &Answers| answers.appended.is_empty() && answers.cut.is_none();
        self.under_way.pop_front_if(|oldest| matches!(&oldest.answers, Some(Ok(answers)) if over(answers)));
        if self.line.is_none()
            && answers.as_deref().is_ok_and(|answers| answers.iter().all(|appended| !appended.repeated))
        {
            self.line = Some(Line::default());
        }
        answers
    }
}

impl UnderWay {
    fn poll(&mut self, context: &mut Context<'_>) {
        if self.answers.is_none()
            && let Poll::Ready(answer) = self.answering.as_mut().poll(context)
        {
            let ends = &self.ends;
            self.answers =
                Some(answer.map(|(appended, cut)| Answers { appended: part(appended, ends), cut }));
        }
    }
}

impl Answers {
    /// All that there are; one at a time if it carries proofs, which are large.
    fn next(&mut self) -> Result<Vec<Appended>, AppendError> {
        let proven = self.appended.front().is_some_and(|appended| appended.published.is_some());
        let count = if proven { 1 } else { self.appended.len() };
        match self.cut {
            Some(why) if count == 0 => Err(why.into()),
            _ => Ok(self.appended.drain(..count).collect()),
        }
    }
}

/// What became of requests that were appended together, by request; those beyond it were not.
fn part(appended: Appended, ends: &[usize]) -> VecDeque<Appended> {
    let Appended { first_index, count, repeated, published, unpublished_because } = appended;
    let (checkpoint, proofs) = published.unzip();
    let mut proofs = proofs.into_iter().flatten();
    let starts = [0].into_iter().chain(ends.iter().copied());
    let taken = starts.zip(ends).take_while(|(_, end)| **end <= count as usize);
    let parts = taken.filter_map(|(start, end)| {
        let count = end - start;
        Some(Appended {
            first_index: first_index.checked_add(start as u64)?,
            count: count as u32,
            repeated,
            unpublished_because: unpublished_because.clone(),
            published: checkpoint
                .clone()
                .map(|checkpoint| (checkpoint, proofs.by_ref().take(count).collect())),
        })
    });
    parts.collect()
}
