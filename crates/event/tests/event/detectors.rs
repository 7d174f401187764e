//! What detectors find is nowhere in what is signed, and the report says where it was.

use std::collections::BTreeSet;

use epigraph_event::decode::mapped::Mapping;
use epigraph_event::decode::{cloudevents, k8s, mapped, otlp, syslog};
use epigraph_event::sensitive::{ALL, Detectors, TokenKey};
use epigraph_event::v1::{DataClass, Detected};
use epigraph_event::{Event, Segment};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, LogsData};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use crate::decoders::{context, log_record, logs, real};
use crate::hostile::DECODERS;
use crate::support::Counting;

fn detectors(seed: u8) -> Detectors {
    Detectors::new(TokenKey::from_bytes([seed; 32].into()), &ALL)
}

/// One of each kind, with the word that must not be left of it. In two parts, so that nobody's search for secrets
/// finds this file.
fn planted() -> Vec<(Detected, String, &'static str)> {
    let key = concat!("-----BEGIN PRIVATE", " KEY-----\nMIGH\n-----END PRIVATE", " KEY-----");
    vec![
        (Detected::Email, "carol@example.com".to_owned(), "carol"),
        (Detected::CardNumber, "4111 1111 1111 1111".to_owned(), "1111"),
        (Detected::AwsAccessKey, format!("AKIA{}", "B7C8".repeat(4)), "B7C8"),
        (Detected::BearerToken, format!("Bearer {}", "t0k3n".repeat(5)), "t0k3n"),
        (Detected::BearerToken, format!("eyJ{0}.{0}.{0}", "w3bt".repeat(4)), "w3bt"),
        (Detected::PrivateKey, key.to_owned(), "MIGH"),
    ]
}

fn clean(event: &Event, word: &str) {
    let sealed = event.clone().seal(&Counting::default()).unwrap();
    for segment in Segment::ALL {
        let bytes = sealed.bytes(segment);
        let holds = bytes.windows(word.len()).any(|window| window == word.as_bytes());
        assert!(!holds, "{word} in {segment}: {}", String::from_utf8_lossy(bytes));
    }
}

fn paths(event: &Event) -> Vec<(&str, Detected, u32)> {
    event
        .body
        .replaced
        .iter()
        .map(|replaced| (replaced.path.as_str(), replaced.kind(), replaced.count))
        .collect()
}

// Broken to see it fail: `apply` without the fields of core and identity; paths that are not looked at.
#[test]
fn planted_values_are_nowhere_in_what_is_signed() {
    for (kind, value, word) in planted() {
        let json = serde_json::to_string(&value).unwrap();
        let record = format!(
            "{{\"auditID\":\"a\",\"verb\":\"get\",\"user\":{{\"username\":{json}}},\"userAgent\":{json},\
              \"requestObject\":{{\"x/y\":[1,{{\"deep\":{json}}},{json}]}},{json}:2}}"
        );
        let mut event = k8s::decode(record.as_bytes(), &context()).remove(0).unwrap();
        let found = detectors(1).apply(&mut event);
        clean(&event, word);
        assert_eq!(found.counts(), [(kind, 5)]);
        let listed = paths(&event);
        assert_eq!(
            &listed[..4],
            [
                ("/user/username", kind, 1),
                ("/userAgent", kind, 1),
                ("/requestObject/x~1y/1/deep", kind, 1),
                ("/requestObject/x~1y/2", kind, 1),
            ]
        );
        assert!(listed[4].0.starts_with("/") && !listed[4].0.contains(word), "{:?}", listed[4]);
        let class = match kind {
            Detected::Email => DataClass::Personal,
            Detected::CardNumber => DataClass::Cardholder,
            _ => DataClass::Secret,
        };
        assert_eq!(event.core.data_classes, 1 << (class as u32 - 1));
        serde_json::from_slice::<serde_json::Value>(&event.body.record).expect("still JSON");
        let actor = event.identity.actor.as_ref().unwrap();
        assert_eq!(actor.name, event.identity.user_agent, "one value, one token");
    }
}

