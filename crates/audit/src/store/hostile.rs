//! What collectors send that they should not, as the service takes it: what is refused and why, what is kept, and what is counted against
//! the source.

use epigraph_core::{SourceKey, UnixMillis};
use epigraph_event::batch::Unverified;
use epigraph_event::chain::Tip;
use epigraph_event::decode::{Context, cloudtrail};
use epigraph_event::{Batch, Collected};
use epigraph_rpc::peer::audit::BatchRefusal;
use zeroize::Zeroizing;

use super::faults::{Disk, NOW, source};
use super::{Store, Taken};
use crate::source::{Enrolled, Gap, Kind, Refused, believe};
use crate::tests::Counting;

const HOUR_MS: u64 = 60 * 60 * 1_000;

/// A record with an id and a time, seen by its collector at `observed`.
fn event_seen(id: &str, time: &str, more: &str, observed: UnixMillis) -> Collected {
    let context = Context {
        observed_at: observed,
        tenant: "a-tenant".into(),
        source: "a-source".into(),
        instance: String::new(),
    };
    let record = format!(
        r#"{{"eventVersion":"1.08","userIdentity":{{"type":"IAMUser","arn":"arn:a","userName":"ann"}},{time}"eventSource":"iam.amazonaws.com","eventName":"CreateUser{more}","awsRegion":"us-east-1","sourceIPAddress":"10.0.0.1","userAgent":"x","eventID":"{id}","eventType":"AwsApiCall","recipientAccountId":"1"}}"#
    );
    let event = cloudtrail::decode(record.as_bytes(), &context).remove(0);
    event.unwrap_or_else(|rejected| rejected.into_event(&context)).seal(&Counting::default()).unwrap()
}

fn event(id: &str, time: &str, more: &str) -> Collected {
    event_seen(id, time, more, NOW)
}

fn batch(tip: &Tip, events: Vec<Collected>) -> Batch {
    Batch::sign(&source(), tip, events, NOW).unwrap()
}

/// Batches of two events, one behind the other, from a place on.
fn chain(mut tip: Tip, count: u64, label: &str) -> Vec<Batch> {
    let one = |number| {
        let events = (0..2).map(|place| event(&format!("{label}{number}-{place}"), "", "")).collect();
        let batch = batch(&tip, events);
        tip = Tip::after(batch.signed());
        batch
    };
    (0..count).map(one).collect()
}

fn take(store: &mut Store, batch: &Batch) -> Result<Taken, Refused> {
    store.take(std::slice::from_ref(batch), NOW).unwrap().remove(0)
}

fn troubles(store: &Store) -> Vec<(Kind, u64)> {
    let state = store.state(&source().vkey().id()).cloned().unwrap_or_default();
    state.troubles.iter().map(|trouble| (trouble.kind, trouble.count)).collect()
}

fn enrolled(retired_at: Option<UnixMillis>) -> Enrolled {
    Enrolled {
        vkey: source().vkey().clone(),
        owner: "a team".into(),
        collector: "spiffe://a/b".into(),
        enrolled_at: UnixMillis(0),
        retired_at,
        heartbeat_ms: 60_000,
    }
}

/// A flipped bit on the wire, each one: refused, and as long as it can be read whose it was said to be, counted against the source.
/// Broken to see it fail: the comparison of the root with the events left out of `verify`.
#[test]
fn a_batch_with_a_flipped_bit_is_not_believed() {
    let sent = chain(Tip::default(), 1, "a").remove(0);
    let (bytes, enrolled) = (sent.encode(), enrolled(None));
    let mut refusals = std::collections::BTreeMap::<_, usize>::new();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let believed = match Unverified::decode(flipped.clone().into()) {
            Ok(unverified) => believe(Some(&enrolled), unverified),
            Err(error) => Err(Refused::malformed(&error)),
        };
        match believed {
            // A field that nobody knows, or a spelling of the same.
            Ok(batch) => {
                assert_eq!((batch.signed().hash(), batch.events()), (sent.signed().hash(), sent.events()))
            }
            Err(Refused { refusal, trouble, .. }) => {
                let forged = refusal == BatchRefusal::BadSignature;
                assert_eq!(trouble, forged.then_some(Kind::BadSignature), "byte {at}");
                *refusals.entry(format!("{refusal:?}")).or_default() += 1;
            }
        }
    }
    assert!(refusals["BadSignature"] > bytes.len() / 2, "{refusals:?} of {}", bytes.len());
}

/// Unknown and retired keys. Broken to see it fail: `>=` made `>`.
#[test]
fn only_a_key_that_is_enrolled_and_not_retired_is_believed() {
    let check = |enrolled: Option<Enrolled>, expected: Result<(), (BatchRefusal, Option<Kind>)>| {
        let bytes = chain(Tip::default(), 1, "a").remove(0).encode();
        let believed = believe(enrolled.as_ref(), Unverified::decode(bytes.into()).unwrap());
        let believed = believed.map(drop).map_err(|refused| (refused.refusal, refused.trouble));
        assert_eq!(believed, expected);
    };
    let other = SourceKey::from_seed("a-source".parse().unwrap(), &Zeroizing::new([8; 32]));
    check(Some(enrolled(None)), Ok(()));
    check(None, Err((BatchRefusal::UnknownSource, None)));
    let renamed = Enrolled { vkey: other.vkey().clone(), ..enrolled(None) };
    check(Some(renamed), Err((BatchRefusal::Malformed, None)));
    // What was made before it was retired may come late.
    check(Some(enrolled(Some(UnixMillis(NOW.0 + 1)))), Ok(()));
    check(Some(enrolled(Some(NOW))), Err((BatchRefusal::RetiredSource, Some(Kind::RetiredKey))));
}

