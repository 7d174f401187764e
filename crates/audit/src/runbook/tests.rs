use std::path::Path;

use super::file::read;
use super::shelf::Shelf;
use super::{bind, document, file};

#[test]
fn ten_ship_and_are_described() {
    let shelf = Shelf::shipped().unwrap();
    assert_eq!(shelf.iter().count(), 10);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/runbooks.md");
    let described = document::shelf(&shelf);
    if std::env::var_os("EPIGRAPH_WRITE_DOCS").is_some() {
        std::fs::write(&path, &described).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == described,
        "docs/runbooks.md is not what is shipped: run this test with EPIGRAPH_WRITE_DOCS=1"
    );
}

/// A runbook that is in order.
const GOOD: &str = r#"
id = "x"
version = 1
owner = "me"
description = "Text."
roles = ["auditor"]
max_window_days = 31
max_bytes = 1
columns = ["leaf"]
[[parameter]]
name = "who"
type = "actor"
description = "who"
[[parameter]]
name = "least"
type = "integer"
min = 2
max = 9
default = "3"
description = "how many"
[[read]]
by = "actor"
of = "$who"
[filter]
result = ["denied", "failure"]
[reduce]
kind = "repeated"
least = "$least"
within = "10m"
by = "actor"
[example]
who = "ann"
"#;

#[test]
fn a_runbook_that_is_not_in_order_says_where_and_why() {
    read("x.toml", GOOD).unwrap();
    let check = |from: &str, to: &str, key: &str, why: &str| {
        assert!(GOOD.contains(from), "{from}");
        let bad = read("x.toml", &GOOD.replacen(from, to, 1)).unwrap_err();
        assert_eq!((bad.file.as_str(), bad.key.as_str()), ("x.toml", key), "{to}: {bad}");
        assert!(bad.why.contains(why), "{to}: {bad}");
    };
    check("id = \"x\"", "id = \"X\"", "id", "lower-case");
    check("id = \"x\"", "id = \"../x\"", "id", "lower-case");
    check("id = \"x\"", "", "toml", "missing field `id`");
    check("id = \"x\"", "id = \"x\"\nsql = \"select\"", "toml", "unknown field `sql`");
    check("version = 1", "version = 0", "version", "begin at 1");
    check("owner = \"me\"", "owner = \" \"", "owner", "1 to");
    check("Text.", "Text.\\u0007", "description", "control");
    check("[\"auditor\"]", "[\"root\"]", "roles", "`root` is no role");
    check("[\"auditor\"]", "[]", "roles", "nobody may run it");
    check("max_window_days = 31", "max_window_days = 4000", "max_window_days", "1 to 400");
    check("max_bytes = 1", "max_bytes = 0", "max_bytes", "reads something");
    check("[\"leaf\"]", "[\"password\"]", "columns", "no column `password`");
    check("[\"leaf\"]", "[]", "columns", "at least one");
    check("type = \"actor\"", "type = \"regex\"", "parameter.who", "a type is");
    check("type = \"actor\"", "type = \"word\"", "parameter.who", "a type is");
    check("min = 2", "min = 20", "parameter.least", "not above");
    check("min = 2", "", "parameter.least", "with `min` and `max`");
    check("default = \"3\"", "default = \"33\"", "parameter.least.default", "from 2 to 9");
    check("name = \"least\"", "name = \"who\"", "parameter.who", "two of this name");
    check("\"$least\"", "\"3\"", "parameter.least", "nothing in the plan uses it");
    check("\"$least\"", "\"$most\"", "reduce.least", "no parameter `most`");
    check("min = 2", "min = 0", "reduce", "once is not repeated");
    check("\"$least\"", "\"$who\"", "reduce.least", "not an integer");
    check("\"10m\"", "\"soon\"", "reduce", "duration");
    check("by = \"actor\"\n[example]", "by = \"shoe-size\"\n[example]", "reduce", "no such column");
    check("of = \"$who\"", "of = \"ann\"", "read.of", "names nobody");
    check("of = \"$who\"", "of = \"$least\"", "read.of", "not an actor");
    check("by = \"actor\"\nof", "by = \"body\"\nof", "toml", "unknown variant `body`");
    check("result = [", "password = [", "filter.password", "no such column");
    check("\"failure\"", "\"fail%\"", "filter.result", "not one that the column can have");
    check("result = [\"denied\", \"failure\"]", "actor = [\"ann\"]", "filter.actor", "not one");
    check("[\"denied\", \"failure\"]", "[]", "filter.result", "1 to 64");
    check("who = \"ann\"", "who = \"a*\"", "example", "no patterns");
    check("who = \"ann\"", "", "example", "`who` is missing");
    check("version = 1", "version = 1\nnewest_first = true", "newest_first", "in order");
    let long = read("x.toml", &" ".repeat(file::MAX_FILE_BYTES + 1)).unwrap_err();
    assert_eq!(long.key, "toml");
}

#[test]
fn a_folder_stands_in_place_of_what_ships_and_two_of_one_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Shelf::shipped().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("who-read.toml", &GOOD.replacen("id = \"x\"", "id = \"who-read\"", 1));
    write("notes.txt", "not a runbook");
    let shelf = shipped.clone().with_folder(folder.path()).unwrap();
    assert_eq!(shelf.iter().count(), 10);
    assert_eq!(shelf.get("who-read").unwrap().owner, "me");
    assert_ne!(shelf.get("who-read").unwrap().hash, shipped.get("who-read").unwrap().hash);
    write("z.toml", &GOOD.replacen("id = \"x\"", "id = \"who-read\"", 1));
    assert_eq!(shipped.clone().with_folder(folder.path()).unwrap_err().key, "id");
    write("z.toml", "id = 7");
    let bad = shipped.clone().with_folder(folder.path()).unwrap_err();
    assert!(bad.file.ends_with("z.toml") && bad.key == "toml", "{bad}");
    assert_eq!(shipped.with_folder(&folder.path().join("none")).unwrap_err().key, "file");
}

/// Two spellings of one run are one run.
#[test]
fn what_is_given_has_one_spelling() {
    let shelf = Shelf::shipped().unwrap();
    let book = shelf.get("repeated-failures").unwrap();
    let canonical = |given: &[(&str, &str)]| {
        let given = given.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        bind::Bound::new(&**book, &given).unwrap().canonical()
    };
    assert_eq!(canonical(&[]), canonical(&[("within", "600s"), ("by", "actor"), ("least", "5")]));
    assert_ne!(canonical(&[]), canonical(&[("least", "6")]));
}
