//! Requests that our own client would not send: each is refused with a reason, nothing is appended, and the log serves on.

use std::fs;

use bytes::Bytes;
use epigraph_rpc::channel::Channel;
use epigraph_rpc::limits::MAX_REQUEST_BYTES;
use epigraph_rpc::v1::get_proof_request::Target;
use epigraph_rpc::v1::log_service_client::LogServiceClient;
use epigraph_rpc::v1::{self, AppendRequest, GetConsistencyProofRequest, GetProofRequest, Producer};
use epigraph_rpc::{Reason, Refusal, Wait};
use prost::Message;

use crate::support::{House, Serving, block_on, leaf};

/// Entries of a new house.
const SIZE: u64 = 3;

fn request(entries: Vec<Bytes>) -> AppendRequest {
    AppendRequest { entries, ..AppendRequest::default() }
}

async fn check_append(
    client: &mut LogServiceClient<Channel>,
    request: AppendRequest,
    reason: Reason,
    code: &str,
) {
    let status = client.append(request).await.unwrap_err();
    assert_eq!(Refusal::from_status(&status).map(|refusal| refusal.reason()), Some(reason), "{status:?}");
    assert_eq!(format!("{:?}", status.code()), code, "{status:?}");
    assert!(!status.message().is_empty());
}

/// The log stands at its old size, and the next entry gets the next index.
async fn check_unharmed(house: &House, serving: &Serving) {
    let client = house.client(serving);
    assert_eq!(client.checkpoint().await.unwrap().head().size.get(), SIZE);
    let entry = Bytes::from_static(b"after all that");
    let appended = client.append(std::slice::from_ref(&entry), Wait::Published).await.unwrap();
    assert_eq!(appended.first_index.get(), SIZE);
    client.receipt(appended.first_index, &leaf(&entry)).await.unwrap();
}

#[test]
fn appends_beyond_the_limits_are_refused_whole() {
    let house = House::new();
    let serving = house.serve();
    block_on(async {
        let mut client = house.raw_client(&serving);
        let client = &mut client;
        let full = Bytes::from(vec![7; 65_535]);
        let check = async |client: &mut _, entries, reason, code| {
            check_append(client, request(entries), reason, code).await
        };
        check(client, vec![], Reason::NoEntries, "InvalidArgument").await;
        let too_large = Bytes::from(vec![7; 65_536]);
        check(client, vec![Bytes::new(), too_large], Reason::EntryTooLarge, "InvalidArgument").await;
        check(client, vec![Bytes::new(); 4_097], Reason::TooManyEntries, "InvalidArgument").await;
        // One byte above 4 MiB: 64 full entries and one of 65 bytes.
        let mut above = vec![full.clone(); 64];
        above.push(Bytes::from(vec![7; 65]));
        check(client, above, Reason::BatchTooLarge, "OutOfRange").await;
        check(client, vec![full; 100], Reason::BatchTooLarge, "OutOfRange").await;

        let unknown_wait = AppendRequest { wait: 99, ..request(vec![Bytes::new()]) };
        check_append(client, unknown_wait, Reason::Malformed, "InvalidArgument").await;
        for id in [&[][..], &[1; 15], &[1; 17]] {
            let producer = Some(Producer { id: Bytes::from_static(id), epoch: 1, first_sequence: 0 });
            let numbered = AppendRequest { producer, ..request(vec![Bytes::new()]) };
            check_append(client, numbered, Reason::Malformed, "InvalidArgument").await;
        }
        check_unharmed(&house, &serving).await;
    });
}

#[test]
fn the_largest_requests_that_are_allowed_are_taken() {
    let house = House::new();
    let serving = house.serve();
    block_on(async {
        let mut client = house.raw_client(&serving);
        let mut largest = vec![Bytes::from(vec![7; 65_535]); 64];
        largest.push(Bytes::from(vec![7; 64]));
        let answer = client.append(request(largest)).await.unwrap().into_inner();
        assert_eq!((answer.first_index, answer.count), (SIZE, 65));
        let answer = client.append(request(vec![Bytes::new(); 4_096])).await.unwrap().into_inner();
        assert_eq!((answer.first_index, answer.count), (SIZE + 65, 4_096));
        // Unset, the wait is DURABLE, and its answer carries no proof.
        assert_eq!((answer.reached, answer.checkpoint.len(), answer.proofs.len()), (1, 0, 0));
    });
}

