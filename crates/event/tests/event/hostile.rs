//! What a hostile or broken source could send: nothing panics, nothing grows without measure, nothing is lost.

use epigraph_event::batch::Unverified;
use epigraph_event::decode::frame::{Frame, Lines, NotCounted, Octets};
use epigraph_event::decode::mapped::Mapping;
use epigraph_event::decode::{Reason, cloudevents, cloudtrail, k8s, mapped, otlp, syslog};
use epigraph_event::v1::{Format, TimeFrom};
use epigraph_event::{Decoded, Leaf};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::decoders::{context, log_record, logs};
use crate::support::Counting;
use prost::Message;

/// A decoder by its name.
type Decoder = (&'static str, fn(&[u8]) -> Vec<Decoded>);

pub(crate) const DECODERS: [Decoder; 6] = [
    ("cloudtrail", |bytes| cloudtrail::decode(bytes, &context())),
    ("k8s", |bytes| k8s::decode(bytes, &context())),
    ("otlp", |bytes| otlp::decode(bytes, &context())),
    ("cloudevents", |bytes| cloudevents::decode(bytes, &context())),
    ("syslog", |bytes| syslog::decode(bytes, &context())),
    ("json", |bytes| mapped::decode(bytes, &Mapping::default(), &context())),
];

/// The decoders whose records are JSON objects.
const JSON: [usize; 4] = [0, 1, 3, 5];

fn check_json(document: &[u8], expected: Reason) {
    for (name, decode) in JSON.map(|place| DECODERS[place]) {
        let decoded = decode(document);
        assert_eq!(decoded.len(), 1, "{name}");
        let rejected = decoded[0].as_ref().unwrap_err();
        assert_eq!(rejected.reason, expected, "{name}");
        assert_eq!(rejected.original_size, document.len() as u64);
        if document.len() <= 1024 * 1024 {
            assert_eq!(rejected.record, document, "{name} keeps it");
        }
    }
}

#[test]
fn what_is_no_json_is_kept_and_named() {
    check_json(b"", Reason::NotJson);
    check_json(b"\x1f\x8b\x08\x00", Reason::NotUtf8);
    check_json(b"not json", Reason::NotJson);
    check_json(b"{\"auditID\":\"a\",\"verb\":\"get\",\"eventName\"", Reason::NotJson);
    check_json(b"{\"a\":1} trailing", Reason::NotJson);
    check_json(b"{\"a\":1}{\"a\":2}", Reason::NotJson);
    check_json(b"{\"a\":\"\xff\"}", Reason::NotUtf8);
    check_json(b"{\"a\":\"\\ud800\"}", Reason::NotJson);
    check_json(b"{\"a\":\"\x00\x1b\"}", Reason::NotJson);
    check_json(b"{\"a\":1e999}", Reason::NotJson);
    check_json(b"{\"a\":NaN}", Reason::NotJson);
}

#[test]
fn a_hundred_thousand_levels_are_refused_without_overflow() {
    let deep = |open: &str, close: &str| [open.repeat(100_000), close.repeat(100_000)].concat();
    for arrays in [deep("[", "]"), "[".repeat(100_000), deep("{\"a\":", "}"), deep("{\"Records\":", "}")] {
        for (name, decode) in JSON.map(|place| DECODERS[place]) {
            let decoded = decode(arrays.as_bytes());
            assert_eq!(decoded.len(), 1, "{name}");
            assert!(decoded[0].is_err(), "{name}");
        }
    }
    check_json(
        format!("{{\"eventName\":\"x\",\"eventSource\":\"x\",\"a\":{}}}", deep("[", "]")).as_bytes(),
        Reason::NotJson,
    );
    let list = format!("{{\"items\":[{},1]}}", deep("[", "]"));
    let reasons: Vec<_> =
        k8s::decode(list.as_bytes(), &context()).into_iter().map(|d| d.unwrap_err().reason).collect();
    assert_eq!(reasons, [Reason::NotJson, Reason::NotAnEvent]);
}

// Broken to see it fail: `Strict` that keeps the last one.
#[test]
fn a_name_that_stands_twice_is_refused_at_any_depth() {
    check_json(b"{\"auditID\":\"a\",\"auditID\":\"b\",\"verb\":\"get\"}", Reason::DuplicateKey);
    check_json(b"{\"a\":[{\"b\":{\"c\":1,\"\\u0063\":2}}]}", Reason::DuplicateKey);
}

// Broken to see it fail: `Items` without its limit; `record` without its limit.
#[test]
fn too_much_is_refused_by_name() {
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(1024 * 1024));
    check_json(long.as_bytes(), Reason::TooLarge);
    let many = |name: &str| format!("{{\"{name}\":[{}1]}}", "1,".repeat(16_384));
    for (document, decoder) in
        [(many("Records"), 0), (many("items"), 1), (format!("[{}1]", "1,".repeat(16_384)), 3)]
    {
        let decoded = DECODERS[decoder].1(document.as_bytes());
        assert_eq!(decoded.len(), 1);
        assert_eq!(decoded[0].as_ref().unwrap_err().reason, Reason::TooManyRecords);
    }
    let huge = vec![b' '; 16 * 1024 * 1024 + 1];
    for (name, decode) in DECODERS {
        let rejected = decode(&huge).remove(0).unwrap_err();
        assert_eq!((rejected.reason, rejected.record.len()), (Reason::TooLarge, 4096), "{name}");
    }
}

