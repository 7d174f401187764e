//! The stored tree of a running log: it may be lost or damaged, and nobody is told anything wrong.

use std::fs;

use crate::support::{House, overwrite};

#[track_caller]
fn says(messages: &str, text: &str) {
    assert!(messages.contains(text), "{text:?} is missing: {messages}");
}

/// B1, B6, P3: the preflight child fails on the damaged file, or sled forgets; in either case the log proves what it
/// proved before. Fails if `serve` opens the directory without a preflight and trusts it.
#[test]
fn a_damaged_or_deleted_tree_is_built_again_and_proves_the_same() {
    let lines: Vec<String> = (0..3000).map(|n| format!("entry {n}")).collect();
    let house = House::with_lines(lines.join("\n").as_bytes());
    let tree = house.log("tree");
    let serve_and_prove = || {
        let serving = house.serve();
        assert_eq!(serving.entries, 3000);
        for index in [0, 255, 2999] {
            let (entry, out) = (house.outside("entry"), house.outside("receipt"));
            fs::write(&entry, &lines[index]).unwrap();
            let index = index.to_string();
            house.call("prove", &[&index, &"--entry", &entry, &"--out", &out]).succeeded(&[]);
        }
        let messages = serving.messages();
        serving.stop();
        messages
    };
    serve_and_prove();
    assert!(tree.join("db").exists());
    says(&serve_and_prove(), "the stored tree is open entries=2816 of=3000");

    fs::remove_dir_all(&tree).unwrap();
    says(&serve_and_prove(), "the stored tree is open entries=0 of=3000");

    // What a killed process leaves (C10) is no damage.
    fs::write(tree.join("snap.0000000000000100.generating"), b"half a snapshot").unwrap();
    says(&serve_and_prove(), "the stored tree is open entries=2816 of=3000");

    let length = fs::metadata(tree.join("db")).unwrap().len();
    for offset in (0..length).step_by(4096) {
        overwrite(&tree.join("db"), offset, &[0x5a; 64]);
    }
    let messages = serve_and_prove();
    assert!(
        messages.contains("the stored tree was moved aside; it is rebuilt from the journal"),
        "{messages}"
    );
    assert!(house.log("tree.suspect-1").join("db").exists());
    says(&serve_and_prove(), "the stored tree is open entries=2816 of=3000");
}
