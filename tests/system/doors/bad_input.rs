//! What no door may be harmed by, and what is said of it: each is refused by name, or kept in the quarantine, and the next good event
//! is taken.

use std::io::Write;

use epigraph_event::v1::TimeFrom;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::senders::{Lines, collect, export_all, get, log_record, post, say, try_export};
use super::{
    Collecting, Found, JSON, STRUCTURED, cloud_event, deliver, event_list, issue, k8s_event, plain, tls,
};
use crate::collect::Audited;
use crate::full_disk::Disk;
use crate::support::block_on;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packing = GzEncoder::new(Vec::new(), Compression::best());
    packing.write_all(bytes).unwrap();
    packing.finish().unwrap()
}

const PACKED: (&str, &str) = ("Content-Encoding", "gzip");

/// The rows of bad input, at the doors of HTTP. Broken to see it fail: no limit on what is unpacked; no limit on a body.
#[test]
fn hostile_bodies_are_refused_by_name_and_harm_nobody() {
    let audited = Audited::new();
    let tables = plain("cluster", "k8s-webhook") + &plain("shop", "cloudevents");
    let collecting = Collecting::start(&audited, &tables);
    let (cluster, shop) = (collecting.door("cluster"), collecting.door("shop"));
    let list = event_list(&[k8s_event("good"), json!({ "kind": 0 }), k8s_event("better")]);

    post(cluster, &[JSON], b"no json").refuses(400, "NOT_JSON");
    post(cluster, &[JSON], &list.as_bytes()[..list.len() / 2]).refuses(400, "NOT_JSON");
    post(cluster, &[JSON], "[".repeat(100_000).as_bytes()).refuses(400, "NOT_JSON");
    post(shop, &[STRUCTURED], "[".repeat(100_000).as_bytes()).refuses(400, "NOT_JSON");
    // 64 MiB of zeros in 64 KiB.
    post(cluster, &[JSON, PACKED], &gzip(&vec![0; 64 << 20])).refuses(413, "BODY_TOO_LARGE");
    post(cluster, &[JSON, PACKED], b"no gzip").refuses(400, "NOT_GZIP");
    post(cluster, &[JSON], &vec![b' '; 17 << 20]).refuses(413, "BODY_TOO_LARGE");
    post(cluster, &[JSON, ("Content-Encoding", "br")], b"x").refuses(415, "CONTENT_ENCODING");
    post(shop, &[("Content-Type", "text/plain")], b"x").refuses(415, "CONTENT_TYPE");
    let get = "GET /events HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n".to_owned();
    let refused = say(cluster, get, b"");
    refused.refuses(405, "METHOD");
    assert!(refused.head.contains("allow: post"), "{}", refused.head);
    let endless = format!("POST / HTTP/1.1\r\nHost: door\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    assert_eq!(say(cluster, endless, b"").status, 431);

    // One that is bad does not spoil the others.
    let answer = post(cluster, &[JSON, PACKED], &gzip(list.as_bytes()));
    answer.is(200, 2);
    assert_eq!(serde_json::from_str::<Value>(&answer.body).unwrap()["rejected"], 1);
    let sized = |id: &str, size: usize| {
        let mut event = cloud_event(id);
        event["data"] = "x".repeat(size).into();
        event.to_string()
    };
    post(shop, &[STRUCTURED], sized("large", 300 << 10).as_bytes()).is(200, 1);
    post(shop, &[STRUCTURED], sized("huge", 2 << 20).as_bytes()).refuses(400, "TOO_LARGE");
    assert_eq!(collecting.metric("epigraph_door_rejected_total", "why=\"BODY_TOO_LARGE\""), 2);
    collecting.stop();
    deliver(&audited);
    // Three good ones, and six that are kept in the quarantine.
    assert_eq!(audited.status()["events"], 9);
    block_on(async {
        let found = Found::of(&audited);
        found.one("good/ResponseComplete").await;
        found.one("better/ResponseComplete").await;
        assert_eq!(found.one("large").await.body.unwrap().record, sized("large", 300 << 10).as_bytes());
    });
}

/// Broken to see it fail: no partial success.
#[test]
fn records_of_otlp_that_are_refused_are_counted_to_their_sender() {
    let audited = Audited::new();
    let collecting = Collecting::start(&audited, &plain("otel", "otlp"));
    let door = collecting.door("otel");
    let mut twice = log_record("twice", "a");
    twice.attributes.push(twice.attributes[0].clone());
    let partial =
        block_on(export_all(door, vec![log_record("one", "a"), twice.clone(), log_record("two", "a")]))
            .unwrap();
    assert_eq!(partial.rejected_log_records, 1);
    assert!(partial.error_message.contains("DUPLICATE_KEY"), "{}", partial.error_message);
    let alone = block_on(try_export(door, vec![twice])).unwrap_err();
    assert_eq!(alone.code(), tonic::Code::InvalidArgument, "{alone}");
    // Six megabytes that gzip makes a few thousand of: the limit is on what is unpacked.
    let bomb = (0..6).map(|n| log_record(&format!("bomb-{n}"), &"x".repeat(1 << 20))).collect();
    assert!(block_on(try_export(door, bomb)).is_err());
    assert_eq!(block_on(export_all(door, vec![log_record("three", "a")])), None);
    assert_eq!(block_on(export_all(door, Vec::new())), None);
    collecting.stop();
    deliver(&audited);
    assert_eq!(audited.status()["events"], 5);
}

/// A line of 64 MiB, a frame that lies about its length, no syslog at all, a sender that hangs up within a message.
#[test]
fn hostile_streams_of_syslog_are_named_and_harm_nobody() {
    let audited = Audited::new();
    let collecting = Collecting::start(&audited, &plain("hosts", "syslog"));
    let door = collecting.door("hosts");
    let good = "<38>1 2026-11-01T12:00:00Z host sshd 7 - - good\n";
    let mut line = Lines::connect(door);
    let piece = vec![b'x'; 1 << 20];
    (0..64).for_each(|_| line.send(&piece));
    line.send(format!("\n{good}").as_bytes());
    let mut liar = Lines::connect(door);
    liar.try_send(b"999999999999 <38>1 - - - - - -");
    let mut half = Lines::connect(door);
    half.send(b"80 <38>1 - - - ");
    drop(half);
    let mut other = Lines::connect(door);
    other.send(b"<38>Nov  1 12:00:00 host sshd: the old form\n");
    collecting.wait_for("epigraph_door_rejected_total", "why=\"TOO_LARGE\"", 1);
    collecting.wait_for("epigraph_door_rejected_total", "why=\"INCOMPLETE\"", 1);
    collecting.wait_for("epigraph_door_rejected_total", "why=\"NOT_SYSLOG\"", 2);
    collecting.wait_for("epigraph_door_events_total", "hosts", 1);
    collecting.stop();
    deliver(&audited);
    assert_eq!(audited.status()["events"], 4);
}

/// F3: a source that never stops, and a service that is away: the spool fills, senders are pushed back in the words of their protocols
/// and lose nothing, and the collector takes more as soon as something was delivered. Broken to see it fail: a full spool that
/// drops what is pushed and answers 200.
#[test]
fn a_full_spool_pushes_back_and_drops_nothing() {
    let mut audited = Audited::new();
    audited.house.edit("collector.toml", "directory", "spool_mib = 16\ndirectory");
    audited.stop_service();
    let tables = plain("shop", "cloudevents") + &plain("otel", "otlp");
    let collecting = Collecting::start(&audited, &tables);
    let event = |n: usize| {
        let mut event = cloud_event(&format!("ce-{n}"));
        event["data"] = "x".repeat(900 << 10).into();
        event.to_string()
    };
    let mut taken = 0;
    let full = loop {
        let answer = post(collecting.door("shop"), &[STRUCTURED], event(taken).as_bytes());
        if answer.status != 200 {
            break answer;
        }
        taken += 1;
        assert!(taken < 100, "a spool of 16 MiB took {taken} events of 900 KiB");
    };
    full.refuses(429, "FULL");
    assert!(full.head.contains("retry-after: "), "{}", full.head);
    let refused = block_on(try_export(collecting.door("otel"), vec![log_record("one", "a")])).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let delay = tonic_types::StatusExt::get_details_retry_info(&refused).unwrap().retry_delay;
    assert!(delay.is_some());
    assert!(collecting.metric("epigraph_door_pushed_back_total", "shop") >= 1);
    assert_eq!(get(&collecting.metrics, "/readyz").status, 503);
    collecting.kill();
    audited.serve();
    let collecting = Collecting::start(&audited, &tables);
    // What was refused is sent again until it is taken.
    while post(collecting.door("shop"), &[STRUCTURED], event(taken).as_bytes()).status != 200 {}
    collecting.stop();
    deliver(&audited);
    assert_eq!(audited.status()["events"], taken as u64 + 1);
    assert_eq!(audited.status()["gap_count"], 0);
}

/// The spool on a volume that fills up: what is pushed is refused as not taken or not known to be, and once there is room everything
/// that was answered with yes is there. Broken to see it fail: answered while the batch waits for space.
#[test]
fn a_full_disk_under_the_spool_is_told_and_passes() {
    let mut audited = Audited::new();
    let Some(disk) = Disk::mount(audited.house.outside("disk"), 36) else { return };
    let moved = std::process::Command::new("cp")
        .arg("-a")
        .args([audited.house.path("collector"), disk.0.join("collector")])
        .status()
        .unwrap();
    assert!(moved.success());
    let there = format!("directory = \"{}\"", disk.0.join("collector").display());
    audited.house.edit("collector.toml", "directory = \"collector\"", &there);
    audited.stop_service();
    let collecting = Collecting::start(&audited, &plain("shop", "cloudevents"));
    let event = |n: usize| {
        let mut event = cloud_event(&format!("ce-{n}"));
        event["data"] = "x".repeat(900 << 10).into();
        event.to_string()
    };
    let mut taken = 0;
    let full = loop {
        let answer = post(collecting.door("shop"), &[STRUCTURED], event(taken).as_bytes());
        if answer.status != 200 {
            break answer;
        }
        taken += 1;
        assert!(taken < 60, "36 MiB took {taken} events of 900 KiB");
    };
    // This one may be durable later; the next one is not taken.
    full.refuses(503, "LATE");
    assert!(full.head.contains("retry-after: "), "{}", full.head);
    post(collecting.door("shop"), &[STRUCTURED], event(taken).as_bytes()).refuses(429, "FULL");
    disk.grow(200);
    while post(collecting.door("shop"), &[STRUCTURED], event(taken + 1).as_bytes()).status != 200 {}
    collecting.stop();
    audited.serve();
    // The service has another port now.
    Collecting::start(&audited, "").stop();
    deliver(&audited);
    // What was not known to be kept was.
    assert_eq!(audited.status()["events"], taken as u64 + 2);
    block_on(async {
        let found = Found::of(&audited);
        for n in [0, taken, taken + 1] {
            found.one(&format!("ce-{n}")).await;
        }
    });
}

/// F8 and the sizes, through every door: 300 KiB are kept whole, 2 MiB are refused and named and leave the next ones alone; a time that is years
/// ahead is kept as its source said it and is a trouble of the source, and one that is missing or without an offset is said to be none. Broken to
/// see it fail: a time without an offset taken for UTC.
#[test]
fn sizes_and_times_are_judged_alike_at_every_door() {
    const OFF: &str = "2099-11-01T12:00:00Z";
    const LOCAL: &str = "2026-11-01T12:00:00";
    let audited = Audited::new();
    issue(&audited, &["shop"]);
    let tables = plain("cluster", "k8s-webhook")
        + &plain("shop", "cloudevents")
        + &plain("otel", "otlp")
        + &plain("hosts", "syslog")
        + &plain("apps", "native")
        + &tls("spiffe://epigraph.quickstart/epigraph/sender/*")
        + "[door.mapping]\nevent_id = \"/id\"\naction = \"/did\"\ntime = \"/at\"\n";
    let collecting = Collecting::start(&audited, &tables);
    let text = |size: usize| "x".repeat(size);
    let (large, huge) = (text(300 << 10), text(2 << 20));

    let k8s = |id: &str, change: &dyn Fn(&mut Value)| {
        let mut event = k8s_event(id);
        change(&mut event);
        post(collecting.door("cluster"), &[JSON], event_list(&[event]).as_bytes())
    };
    k8s("k-large", &|event| event["requestObject"] = json!(large)).is(200, 1);
    k8s("k-huge", &|event| event["requestObject"] = json!(huge)).refuses(400, "TOO_LARGE");
    k8s("k-off", &|event| event["stageTimestamp"] = OFF.into()).is(200, 1);
    k8s("k-none", &|event| drop(event.as_object_mut().unwrap().remove("stageTimestamp"))).is(200, 1);
    k8s("k-local", &|event| event["stageTimestamp"] = LOCAL.into()).is(200, 1);

    let cloud = |id: &str, key: &str, value: &str| {
        let mut event = cloud_event(id);
        event[key] = value.into();
        post(collecting.door("shop"), &[STRUCTURED], event.to_string().as_bytes())
    };
    cloud("c-large", "data", &large).is(200, 1);
    cloud("c-huge", "data", &huge).refuses(400, "TOO_LARGE");
    cloud("c-off", "time", OFF).is(200, 1);
    cloud("c-none", "subject", "a").is(200, 1);
    cloud("c-local", "time", LOCAL).is(200, 1);

    let record = |id: &str, name: &str, nanos: Option<u64>| {
        let mut record = log_record(id, name);
        record.time_unix_nano = nanos.unwrap_or(0);
        record
    };
    let now = Some(1_793_534_400_000_000_000);
    let partial = block_on(export_all(
        collecting.door("otel"),
        vec![record("o-large", &large, now), record("o-huge", &huge, now)],
    ))
    .unwrap();
    assert!(partial.rejected_log_records == 1 && partial.error_message.contains("TOO_LARGE"), "{partial:?}");
    let off = Some(4_097_217_600_000_000_000);
    let times = vec![record("o-off", "a", off), record("o-none", "a", None)];
    assert_eq!(block_on(export_all(collecting.door("otel"), times)), None);

    let native: Vec<String> = [
        ("n-large", json!({ "pad": large })),
        ("n-huge", json!({ "pad": huge })),
        ("n-off", json!({ "at": OFF })),
        ("n-none", json!({})),
        ("n-local", json!({ "at": LOCAL })),
    ]
    .into_iter()
    .map(|(id, mut event)| {
        (event["id"], event["did"]) = (id.into(), "pay".into());
        event.to_string()
    })
    .collect();
    let answers =
        block_on(collect(collecting.door("apps"), &audited.house, "shop", native.chunks(5))).unwrap();
    assert_eq!((answers[0].events, answers[0].rejected, answers[0].why.as_str()), (4, 1, "TOO_LARGE"));

    let mut hosts = Lines::connect(collecting.door("hosts"));
    let syslog = [
        ("2026-11-01T12:00:00Z", large.as_str()),
        ("2026-11-01T12:00:00Z", &huge),
        (OFF, "off"),
        ("-", "none"),
        (LOCAL, "local"),
    ];
    syslog
        .iter()
        .for_each(|(time, text)| hosts.send(format!("<38>1 {time} h sshd 7 - - {text}\n").as_bytes()));
    collecting.wait_for("epigraph_door_events_total", "hosts", 4);
    collecting.wait_for("epigraph_door_rejected_total", "door=\"hosts\"", 1);
    collecting.stop();
    deliver(&audited);

    let status = audited.status();
    // Of each door four and the one in the quarantine; records of OTLP count nanoseconds, which are never local.
    assert_eq!((status["events"].as_u64(), status["gap_count"].as_u64()), (Some(24), Some(0)), "{status}");
    let skewed =
        status["troubles"].as_array().unwrap().iter().find(|trouble| trouble["kind"] == "clock-skew");
    assert!(skewed.is_some(), "{status}");
    block_on(async {
        let found = Found::of(&audited);
        for door in ["k", "c", "o", "n"] {
            let one = async |which: &str| {
                let stage = if door == "k" { "/ResponseComplete" } else { "" };
                found.one(&format!("{door}-{which}{stage}")).await
            };
            let kept = one("large").await.body.unwrap().record;
            assert!(
                kept.len() > large.len() && kept.windows(99).any(|part| *part == large.as_bytes()[..99]),
                "{door}"
            );
            let off = one("off").await.core.unwrap();
            assert_eq!(
                (off.occurred_from(), off.occurred_at_ns),
                (TimeFrom::Source, 4_097_217_600_000_000_000),
                "{door}"
            );
            assert_eq!(one("none").await.core.unwrap().occurred_from(), TimeFrom::Missing, "{door}");
            if door != "o" {
                assert_eq!(
                    one("local").await.core.unwrap().occurred_from(),
                    TimeFrom::WithoutOffset,
                    "{door}"
                );
            }
        }
        let mut of_hosts = Vec::new();
        for sequence in 19..24 {
            of_hosts.push(found.nth(sequence).await.core.unwrap().occurred_from());
        }
        of_hosts.sort();
        let expected = [TimeFrom::Source, TimeFrom::Source, TimeFrom::Missing, TimeFrom::WithoutOffset];
        assert!(expected.iter().all(|from| of_hosts.contains(from)), "{of_hosts:?}");
    });
}
