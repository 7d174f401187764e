//! A log that is set up by hand, as in production: certificates from `pki`, the commented configuration of deploy/ with no
//! more than its paths and addresses changed, `init`, `serve`. And the commands around that.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{House, epigraph};

/// A file of deploy/ with other values.
fn deployed(name: &str, changes: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    changes.iter().fold(fs::read_to_string(path).unwrap(), |text, (from, to)| {
        assert!(text.contains(from), "deploy/{name} has no {from:?}");
        text.replace(from, to)
    })
}

/// The CA, a server's and a client's certificate, and both configurations.
fn set_up(house: &House) {
    let pki = |args: &[&dyn AsRef<std::ffi::OsStr>]| {
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"pki"];
        all.extend(args);
        epigraph(&all).succeeded(&[]);
    };
    let (ca, spiffe) = (house.path("ca"), "spiffe://audit.example/epigraph");
    pki(&[&"ca", &"--dir", &ca]);
    let (server, client) = (format!("{spiffe}/log/production"), format!("{spiffe}/appender/web"));
    let (server_stem, client_stem) = (house.path("server"), house.path("client"));
    pki(&[
        &"issue",
        &"--ca",
        &ca,
        &"--server",
        &"--spiffe",
        &server,
        &"--dns",
        &"localhost",
        &"--ip",
        &"127.0.0.1",
        &"--out",
        &server_stem,
    ]);
    pki(&[&"issue", &"--ca", &ca, &"--client", &"--spiffe", &client, &"--out", &client_stem]);
    let log = deployed(
        "log.toml",
        &[
            ("/var/lib/epigraph/", ""),
            ("/etc/epigraph/tls/ca.pem", "ca/ca.pem"),
            ("/etc/epigraph/tls/", ""),
            ("0.0.0.0:7430", "127.0.0.1:0"),
            ("127.0.0.1:9430", "127.0.0.1:0"),
            ("segment_mib = 64", "segment_mib = 16"),
        ],
    );
    fs::write(house.path("log.toml"), log).unwrap();
    let client = deployed("client.toml", &[("\"ca.pem\"", "\"ca/ca.pem\"")]);
    fs::write(house.path("client.toml"), client).unwrap();
}

#[test]
fn a_log_set_up_by_hand_with_the_commented_configuration_takes_entries_and_gives_receipts() {
    let house = House::empty();
    set_up(&house);
    let config = house.path("log.toml");
    let check = |says: &str| {
        epigraph(&[&"config", &"check", &config]).succeeded(&["audit.example/production", says]);
    };
    check("the signing key is not there yet");
    house.serve_refused(5, &["init"]);
    epigraph(&[&"init", &"log", &"--config", &config]).succeeded(&["audit.example/production+"]);
    check("on 127.0.0.1:0\n");
    let vkey = fs::read_to_string(house.path("signer/keys/log.vkey")).unwrap();
    fs::write(house.path("policy"), format!("log {}\nquorum none\n", vkey.trim())).unwrap();

    let serving = house.serve();
    fs::write(house.outside("lines"), "by hand\n").unwrap();
    let receipts = house.path("receipts");
    house.call("append", &[&house.outside("lines"), &"--receipts", &receipts]).succeeded(&["indexes 0 to 0"]);
    epigraph(&[&"verify", &house.receipt(0), &"--vkey", &vkey.trim()]).succeeded(&["entry 0 is in the log"]);
    serving.stop();

    // Renewed certificates have other keys and the same names: the client still knows the server, and the server it.
    let before = fs::read(house.path("server.key")).unwrap();
    for certificate in ["server.pem", "client.pem"] {
        epigraph(&[&"pki", &"renew", &"--ca", &house.path("ca"), &house.path(certificate)])
            .succeeded(&["renewed for"]);
    }
    assert_ne!(fs::read(house.path("server.key")).unwrap(), before);
    let _serving = house.serve();
    house.call("checkpoint", &[]).succeeded(&["audit.example/production\n1\n"]);
}

#[test]
fn keygen_makes_a_key_that_init_takes_and_never_overwrites_one() {
    let house = House::empty();
    set_up(&house);
    let stem = house.path("signer/keys/log");
    fs::create_dir_all(house.path("signer/keys")).unwrap();
    let made = epigraph(&[&"keygen", &"audit.example/production", &"--out", &stem]);
    let vkey = made.succeeded(&["audit.example/production+"]).out.trim().to_owned();
    let key = fs::read(house.path("signer/keys/log.key")).unwrap();
    epigraph(&[&"keygen", &"audit.example/production", &"--out", &stem]).refused(2, &["log.key", "exists"]);
    assert_eq!(fs::read(house.path("signer/keys/log.key")).unwrap(), key);
    epigraph(&[&"init", &"log", &"--config", &house.path("log.toml")]).succeeded(&[&vkey]);
    assert_eq!(fs::read(house.path("signer/keys/log.key")).unwrap(), key);
    epigraph(&[&"keygen", &"two words", &"--out", &house.path("x")]).refused_by_usage("two words");
}

#[test]
fn what_pki_cannot_do_it_says() {
    let house = House::empty();
    set_up(&house);
    let (ca, out) = (house.path("ca"), house.path("other"));
    let name = "spiffe://audit.example/epigraph/appender/web";
    epigraph(&[&"pki", &"ca", &"--dir", &ca]).refused(2, &["ca.pem", "exists"]);
    epigraph(&[&"pki", &"issue", &"--ca", &out, &"--client", &"--spiffe", &name, &"--out", &out])
        .refused(2, &["ca.key"]);
    epigraph(&[
        &"pki",
        &"issue",
        &"--ca",
        &ca,
        &"--client",
        &"--spiffe",
        &name,
        &"--out",
        &house.path("client"),
    ])
    .refused(2, &["client.key", "exists"]);
    epigraph(&[&"pki", &"renew", &"--ca", &ca, &house.path("log.toml")]).refused(2, &["no certificate"]);
    epigraph(&[&"pki", &"issue", &"--ca", &ca, &"--client", &"--spiffe", &"https://x", &"--out", &out])
        .refused_by_usage("--spiffe");
    epigraph(&[&"pki", &"issue", &"--ca", &ca, &"--spiffe", &name, &"--out", &out])
        .refused_by_usage("--server");
}

#[test]
fn config_check_finds_what_serve_would_refuse() {
    let house = House::new();
    let config: PathBuf = house.path("log.toml");
    epigraph(&[&"config", &"check", &config]).succeeded(&[house.origin().as_str()]);
    house.edit("log.toml", "[listen]", "[listen]\nbacklog = 3");
    epigraph(&[&"config", &"check", &config]).refused(2, &["backlog", "unknown field"]);
    house.edit("log.toml", "\nbacklog = 3", "");
    house.edit("log.toml", "pki/log/server.pem", "pki/client/client.pem");
    epigraph(&[&"config", &"check", &config]).refused(2, &["serverAuth"]);
}

#[test]
fn completions_and_manual_pages_come_from_the_command_line_itself() {
    let house = House::empty();
    for shell in ["bash", "zsh", "fish"] {
        epigraph(&[&"completions", &shell]).succeeded(&["epigraph", "quickstart"]);
    }
    let pages = house.path("man");
    epigraph(&[&"man", &"--out", &pages]).succeeded(&["manual pages"]);
    for page in ["epigraph.1", "epigraph-verify.1", "epigraph-serve-log.1"] {
        assert!(fs::read_to_string(pages.join(page)).unwrap().contains(".TH"), "{page}");
    }
}
