//! `epigraph hammer`: what it says that it appended is what the log then holds.

use std::fs;

use serde_json::Value;

use crate::support::House;

fn number(object: &Value, field: &str) -> u64 {
    object[field].as_u64().unwrap_or_else(|| panic!("{field} of {object}"))
}

#[test]
fn a_count_is_appended_exactly_and_the_numbers_add_up() {
    let house = House::new();
    let serving = house.serve();
    let mut entries = 3;
    // 200 is no multiple of 7, so the last call is a small one.
    for (batch, calls, wait) in [("1", 200, "durable"), ("7", 29, "published")] {
        let ended = house.call(
            "hammer",
            &[&"--json", &"--count", &"200", &"--batch", &batch, &"--wait", &wait, &"--connections", &"2"],
        );
        let object = ended.succeeded(&[]).object();
        entries += 200;
        assert_eq!(number(&object, "appended"), 200, "{object}");
        assert_eq!(number(&object, "calls"), calls, "{object}");
        assert_eq!((number(&object, "failed"), number(&object, "bytes")), (0, 200 * 256), "{object}");
        assert_eq!((number(&object, "unpublished"), &object["errors"]), (0, &serde_json::json!({})));
        let latency = |name: &str| number(&object["latency_us"], name);
        let ascending = ["p50", "p90", "p99", "p99.9", "max"].map(latency);
        assert!(ascending.is_sorted() && ascending[0] > 0, "{object}");
        let documentation = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
        let table = documentation.split("\n## ").find(|section| section.starts_with("hammer\n")).unwrap();
        for key in object.as_object().unwrap().keys() {
            assert!(table.contains(&format!("`{key}`")), "{key} is not documented");
        }
    }
    serving.stop();
    let serving = house.serve();
    assert_eq!(serving.entries, entries);
}

#[test]
fn it_says_that_its_entries_stay_and_prints_a_table() {
    let house = House::new();
    let serving = house.serve();
    let ended = house.call("hammer", &[&"--count", &"5", &"--size", &"0"]);
    ended.succeeded(&["they stay for ever", "5 in ", "5 appended, ", "p99.9"]);
    serving.stop();
}

#[test]
fn a_log_that_cannot_be_reached_is_a_failure_and_too_large_a_batch_is_refused_before_any_call() {
    let house = House::new();
    house.call("hammer", &[&"--count", &"1"]).refused(4, &["cannot be reached", "is the log running"]);
    house
        .call("hammer", &[&"--batch", &"4096", &"--size", &"65535"])
        .refused(2, &["too much for one call", "lower --batch or --size"]);
    house.call("hammer", &[&"--count", &"1", &"--duration", &"1"]).refused_by_usage("--duration");
    house.call("hammer", &[&"--batch", &"4097"]).refused_by_usage("4097");
}
