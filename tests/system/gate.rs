//! Histories that go back: an old copy of a directory put in place of a newer one. The log's gate refuses what it can see;
//! what only somebody outside can see, the client's pin refuses.

use std::fs;

use crate::support::{House, Serving};

/// Appends the lines and waits until they are published.
fn append(house: &House, lines: &str) {
    let input = house.outside("more");
    fs::write(&input, lines).unwrap();
    house.call("append", &[&input]).succeeded(&["published, and each receipt is verified"]);
}

/// Runs the log while `then` does something, then stops it.
fn while_serving<R>(house: &House, then: impl FnOnce(&Serving) -> R) -> R {
    let serving = house.serve();
    let result = then(&serving);
    serving.stop();
    result
}

#[test]
fn an_old_copy_of_the_logs_directory_is_refused_and_both_heads_are_named() {
    let house = House::new();
    let old = house.save(house.path("log"));
    while_serving(&house, |_| append(&house, "four\nfive\n"));
    let new = house.save(house.path("log"));
    old.put_back();
    for _ in 0..2 {
        house.serve_refused(
            5,
            &[
                house.origin().as_str(),
                "went back",
                "it has 3 entries (root ",
                "bound to has 5 (root ",
                "Put the newest copy back",
            ],
        );
    }
    new.put_back();
    assert_eq!(house.serve().entries, 5);
}

#[test]
fn an_old_journal_under_a_newer_checkpoint_is_refused() {
    let house = House::new();
    let old = house.save(house.log("journal"));
    while_serving(&house, |_| append(&house, "four\nfive\n"));
    old.put_back();
    house.serve_refused(5, &["went back", "it has 3 entries", "the published checkpoint has 5"]);
}

#[test]
fn an_old_copy_of_the_signers_directory_is_refused_and_both_heads_are_named() {
    let house = House::new();
    let old = house.save(house.path("signer"));
    while_serving(&house, |_| append(&house, "four\nfive\n"));
    let new = house.save(house.path("signer"));
    old.put_back();
    for _ in 0..2 {
        house.serve_refused(
            5,
            &[
                "the signer of ",
                "went back",
                "bound to size 3 (root ",
                "size 5 (root ",
                "Put the newest copy back",
            ],
        );
    }
    new.put_back();
    assert_eq!(house.serve().entries, 5);
}

#[test]
fn an_older_published_checkpoint_alone_is_caught_up_with() {
    let house = House::new();
    let old = house.save(house.log("checkpoints"));
    while_serving(&house, |_| append(&house, "four\nfive\n"));
    old.put_back();
    // A crash between signing and publishing leaves this. The client waits for no more than the next publication.
    while_serving(&house, |serving| {
        assert_eq!(serving.entries, 5);
        append(&house, "six\n");
        house.call("checkpoint", &[]).succeeded(&["\n6\n"]);
    });
}

#[test]
fn the_directories_of_two_logs_of_one_name_do_not_mix() {
    let house = House::new();
    let beginning = [house.save(house.path("log")), house.save(house.path("signer"))];
    while_serving(&house, |_| append(&house, "ours\n"));
    let ours = house.save(house.path("signer"));
    beginning.iter().for_each(|saved| saved.put_back());
    fs::remove_dir_all(house.path("state")).unwrap();
    while_serving(&house, |_| append(&house, "theirs\n"));
    ours.put_back();
    house.serve_refused(
        5,
        &["is of another history: it is bound to size 4 with root ", "shows root ", "Find out which"],
    );
}

#[test]
fn a_whole_machine_that_went_back_is_noticed_by_its_client() {
    let house = House::new();
    let old = [house.save(house.path("log")), house.save(house.path("signer"))];
    while_serving(&house, |_| append(&house, "four\nfive\n"));
    let new = [house.save(house.path("log")), house.save(house.path("signer"))];
    old.iter().for_each(|saved| saved.put_back());

    // Nobody on this machine knows better, so the log serves; whoever saw size 5 does not go along.
    while_serving(&house, |serving| {
        assert_eq!(serving.entries, 3);
        let back = ["the log went back", "size 3", "size 5", "do not trust it"];
        house.call("checkpoint", &[]).refused(1, &back);
        house.call("checkpoint", &[]).refused(1, &back);
        let receipt = house.outside("receipt");
        house
            .call("prove", &[&"0", &"--entry", &house.path("receipts/000000.entry"), &"--out", &receipt])
            .refused(1, &back);
        assert!(!receipt.exists());
    });
    // Regrown with other entries, to the same size and beyond it.
    let input = house.outside("other");
    fs::write(&input, "other four\nother five\n").unwrap();
    while_serving(&house, |_| {
        house.call("append", &[&input, &"--wait", &"durable"]).succeeded(&["indexes 3 to 4"]);
        house.call("append", &[&input]).refused(1, &["not", "history"]);
        house.call("checkpoint", &[]).refused(1, &["of size 5 and 7 are of one history"]);
    });
    new.iter().for_each(|saved| saved.put_back());
    while_serving(&house, |_| {
        house.call("checkpoint", &[]).succeeded(&["\n5\n"]);
        append(&house, "six\n");
    });
}

#[test]
fn two_histories_of_one_size_are_called_that() {
    let house = House::new();
    let old = [house.save(house.path("log")), house.save(house.path("signer"))];
    while_serving(&house, |_| append(&house, "four\nfive\n"));
    old.iter().for_each(|saved| saved.put_back());
    let pin = house.save(house.path("state"));
    fs::remove_dir_all(house.path("state")).unwrap();
    while_serving(&house, |_| append(&house, "four\nFIVE\n"));
    fs::create_dir(house.path("state")).unwrap_or_default();
    pin.put_back();
    while_serving(&house, |_| {
        house
            .call("checkpoint", &[])
            .refused(1, &["two histories: this log signed 5 entries with root ", "evidence"]);
    });
}

#[test]
fn a_pin_that_does_not_verify_is_refused_and_not_replaced() {
    let house = House::new();
    let pin = house.path(&format!("state/{}.checkpoint", house.origin().hash()));
    let sound = fs::read_to_string(&pin).unwrap();
    let serving = house.serve();
    let check = |content: &str, says: &str| {
        fs::write(&pin, content).unwrap();
        house.call("checkpoint", &[]).refused(5, &["the pinned checkpoint", pin.to_str().unwrap(), says]);
        assert_eq!(fs::read_to_string(&pin).unwrap(), content, "the evidence was overwritten");
    };
    check("", "is not valid under this policy");
    check(&sound.replacen("\n3\n", "\n2\n", 1), "the note was changed after signing");
    check(&sound[..sound.len() - 1], "is not valid under this policy");
    check(&sound.replacen(house.origin().as_str(), "elsewhere.example", 1), "elsewhere.example");
    // What cannot be read is not taken for what was never there.
    fs::remove_file(&pin).unwrap();
    fs::create_dir(&pin).unwrap();
    house.call("checkpoint", &[]).refused(5, &["cannot read the pinned checkpoint"]);
    fs::remove_dir(&pin).unwrap();
    fs::write(&pin, sound).unwrap();
    house.call("checkpoint", &[]).succeeded(&["\n3\n"]);
    serving.stop();
}