#[test]
fn a_log_that_is_not_here_is_refused_by_name() {
    let house = House::new();
    // Whoever is allowed every log is told that there is none; whoever is not, only that it is not allowed.
    let here = format!("logs = [\"{}\"]", house.origin().as_str());
    for (granted, reason, code) in [
        (here.as_str(), Reason::PermissionDenied, "PermissionDenied"),
        ("logs = [\"*\"]", Reason::UnknownOrigin, "NotFound"),
    ] {
        house.edit("log.toml", &here, granted);
        let serving = house.serve();
        block_on(async {
            let mut client = house.raw_client(&serving);
            let elsewhere =
                AppendRequest { origin: "elsewhere.example".into(), ..request(vec![Bytes::new()]) };
            check_append(&mut client, elsewhere, reason, code).await;
        });
        serving.stop();
    }
    let serving = house.serve();
    block_on(check_unharmed(&house, &serving));
}

#[test]
fn proofs_of_what_is_not_there_are_refused() {
    let house = House::new();
    let serving = house.serve();
    block_on(async {
        let mut client = house.raw_client(&serving);
        for (index, reason) in [
            (Some(SIZE), Reason::BeyondTree),
            (Some(u64::MAX), Reason::BeyondTree),
            (Some(1 << 63), Reason::BeyondTree),
            (Some((1 << 63) - 2), Reason::BeyondTree),
            (None, Reason::Malformed),
        ] {
            let request = GetProofRequest { target: index.map(Target::LeafIndex), ..Default::default() };
            let status = client.get_proof(request).await.unwrap_err();
            assert_eq!(
                Refusal::from_status(&status).map(|refusal| refusal.reason()),
                Some(reason),
                "{index:?}"
            );
        }
        for (old, new, reason) in [
            (0, 0, Reason::BadSize),
            (0, SIZE, Reason::BadSize),
            (3, 2, Reason::BadSize),
            (1, SIZE + 1, Reason::BeyondTree),
            (SIZE + 1, SIZE + 2, Reason::BeyondTree),
            (1, (1 << 63) - 1, Reason::BeyondTree),
            (1, u64::MAX, Reason::BadSize),
            (u64::MAX, u64::MAX, Reason::BadSize),
        ] {
            let request = GetConsistencyProofRequest { old_size: old, new_size: new, ..Default::default() };
            let status = client.get_consistency_proof(request).await.unwrap_err();
            let got = Refusal::from_status(&status).map(|refusal| refusal.reason());
            assert_eq!(got, Some(reason), "{old} to {new}: {status:?}");
        }
        check_unharmed(&house, &serving).await;
    });
}

/// How a call of a table was refused.
fn refused<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> (Option<Reason>, tonic::Code) {
    let status = answer.unwrap_err();
    assert!(!status.message().is_empty(), "{status:?}");
    (Refusal::from_status(&status).map(|refusal| refusal.reason()), status.code())
}