#[test]
fn numbers_and_texts_of_any_size_and_kind() {
    let record = format!(
        "{{\"auditID\":\"a\\u0000\\u202e\\n\",\"verb\":\"get\",\"stageTimestamp\":{},\"responseStatus\":{{\"code\":-1}},\
          \"user\":{{\"username\":\"{}\",\"groups\":[{}\"g\"]}},\"objectRef\":{{\"resource\":\"{}\"}}}}",
        u64::MAX,
        "é".repeat(1000),
        "\"g\",".repeat(100),
        "r".repeat(600),
    );
    let event = k8s::decode(record.as_bytes(), &context()).remove(0).unwrap();
    assert_eq!(event.core.occurred_from(), TimeFrom::Unreadable);
    assert_eq!(event.core.occurred_at_ns, event.core.observed_at_ns);
    let sealed = event.seal(&Counting::default()).unwrap().event().unwrap();
    assert_eq!(sealed.core.event_id, "a\0\u{202e}\n");
    assert_eq!(sealed.core.cut_fields, ["action", "resources", "actor"]);
    let actor = sealed.identity.actor.unwrap();
    assert_eq!((actor.name, actor.groups.len()), ("é".repeat(256), 32));
    assert_eq!(sealed.body.record, record.as_bytes(), "the record is whole");
}

fn lines_of(chunks: &[&[u8]]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut lines = Lines::default();
    chunks.iter().for_each(|chunk| lines.push(chunk, |frame| frames.push(frame)));
    lines.finish(|frame| frames.push(frame));
    frames
}

fn record(offset: u64, bytes: &[u8]) -> Frame {
    Frame::Record { offset, bytes: bytes.to_vec() }
}

#[test]
fn lines_come_out_wherever_the_stream_is_cut() {
    let stream = b"one\r\n\n\r\ntwo\rx\n\xff\nlast";
    let expected = [record(0, b"one"), record(8, b"two\rx"), record(14, b"\xff"), record(16, b"last")];
    for cut in 0..=stream.len() {
        assert_eq!(lines_of(&[&stream[..cut], &stream[cut..]]), expected, "cut at {cut}");
    }
    assert_eq!(lines_of(&[]), []);
    let mut lines = Lines::from_offset(100);
    lines.push(b"one\ntw", |frame| assert_eq!(frame, record(100, b"one")));
    assert_eq!(lines.offset(), 104);
}

// Broken to see it fail: `Lines::hold` with less room than a record needs.
#[test]
fn sixty_four_mebibytes_of_one_line_are_named_and_passed_over() {
    let chunk = vec![b'x'; 64 * 1024];
    let (mut lines, mut frames) = (Lines::default(), Vec::new());
    lines.push(b"first\n", |frame| frames.push(frame));
    for _ in 0..1024 {
        lines.push(&chunk, |frame| frames.push(frame));
    }
    lines.push(b"\nnext\n", |frame| frames.push(frame));
    let length = 64 * 1024 * 1024;
    let named = Frame::TooLarge { offset: 6, length, beginning: vec![b'x'; 4096] };
    assert_eq!(frames, [record(0, b"first"), named.clone(), record(7 + length, b"next")]);
    let rejected = named.record(Format::Json).unwrap_err();
    assert_eq!((rejected.reason, rejected.original_size), (Reason::TooLarge, length));
    assert!(rejected.into_event(&context()).body.truncated);

    // At the limit, with and without CR.
    let limit = vec![b'x'; 1024 * 1024];
    assert_eq!(lines_of(&[&limit, b"\n"]), [record(0, &limit)]);
    assert_eq!(lines_of(&[&limit, b"\r\n"]), [record(0, &limit)]);
    let length = 1024 * 1024 + 1;
    assert_eq!(
        lines_of(&[&limit, b"x\n"]),
        [Frame::TooLarge { offset: 0, length, beginning: limit[..4096].to_vec() }]
    );
}

