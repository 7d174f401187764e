//! What a call brings once there is a connection (RELIABILITY N4, N5, N6).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::{Hash, LeafIndex, TreeSize};
use epigraph_rpc::channel::channel;
use epigraph_rpc::limits::MAX_REASON_CHARS;
use epigraph_rpc::peer::{Tree, Which};
use epigraph_rpc::{CallError, Reason, Refusal, RequestIds, Wait, peer, v1};
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use crate::support::*;

fn refused<T: std::fmt::Debug>(answer: Result<T, CallError>) -> Refusal {
    match answer {
        Err(CallError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_happy_path() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let log = server.log(&ca.client(APPENDER));
    let entries = vec![Bytes::from_static(b"one"), Bytes::new()];

    let answer = log.append(ORIGIN, entries.clone(), Wait::Durable, None, None).await.unwrap();
    assert_eq!((answer.first_index.get(), answer.reached), (7, Wait::Durable));
    assert_eq!((answer.checkpoint, answer.proofs), (None, vec![]));
    // A stranger's words, as many as a screen takes.
    assert_eq!(answer.unpublished_because.unwrap().len(), MAX_REASON_CHARS);

    let wait_for = Some(Duration::from_secs(1));
    let answer = log.append(ORIGIN, entries, Wait::Published, wait_for, None).await.unwrap();
    assert_eq!((answer.checkpoint.unwrap(), answer.unpublished_because), (CHECKPOINT.into(), None));
    assert_eq!(answer.proofs, vec![vec![Hash::EMPTY_ROOT; 3]; 2]);

    assert_eq!(log.checkpoint(ORIGIN).await.unwrap(), CHECKPOINT);
    server.release.notify_one();
    let proof = log.consistency_proof(ORIGIN, TreeSize::ZERO, TreeSize::MAX).await.unwrap();
    assert_eq!(proof, vec![]);
}

#[tokio::test]
async fn a_refusal_arrives_with_reason_field_and_delay() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let (which, tree) = (Which::Index(LeafIndex::new(3).unwrap()), Tree::default());
    let refusal = refused(server.log(&ca.client(READER)).proof(ORIGIN, which, tree).await);
    assert_eq!((refusal.reason(), refusal.message()), (Reason::NotYetPublished, "a moment"));
    assert_eq!(refusal.field(), Some("leaf_index"));
    assert_eq!(refusal.retry_delay(), Some(Duration::from_millis(250)));
}

#[tokio::test]
async fn a_refusal_carries_the_id_that_the_client_gave_its_call_else_the_server_s() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let id = async |log: peer::Log| {
        refused(log.proof(ORIGIN, Which::Index(LeafIndex::new(3).unwrap()), Tree::default()).await)
            .request()
            .unwrap()
            .to_string()
    };
    assert_eq!(id(server.log(&ca.client(READER))).await, format!("{:016x}", 0));
    let named = channel(&server.address, &ca.client(READER), &name(SERVER)).unwrap();
    let named = peer::Log::over(named.with_request_ids(Arc::new(RequestIds::starting_at(0x1a2b))));
    assert_eq!(id(named.clone()).await, format!("{:016x}", 0x1a2b));
    assert_eq!(id(named).await, format!("{:016x}", 0x1a2c));
}