/// N6: every read with sizes, indexes and hashes that nothing has. Seen to fail while a size to watch from that no tree has was
/// called malformed.
#[test]
fn reads_of_what_cannot_be_are_refused_each_with_its_reason() {
    use Target::{LeafHash, LeafIndex};
    let house = House::new();
    let serving = house.serve();
    block_on(async {
        let mut client = house.raw_client(&serving);
        let hash = |length: usize| Some(LeafHash(vec![7; length].into()));
        let first = Some(LeafIndex(0));
        for (target, tree_size, consistent_from, expected) in [
            (first.clone(), u64::MAX, 0, Reason::BadSize),
            (first.clone(), (1 << 63) - 1, 0, Reason::BeyondTree),
            (first.clone(), SIZE + 1, 0, Reason::BeyondTree),
            (first.clone(), 0, u64::MAX, Reason::BadSize),
            (first.clone(), 0, SIZE + 1, Reason::BadSize),
            (first.clone(), 2, 3, Reason::BadSize),
            (Some(LeafIndex(2)), 2, 0, Reason::BadSize),
            (Some(LeafIndex(u64::MAX)), 2, 0, Reason::BeyondTree),
            (hash(0), 0, 0, Reason::Malformed),
            (hash(31), 0, 0, Reason::Malformed),
            (hash(33), 0, 0, Reason::Malformed),
            (hash(32), 0, 0, Reason::LeafNotFound),
            (None, 0, 0, Reason::Malformed),
        ] {
            let request = GetProofRequest { target, tree_size, consistent_from, ..Default::default() };
            let asked = format!("{request:?}");
            assert_eq!(refused(client.get_proof(request).await).0, Some(expected), "{asked}");
        }
        for (level, index, width, expected) in [
            (8, 0, 0, Reason::Malformed),
            (u32::MAX, 0, 1, Reason::Malformed),
            (0, u64::MAX, 1, Reason::BeyondTree),
            (7, u64::MAX, 256, Reason::BeyondTree),
            (0, 0, 257, Reason::Malformed),
            (0, 0, u32::MAX, Reason::Malformed),
            (0, 0, SIZE as u32 + 1, Reason::BeyondTree),
        ] {
            let request = v1::GetTileRequest { level, index, width, ..Default::default() };
            let asked = format!("{request:?}");
            assert_eq!(refused(client.get_tile(request).await).0, Some(expected), "{asked}");
        }
        for first_index in [SIZE, 1 << 63, u64::MAX] {
            let request = v1::GetEntriesRequest { first_index, ..Default::default() };
            assert_eq!(refused(client.get_entries(request).await).0, Some(Reason::BeyondTree));
        }
        for page_token in ["garbage", "\u{0}", "-1", "18446744073709551616", &"9".repeat(10_000)] {
            let request = v1::ListCheckpointsRequest { page_token: page_token.into(), ..Default::default() };
            assert_eq!(
                refused(client.list_checkpoints(request).await).0,
                Some(Reason::Malformed),
                "{page_token}"
            );
        }
        let request = v1::ListCheckpointsRequest { min_size: u64::MAX, ..Default::default() };
        assert_eq!(refused(client.list_checkpoints(request).await).0, Some(Reason::BadSize));
        // A page can be asked to be of any size; the answer has what fits.
        let request = v1::ListCheckpointsRequest { page_size: u32::MAX, ..Default::default() };
        assert!(!client.list_checkpoints(request).await.unwrap().into_inner().checkpoints.is_empty());
        for first_index in [1 << 63, u64::MAX] {
            let request = v1::FollowRequest { first_index, ..Default::default() };
            assert_eq!(refused(client.follow(request).await).0, Some(Reason::BeyondTree));
        }
        for (after_size, include_pending, expected) in [
            (Some(u64::MAX), false, Reason::BadSize),
            (Some(1 << 63), false, Reason::BadSize),
            (None, true, Reason::PermissionDenied),
        ] {
            let request = v1::WatchCheckpointsRequest { after_size, include_pending, ..Default::default() };
            assert_eq!(refused(client.watch_checkpoints(request).await).0, Some(expected), "{after_size:?}");
        }
        check_unharmed(&house, &serving).await;
    });
    serving.stop();
}

/// N4: one byte less than a request may have, as many, and one more. Seen to fail when one byte more was read.
#[test]
fn a_request_is_read_up_to_the_limit_of_the_wire() {
    let house = House::new();
    let serving = house.serve();
    block_on(async {
        let mut client = house.raw_client(&serving);
        // Up to the limit the log has read the request and counts its entries; above it nobody has.
        for (bytes, unread) in
            [(MAX_REQUEST_BYTES - 1, false), (MAX_REQUEST_BYTES, false), (MAX_REQUEST_BYTES + 1, true)]
        {
            let mut entries = vec![Bytes::from(vec![7; 65_535]); 64];
            entries.push(Bytes::from(vec![7; 65_535 - 2_000]));
            let rest = bytes - request(entries.clone()).encoded_len();
            // A tag and a length of two bytes come before it.
            entries.push(Bytes::from(vec![7; rest - 3]));
            let request = request(entries);
            assert_eq!(request.encoded_len(), bytes);
            let answer = client.append(request).await;
            let message = answer.as_ref().unwrap_err().message().to_owned();
            assert_eq!(refused(answer), (Some(Reason::BatchTooLarge), tonic::Code::OutOfRange), "{bytes}");
            assert_eq!(message.contains(&format!("{MAX_REQUEST_BYTES}")), unread, "{message}");
        }
        check_unharmed(&house, &serving).await;
    });
    serving.stop();
}

