//! `epigraph fsck --role monitor`, and what is done about what it says.

use std::fs;

use serde_json::json;

use crate::monitor::{audited, configure, house, init, monitor, serve, webhook};
use crate::support::{Ended, House, block_on, epigraph, flip};

fn fsck(house: &House, more: &[&str]) -> Ended {
    let config = house.path("m1.toml");
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> =
        vec![&"fsck", &"--role", &"monitor", &"--config", &config];
    args.extend(more.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
    epigraph(&args)
}

/// R3, as docs/operations.md has it: damage is named, an older copy goes on, and a monitor whose state is gone keeps its key. Seen to fail with
/// the queue not read, and with a monitor's exit code always 0.
#[test]
fn a_damaged_monitor_is_named_and_an_older_copy_goes_on() {
    let house = house();
    let log = house.serve();
    configure(&house, &log, &webhook(&house, 9));
    epigraph(&[&"fsck", &"--role", &"monitor", &"--config", &house.path("m1.toml")]).refused(5, &[]);
    init(&house).succeeded(&[]);
    fsck(&house, &[]).succeeded(&["clean", "an older copy"]);
    let serving = serve(&house);
    fsck(&house, &[]).refused(5, &[]);
    block_on(async { audited(&monitor(&house, &serving, "pki/o/client"), 3).await });
    serving.stop();

    let object = fsck(&house, &["--json"]).succeeded(&[]).object();
    assert_eq!((&object["clean"], &object["findings"]), (&json!(true), &json!([])));
    let log_of = &object["logs"][0];
    assert_eq!((&log_of["size"], &log_of["audited_size"]), (&json!(3), &json!(3)), "{object}");
    let documentation = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let table = documentation.split("\n## ").find(|section| section.starts_with("fsck\n")).unwrap();
    for key in object.as_object().unwrap().keys().chain(log_of.as_object().unwrap().keys()) {
        assert!(table.contains(&format!("`{key}`")), "{key} is not documented");
    }

    // One bit in the book, and a message that is none.
    let key = fs::read(house.path("m1/keys/monitor.key")).unwrap();
    flip(&house.path("m1/state/book"), 60);
    fs::write(house.path("m1/queue/hook/00000000000000000007.page"), "junk").unwrap();
    let damaged = fsck(&house, &[]);
    damaged.refused(5, &["nothing was changed"]);
    for says in ["state/book", "checksum", "00000000000000000007.page"] {
        assert!(damaged.out.contains(says), "{says}: {damaged}");
    }

    // Its state is gone, its key is not.
    fs::remove_dir_all(house.path("m1")).unwrap();
    init(&house).succeeded(&[]);
    fs::write(house.path("m1/keys/monitor.key"), key).unwrap();
    fsck(&house, &[]).succeeded(&["clean"]);
    let serving = serve(&house);
    block_on(async { audited(&monitor(&house, &serving, "pki/o/client"), 3).await });
    serving.stop();
    // No log has the name of drills.
    let name = format!("origin = \"{}\"", house.origin());
    house.edit("m1.toml", &name, "origin = \"epigraph.drill\"");
    epigraph(&[&"config", &"check", &"--role", &"monitor", &house.path("m1.toml")])
        .refused(2, &["epigraph.drill is what monitors call"]);
}