// Broken to see it fail: `json::rewrite` without undoing escapes.
#[test]
fn escapes_hide_nothing_and_the_rest_stays_as_it_was() {
    let record = r#" {"auditID" : "a\u0041","verb":"get", "n":1.50, "m":"alice\u0040ex\u0061mple.com", "pan":4111111111111111 ,"u":"\ud83d\ude00 /\/"} "#;
    let mut event = k8s::decode(record.as_bytes(), &context()).remove(0).unwrap();
    detectors(1).apply(&mut event);
    let text = String::from_utf8(event.body.record.clone()).unwrap();
    let (before, rest) = text.split_once("\"[email:").unwrap();
    assert_eq!(before, r#" {"auditID" : "a\u0041","verb":"get", "n":1.50, "m":"#);
    let (_, rest) = rest.split_once("]\"").unwrap();
    let (middle, rest) = rest.split_once("\"[card-number:").unwrap();
    assert_eq!(middle, r#", "pan":"#);
    let (_, rest) = rest.split_once("]\"").unwrap();
    assert_eq!(rest, r#" ,"u":"\ud83d\ude00 /\/"} "#);
    assert_eq!(paths(&event), [("/m", Detected::Email, 1), ("/pan", Detected::CardNumber, 1)]);
}

// Broken to see it fail: without the search in what is no JSON; without dropping the word in which a record was cut.
#[test]
fn what_is_rejected_is_looked_at_too() {
    for (kind, value, word) in planted() {
        for broken in
            [format!("not json: {value}"), format!("{{\"a\":{}", serde_json::to_string(&value).unwrap())]
        {
            let mut event =
                k8s::decode(broken.as_bytes(), &context()).remove(0).unwrap_err().into_event(&context());
            let found = detectors(1).apply(&mut event);
            clean(&event, word);
            assert_eq!(found.counts(), [(kind, 1)], "{broken}");
        }
        let mut binary = [b"\xff\x00 ", value.as_bytes(), b" \xfe"].concat();
        let mut event = k8s::decode(&binary, &context()).remove(0).unwrap_err().into_event(&context());
        detectors(1).apply(&mut event);
        assert!(event.body.record.starts_with(b"\xff\x00 "));
        clean(&event, word);
        // What was cut off ends before the word in which it was cut.
        binary = [vec![b'x'; 4096 - 10], value.into_bytes(), vec![b' '; 1024 * 1024]].concat();
        let mut event = k8s::decode(&binary, &context()).remove(0).unwrap_err().into_event(&context());
        detectors(1).apply(&mut event);
        clean(&event, word);
    }
}

#[test]
fn every_format_is_looked_at() {
    for (_, value, word) in planted() {
        let any = |value| Some(AnyValue { value: Some(value) });
        let text = || any(Any::StringValue(value.clone()));
        let attribute = |key: &str, value| KeyValue { key: key.to_owned(), value, ..KeyValue::default() };
        let nested = KeyValueList { values: vec![attribute("in", text())] };
        let array = ArrayValue { values: vec![text().unwrap(), any(Any::KvlistValue(nested)).unwrap()] };
        let mut record = LogRecord { body: any(Any::ArrayValue(array)), ..log_record(7) };
        record.attributes.push(attribute("raw", any(Any::BytesValue(value.clone().into_bytes()))));
        record.attributes.push(attribute("user.name", text()));
        let mut data = logs(vec![record]);
        data.resource_logs[0].resource.as_mut().unwrap().attributes.push(attribute("owner", text()));
        let mut event = otlp::decode(&data.encode_to_vec(), &context()).remove(0).unwrap();
        let found = detectors(1).apply(&mut event);
        clean(&event, word);
        assert_eq!(found.counts()[0].1, 5);
        LogsData::decode(event.body.record.as_slice()).expect("still a document");
        let listed: Vec<_> = paths(&event).into_iter().map(|(path, ..)| path).collect();
        assert_eq!(
            listed,
            ["/resource/owner", "/attributes/raw", "/attributes/user.name", "/body", "/body/in"]
        );

        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "s"),
            ("ce-type", "t"),
            ("ce-subject", &value),
        ];
        if !value.contains('\n') {
            let data = format!("{{\"d\":\"{value}\"}}");
            let mut event = cloudevents::decode_binary(&headers, data.as_bytes(), &context()).unwrap();
            let found = detectors(1).apply(&mut event);
            clean(&event, word);
            assert_eq!((found.counts()[0].1, paths(&event).last().unwrap().0), (2, "/d"));
        }
        let message = format!("<13>1 - h a p m - {value}");
        let mut event = syslog::decode(message.as_bytes(), &context()).remove(0).unwrap();
        detectors(1).apply(&mut event);
        clean(&event, word);
    }
}

// Broken to see it fail: without the search in the bytes; records always encoded anew.
#[test]
fn unknown_fields_are_kept_only_while_they_say_nothing() {
    let with_field = |text: &str| {
        let mut record = log_record(7).encode_to_vec();
        record.extend([0xfa, 0x3e, text.len() as u8]);
        record.extend(text.as_bytes());
        let mut data = logs(vec![LogRecord::default()]).encode_to_vec();
        // The empty record is the last two bytes; the lengths around it stand in one byte each.
        assert_eq!(data.split_off(data.len() - 2), [0x12, 0]);
        let resource_logs = LogsData::decode(logs(vec![]).encode_to_vec().as_slice()).unwrap();
        let scope = resource_logs.resource_logs[0].scope_logs[0].encode_to_vec();
        let wrap = |bytes: &[u8]| {
            let mut wrapped = vec![0x12];
            prost::encoding::encode_varint(bytes.len() as u64, &mut wrapped);
            wrapped.extend(bytes);
            wrapped
        };
        let mut outer = vec![0x0a];
        let inner = wrap(&[scope, wrap(&record)].concat());
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        outer.extend(inner);
        outer
    };
    let plain = with_field("nothing");
    let mut event = otlp::decode(&plain, &context()).remove(0).unwrap();
    assert_eq!(detectors(1).apply(&mut event).counts(), []);
    assert_eq!(event.body.record, plain);
    let mut event = otlp::decode(&with_field("alice@example.com"), &context()).remove(0).unwrap();
    assert_eq!(detectors(1).apply(&mut event).counts(), [(Detected::Email, 1)]);
    clean(&event, "alice@");
}

#[test]
fn tokens_are_stable_keyed_and_of_one_value() {
    let token = |seed, value: &str| {
        let record = format!("{{\"v\":{}}}", serde_json::to_string(value).unwrap());
        let mut event = mapped::decode(record.as_bytes(), &Mapping::default(), &context()).remove(0).unwrap();
        detectors(seed).apply(&mut event);
        String::from_utf8(event.body.record).unwrap()
    };
    let first = token(1, "alice@example.com");
    assert_eq!(first, token(1, "alice@example.com"));
    assert_eq!(first, token(1, "Alice@Example.COM"));
    assert_eq!(first, token(1, "alice%40example.com"));
    assert_ne!(first, token(2, "alice@example.com"));
    assert_ne!(first, token(1, "alicf@example.com"));
    assert_eq!(token(1, "4111-1111-1111-1111"), token(1, "4111111111111111"));
    let letters = first.strip_prefix("{\"v\":\"[email:").and_then(|rest| rest.strip_suffix("]\"}")).unwrap();
    assert!(letters.len() == 24 && letters.bytes().all(|byte| (b'a'..=b'p').contains(&byte)), "{first}");
    // Whoever knows the value and not the key cannot make the token.
    assert!(!format!("{:?}", detectors(1)).contains("1, 1"));
}

// Broken to see it fail: a token that was made for one value given to the next one.
#[test]
fn each_value_of_a_record_has_its_own_token() {
    let addresses: Vec<_> = (0..12).map(|n| format!("a{n}@example.com")).collect();
    let json = serde_json::to_string(&[&addresses[..], &addresses[..]].concat()).unwrap();
    let record = format!("{{\"auditID\":\"a\",\"verb\":\"get\",\"sourceIPs\":{json}}}");
    let mut event = k8s::decode(record.as_bytes(), &context()).remove(0).unwrap();
    detectors(1).apply(&mut event);
    let tokens: BTreeSet<_> = event.identity.addresses[..12].iter().collect();
    assert_eq!(tokens.len(), 12);
    assert_eq!(event.identity.addresses[..12], event.identity.addresses[12..]);
    let record: serde_json::Value = serde_json::from_slice(&event.body.record).unwrap();
    assert_eq!(record["sourceIPs"], serde_json::json!(event.identity.addresses));
}

/// RFC 4231 is of HMAC; this is of what goes into it. The expected letters are those of Python's hmac module:
/// `hmac.new(bytes([1] * 32), b"email\0alice@example.com", "sha256").digest()[:12]`, each half byte a letter from a to
/// p.
#[test]
fn a_token_is_what_it_is_said_to_be() {
    let mut event =
        mapped::decode(b"{\"v\":\"alice@example.com\"}", &Mapping::default(), &context()).remove(0).unwrap();
    detectors(1).apply(&mut event);
    assert_eq!(event.body.record, EXPECTED.as_bytes());
}

const EXPECTED: &str = "{\"v\":\"[email:ipnclckmhfdahnmanbipfcml]\"}";

#[test]
fn a_rule_that_is_off_finds_nothing() {
    let off = Detectors::new(TokenKey::from_bytes([1; 32].into()), &[Detected::PrivateKey]);
    let record = b"{\"v\":\"alice@example.com\"}";
    let mut event = mapped::decode(record, &Mapping::default(), &context()).remove(0).unwrap();
    assert_eq!((off.apply(&mut event).counts(), event.body.record.as_slice()), (&[][..], &record[..]));
}

#[test]
fn many_finds_are_counted_and_a_record_that_grows_too_large_is_named() {
    let record =
        format!("{{{}\"z\":1}}", (0..100).map(|n| format!("\"k{n}\":\"a{n}@b.de\",")).collect::<String>());
    let mut event = mapped::decode(record.as_bytes(), &Mapping::default(), &context()).remove(0).unwrap();
    let found = detectors(1).apply(&mut event);
    assert_eq!((found.counts(), event.body.replaced.len()), (&[(Detected::Email, 100)][..], 64));
    assert!(event.body.replaced_elsewhere);
    let record = format!("{{\"v\":\"{}\"}}", "a@b.de ".repeat(140_000));
    let mut event = mapped::decode(record.as_bytes(), &Mapping::default(), &context()).remove(0).unwrap();
    detectors(1).apply(&mut event);
    assert_eq!((event.body.rejected.as_str(), event.body.record.len()), ("TOO_LARGE", 4096));
    assert!(event.body.truncated && event.body.original_size == record.len() as u64);
    event.seal(&Counting::default()).unwrap();
}

#[test]
fn real_records_lose_what_they_should_not_say_and_nothing_else() {
    let Some(lines) = real("cloudtrail.jsonl") else { return };
    let mut keys = 0;
    for line in lines.lines() {
        let mut event = DECODERS[0].1(line.as_bytes()).remove(0).unwrap();
        detectors(1).apply(&mut event);
        let count = line.matches("\"AKIA").count() + line.matches("\"ASIA").count();
        keys += count;
        let text = String::from_utf8(event.body.record.clone()).unwrap();
        assert!(!text.contains("\"AKIA") && !text.contains("\"ASIA"), "{text}");
        let raw: serde_json::Value = serde_json::from_str(line).unwrap();
        let after: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(raw["eventID"], after["eventID"]);
        assert_eq!(raw["eventTime"], after["eventTime"]);
    }
    assert!(keys > 200, "{keys}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Applied twice is applied once; JSON stays JSON; what is found is gone.
    #[test]
    fn applied_again_nothing_is_found(
        parts in vec(prop_oneof!["[a-z0-9@. -]{0,12}", Just("a@b.de".to_owned()), Just("4111111111111111".to_owned()),
            Just("Bearer abcdefghijklmnopq".to_owned()), Just("\\\"\n\u{e9}".to_owned())], 0..6)
    ) {
        let text = parts.concat();
        let record = serde_json::json!({ &text: [&text, { "x": &text }] }).to_string();
        let mut event = mapped::decode(record.as_bytes(), &Mapping::default(), &context()).remove(0).unwrap();
        detectors(1).apply(&mut event);
        serde_json::from_slice::<serde_json::Value>(&event.body.record).unwrap();
        let once = event.body.record.clone();
        let again = detectors(1).apply(&mut event);
        prop_assert_eq!(again.counts(), []);
        prop_assert_eq!(event.body.record, once);
    }

    #[test]
    fn any_record_is_looked_at(document in vec(any::<u8>(), 0..300)) {
        for (_, decode) in DECODERS {
            for decoded in decode(&document) {
                let mut event = decoded.unwrap_or_else(|rejected| rejected.into_event(&context()));
                detectors(1).apply(&mut event);
                event.seal(&Counting::default()).unwrap();
            }
        }
    }
}