/// N6, as a stream: what the first request may not say, and what a later one may not.
#[test]
fn a_stream_of_garbage_ends_with_the_reason() {
    let house = House::new();
    let serving = house.serve();
    block_on(async {
        let mut client = house.raw_client(&serving);
        let good = || request(vec![]);
        let producer =
            |id: &'static [u8]| Some(Producer { id: Bytes::from_static(id), epoch: 1, first_sequence: 0 });
        for (requests, expected) in [
            (vec![AppendRequest { origin: "elsewhere.example".into(), ..good() }], Reason::PermissionDenied),
            (vec![AppendRequest { wait: -1, ..good() }], Reason::Malformed),
            (vec![AppendRequest { producer: producer(&[1; 15]), ..good() }], Reason::Malformed),
            (vec![request(vec![Bytes::from(vec![7; 65_536])])], Reason::EntryTooLarge),
            (vec![request(vec![Bytes::new(); 4_097])], Reason::TooManyEntries),
            (vec![good()], Reason::NoEntries),
        ] {
            let asked = format!("{:.200}", format!("{requests:?}"));
            let answer = async {
                let mut answers = client.append_stream(tokio_stream::iter(requests)).await?.into_inner();
                answers.message().await
            };
            assert_eq!(refused(answer.await).0, Some(expected), "{asked}");
        }
        check_unharmed(&house, &serving).await;
    });
    serving.stop();
}

#[test]
fn the_command_line_says_what_the_server_refused() {
    let house = House::new();
    let serving = house.serve();
    let out = house.outside("receipt");
    house
        .call("prove", &[&"3", &"--leaf-hash", &leaf(b"").to_string(), &"--out", &out])
        .refused(3, &["entry 3", "3 entries", "(BEYOND_TREE, request "]);
    assert!(!out.exists());
    // The proof exists, and it is not of this entry: the client sees that by itself.
    house
        .call("prove", &[&"1", &"--leaf-hash", &leaf(b"someone else's").to_string(), &"--out", &out])
        .refused(1, &["entry 1 is not proven"]);
    assert!(!out.exists());
    house.call("prove", &[&"1", &"--leaf-hash", &leaf(b"two").to_string(), &"--out", &out]).succeeded(&[]);
    house
        .call("prove", &[&"18446744073709551615", &"--leaf-hash", &leaf(b"").to_string(), &"--out", &out])
        .refused(2, &["index"]);

    let lines = house.outside("lines");
    fs::write(&lines, "").unwrap();
    house.call("append", &[&lines]).refused(2, &["the input has no lines"]);
    fs::write(&lines, [b"fits\n".to_vec(), vec![b'x'; 70_000], b"\nfits as well".to_vec()].concat()).unwrap();
    house.call("append", &[&lines]).refused(2, &["line 2;", "all others are in the log"]);
    let receipts = house.outside("kept");
    house.call("append", &[&lines, &"--receipts", &receipts]).refused(2, &["line 2;"]);
    assert_eq!(fs::read(receipts.join("000006.entry")).unwrap(), b"fits as well");
    house.call("append", &[&lines, &"--wait", &"durable"]).refused(2, &["line 2;"]);
    assert_eq!(serving.entries, SIZE);
    serving.stop();
    assert_eq!(house.serve().entries, SIZE + 6);
}

#[test]
fn a_server_that_is_not_there_is_unreachable_and_named() {
    let house = House::new();
    let serving = house.serve();
    let address = serving.address.clone();
    serving.stop();
    house.call("checkpoint", &[]).refused(4, &["cannot be reached", &address]);
    house.call("append", &[&house.path("policy")]).refused(4, &["cannot be reached", &address]);
}