#[test]
fn counted_octets_come_out_wherever_the_stream_is_cut() {
    let stream = b"3 one12 two and\nmore";
    let expected = [record(0, b"one"), record(5, b"two and\nmore")];
    for cut in 0..=stream.len() {
        let (mut octets, mut frames) = (Octets::default(), Vec::new());
        for part in [&stream[..cut], &stream[cut..]] {
            octets.push(part, |frame| frames.push(frame)).unwrap();
        }
        assert_eq!(frames, expected, "cut at {cut}");
        assert!(octets.is_complete());
    }
    let mut half = Octets::default();
    half.push(b"9 half", |_| panic!("nothing is complete")).unwrap();
    assert!(!half.is_complete());
}

// Broken to see it fail: `Octets::count` that takes a leading zero.
#[test]
fn what_is_not_counted_ends_the_stream() {
    let check = |stream: &[u8], at| {
        let mut octets = Octets::default();
        assert_eq!(octets.push(stream, |_| ()), Err(NotCounted(at)), "{stream:?}");
    };
    check(b"<13>1 - - - - - -\n", 0);
    check(b"0 ", 0);
    check(b" 1", 0);
    check(b"3 one-1 x", 5);
    check(b"9999999999 x", 0);
    let (mut octets, mut frames) = (Octets::default(), Vec::new());
    octets.push(b"2097152 ", |frame| frames.push(frame)).unwrap();
    octets.push(&vec![b'x'; 2 * 1024 * 1024], |frame| frames.push(frame)).unwrap();
    octets.push(b"1 y", |frame| frames.push(frame)).unwrap();
    let (offset, length) = (0, 2 * 1024 * 1024);
    let named = Frame::TooLarge { offset, length, beginning: vec![b'x'; 4096] };
    assert_eq!(frames, [named, record(8 + length, b"y")]);
}

/// Decodes, and checks what holds for every document: a record is kept whatever becomes of it.
fn decode_all(document: &[u8]) {
    for (name, decode) in DECODERS {
        for decoded in decode(document) {
            let event = decoded.unwrap_or_else(|rejected| rejected.into_event(&context()));
            assert_ne!(event.body.original_size == 0, !event.body.record.is_empty(), "{name}");
            event.seal(&Counting::default()).unwrap();
        }
    }
    let _ = Unverified::decode(document.to_vec().into());
    let _ = Leaf::parse(document);
    let _ = epigraph_event::Bundle::parse(document);
    let mut lines = Lines::default();
    lines.push(document, |_| ());
    let _ = Octets::default().push(document, |_| ());
}

/// Real documents of every format, to be damaged.
fn documents() -> Vec<Vec<u8>> {
    vec![
        br#"{"Records":[{"eventName":"a","eventSource":"b","eventTime":"2024-07-30T21:53:13Z","userIdentity":{"type":"Root"}}]}"#.to_vec(),
        br#"{"items":[{"auditID":"a","verb":"get","user":{"username":"u","groups":["g"]},"sourceIPs":["::1"]}]}"#.to_vec(),
        logs(vec![log_record(1), log_record(2)]).encode_to_vec(),
        br#"[{"specversion":"1.0","id":"1","source":"s","type":"t","time":"2024-07-30T21:53:13Z"}]"#.to_vec(),
        b"<13>1 2024-07-30T21:53:13Z h a p m [a b=\"c\"] \xef\xbb\xbfx".to_vec(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn any_bytes_are_answered(document in vec(any::<u8>(), 0..400)) {
        decode_all(&document);
    }

    #[test]
    fn any_text_is_answered(document in "[\\[\\]{}\",:<>1 aRecordsitems\\\\u0-]{0,200}") {
        decode_all(document.as_bytes());
    }

    #[test]
    fn damaged_documents_are_answered(
        which in 0..5usize,
        damage in vec((any::<usize>(), any::<u8>()), 1..6),
        cut in any::<usize>(),
    ) {
        let mut document = documents()[which].clone();
        for (at, byte) in damage {
            let at = at % document.len();
            document[at] = byte;
        }
        decode_all(&document);
        decode_all(&document[..cut % document.len()]);
    }
}