#[tokio::test]
async fn an_answer_that_does_not_go_with_its_request_is_not_used() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let log = server.log(&ca.client(APPENDER));
    for what in ["first_index", "count", "reached", "checkpoint", "proofs", "hashes", "more hashes"] {
        let entries = vec![Bytes::from(format!("lie: {what}")), Bytes::new()];
        let answer = log.append(ORIGIN, entries, Wait::Published, None, None).await;
        assert!(matches!(answer, Err(CallError::Garbled(_))), "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn entries_beyond_what_was_asked_for_or_any_answer_has_are_not_used() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let log = server.log(&ca.client(READER));
    let read = async |first, max| log.entries(ORIGIN, LeafIndex::new(first).unwrap(), max).await;
    assert_eq!(read(7, 4_096).await.unwrap(), vec![Bytes::new(); 4_096]);
    // The last index that there is.
    assert_eq!(read((1 << 63) - 2, 1).await.unwrap().len(), 1);
    for (first, max) in
        [(101, 1), (102, 1), (103, 1), (103, 4_096), (104, 1), (105, 100), (0, 4_097), ((1 << 63) - 2, 2)]
    {
        let answer = read(first, max).await;
        assert!(matches!(answer, Err(CallError::Garbled(_))), "{first}, {max}: {answer:?}");
    }
}

#[tokio::test]
async fn a_role_does_what_it_may_and_no_more() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let reader = server.log(&ca.client(READER));
    let refusal = refused(reader.append(ORIGIN, vec![Bytes::new()], Wait::Durable, None, None).await);
    assert_eq!(refusal.reason(), Reason::PermissionDenied);
    assert!(refusal.message().contains(READER) && refusal.message().contains("appender"), "{refusal}");
    assert_eq!(refused(reader.checkpoint("test.example/other").await).reason(), Reason::PermissionDenied);
    assert!(reader.checkpoint(ORIGIN).await.is_ok());

    let stranger = server.log(&ca.client("spiffe://test.example/epigraph/readers/r"));
    assert_eq!(refused(stranger.checkpoint(ORIGIN).await).reason(), Reason::PermissionDenied);
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let log = server.log(&ca.client(APPENDER));
    let append = |entries| log.append(ORIGIN, entries, Wait::Durable, None, None);

    // 4,096 entries that come to 4 MiB together.
    assert!(append(vec![Bytes::from(vec![0; 1_024]); 4_096]).await.is_ok());
    let refusal = refused(append(vec![Bytes::from(vec![0; 65_535]); 66]).await);
    assert_eq!(refusal.reason(), Reason::BatchTooLarge);
    assert!(refusal.message().contains("the limit is"), "{refusal}");
    // The connection is none the worse for it.
    assert!(append(vec![Bytes::new()]).await.is_ok());
}

#[tokio::test]
async fn bytes_that_are_no_message_and_unknown_calls_are_refused_in_our_words() {
    let ca = Ca::new();
    let server = Server::start(&ca).await;
    let call = async |path: &'static str| {
        let channel = channel(&server.address, &ca.client(APPENDER), &name(SERVER)).unwrap();
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.unwrap();
        // Field 2 is a number here and a list of bytes in an AppendRequest.
        let message = v1::GetConsistencyProofRequest { origin: ORIGIN.into(), old_size: 1, new_size: 1 };
        let codec = ProstCodec::<_, v1::AppendResponse>::default();
        let answer = grpc.unary(tonic::Request::new(message), PathAndQuery::from_static(path), codec).await;
        refused(answer.map(|_| ()).map_err(CallError::from)).reason()
    };
    assert_eq!(call("/epigraph.v1.LogService/Append").await, Reason::Malformed);
    assert_eq!(call("/epigraph.v1.LogService/Rewrite").await, Reason::UnknownRpc);
    assert_eq!(call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo").await, Reason::UnknownRpc);
}

#[tokio::test]
async fn calls_in_flight_are_answered_before_the_server_stops() {
    let ca = Ca::new();
    let mut server = Server::start(&ca).await;
    let log = server.log(&ca.client(READER));
    let in_flight =
        tokio::spawn(async move { log.consistency_proof(ORIGIN, TreeSize::ZERO, TreeSize::ZERO).await });
    server.waiting.notified().await;
    server.stop();
    // The listener is closed at once; the call is still there.
    while tokio::net::TcpStream::connect(&server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.release.notify_one();
    assert_eq!(in_flight.await.unwrap().unwrap(), vec![]);
    server.task.await.unwrap();
}