/// Replayed, out of order, with a gap, with other content, of an epoch that is over, and off the chain. Broken to see it fail: `judge`
/// taking a batch in a gap without looking whether its numbers are missing.
#[test]
fn batches_in_the_wrong_order_are_told_apart() {
    let mut store = Disk::new().open(1).unwrap();
    let sent = chain(Tip::default(), 4, "a");
    let first = take(&mut store, &sent[0]).unwrap();
    // Again: the first answer, and nothing doubled.
    assert_eq!(take(&mut store, &sent[0]).unwrap(), Taken { repeated: true, ..first });
    assert_eq!(store.slots().0, 2);
    // The last before the ones between: kept, and the gap is known.
    take(&mut store, &sent[3]).unwrap();
    let gaps = |store: &Store| store.state(&source().vkey().id()).unwrap().gaps.clone();
    assert_eq!(gaps(&store), [Gap { epoch: 0, first: 2, end: 6 }]);
    take(&mut store, &sent[2]).unwrap();
    assert_eq!(gaps(&store), [Gap { epoch: 0, first: 2, end: 4 }]);
    take(&mut store, &sent[1]).unwrap();
    assert_eq!((gaps(&store), troubles(&store)), (vec![], vec![]));

    let refused = |store: &mut Store, batch: &Batch| take(store, batch).unwrap_err().refusal;
    // Other content under numbers that were used.
    let others = chain(Tip::default(), 5, "b");
    assert_eq!(refused(&mut store, &others[1]), BatchRefusal::Reused);
    // The next number, behind another history.
    assert_eq!(refused(&mut store, &others[4]), BatchRefusal::BrokenChain);
    let next_epoch = chain(Tip::of_epoch(1, Some(sent[3].signed().hash())), 1, "c").remove(0);
    take(&mut store, &next_epoch).unwrap();
    let late = chain(Tip::after(sent[3].signed()), 1, "d").remove(0);
    assert_eq!(refused(&mut store, &late), BatchRefusal::StaleEpoch);
    assert_eq!(troubles(&store), [(Kind::BrokenChain, 1), (Kind::ReusedSequence, 1), (Kind::StaleEpoch, 1)]);
    assert_eq!(store.slots().0, 10);
    // A source that has forgotten what it sent is taken, and told of.
    let forgot = chain(Tip::of_epoch(2, None), 1, "e").remove(0);
    take(&mut store, &forgot).unwrap();
    assert_eq!(troubles(&store)[0], (Kind::BrokenChain, 2));
}

/// F8: times a year off, missing, in local time, and a collector whose clock is ahead or behind. Broken to see it fail: only the source's
/// clock looked at; only what is ahead of the service's.
#[test]
fn times_that_cannot_be_are_counted_and_change_nothing_else() {
    let check = |time: &str, observed: u64, lag_ms: i64, expected: &[(Kind, u64)]| {
        let mut store = Disk::new().open(1).unwrap();
        let event = event_seen("x", time, "", UnixMillis(observed));
        take(&mut store, &batch(&Tip::default(), vec![event])).unwrap();
        let state = store.state(&source().vkey().id()).unwrap();
        assert_eq!((state.lag_ms, troubles(&store).as_slice()), (lag_ms, expected), "{time}");
        assert_eq!(store.slots().0, 1);
    };
    let skew: &[(Kind, u64)] = &[(Kind::ClockSkew, 1)];
    // It is 2026-09-21T14:13:20Z.
    let hour = HOUR_MS as i64;
    check(r#""eventTime":"2026-09-21T14:13:20Z","#, NOW.0, 0, &[]);
    check(r#""eventTime":"2026-09-21T14:22:20Z","#, NOW.0, -9 * 60_000, &[]);
    check(r#""eventTime":"2027-09-21T14:13:20Z","#, NOW.0, -365 * 24 * hour, skew);
    // What comes late is as old as it says.
    check(r#""eventTime":"2025-09-21T14:13:20Z","#, NOW.0, 365 * 24 * hour, &[]);
    // With its offset it is the same moment; without one it is no time.
    check(r#""eventTime":"2026-09-21T16:13:20+02:00","#, NOW.0, 0, &[]);
    check(r#""eventTime":"2026-09-21T16:13:20","#, NOW.0 - 1_000, 1_000, &[]);
    check("", NOW.0 - 2_000, 2_000, &[]);
    check("", NOW.0 + HOUR_MS, -hour, skew);
    check(r#""eventTime":"2026-09-21T14:13:20Z","#, NOW.0 + HOUR_MS, 0, skew);
    // By its collector it was seen an hour before it happened; a year ago, with the source's own time and without one.
    check(r#""eventTime":"2026-09-21T14:13:20Z","#, NOW.0 - HOUR_MS, 0, skew);
    let year = 365 * 24 * HOUR_MS;
    check(r#""eventTime":"2025-09-21T14:13:20Z","#, NOW.0 - year, 365 * 24 * hour, skew);
    check("", NOW.0 - year, 365 * 24 * hour, skew);
}
