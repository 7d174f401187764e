//! A log that is set up by hand, as in production: certificates from `pki`, the commented configuration of deploy/ with no
//! more than its paths and addresses changed, `init`, `serve`. And the commands around that.

use std::fs;
use std::path::{Path, PathBuf};

use crate::signer::Door;
use crate::support::{House, epigraph};
use crate::waiting::wait_until_ready;

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

/// The commented configuration of a signer, which `init` sets up first: its vkey is what the log is made with.
#[test]
fn a_signer_set_up_by_hand_with_the_commented_configuration_signs_for_a_log_of_its_own_process() {
    let house = House::empty();
    set_up(&house);
    let spiffe = "spiffe://audit.example/epigraph";
    for (purpose, name, out) in [
        (&"--server", "signer/main", "signer-server"),
        (&"--client", "signer/main", "signer-client"),
        (&"--client", "log/production", "log-client"),
    ] {
        let (ca, name, out) = (house.path("ca"), format!("{spiffe}/{name}"), house.path(out));
        epigraph(&[&"pki", &"issue", &"--ca", &ca, purpose, &"--spiffe", &name, &"--out", &out])
            .succeeded(&[]);
    }
    let (to_log, to_signer) = (Door::new(), Door::new());
    let signer = deployed(
        "signer.toml",
        &[
            ("/var/lib/epigraph/", ""),
            ("/etc/epigraph/tls/ca.pem", "ca/ca.pem"),
            ("/etc/epigraph/tls/", ""),
            ("0.0.0.0:7431", "127.0.0.1:0"),
            ("log.audit.example:7430", &to_log.address),
            (
                "# Who may do what.",
                "[[log]]\norigin = \"audit.example/other\"\nkey = \"signer/keys/other.key\"\naddress = \"127.0.0.1:1\"\nserver = \"spiffe://audit.example/epigraph/log/other\"\n\n# Who may do what.",
            ),
        ],
    );
    fs::write(house.path("signer.toml"), signer).unwrap();
    house.edit(
        "log.toml",
        "# [tls.client]\n# certificate = \"client.pem\"\n# key = \"client.key\"",
        "[tls.client]\ncertificate = \"log-client.pem\"\nkey = \"log-client.key\"",
    );
    let embedded = "signer = { directory = \"signer\", key = \"signer/keys/log.key\" }";
    house.edit("log.toml", embedded, "");
    house.edit("log.toml", "# signer = {", "signer = {");
    house.edit("log.toml", "signer.audit.example:7431", &to_signer.address);
    house.edit("log.toml", "\"log.vkey\"", "\"signer/keys/production.vkey\"");
    let grant = format!(
        "[[authorize]]\nspiffe = \"{spiffe}/signer/main\"\nroles = [\"signer\"]\nlogs = [\"*\"]\n\n# Who may"
    );
    house.edit("log.toml", "# Who may", &grant);

    let config = house.path("signer.toml");
    let init_log: [&dyn AsRef<std::ffi::OsStr>; 4] = [&"init", &"log", &"--config", &house.path("log.toml")];
    epigraph(&init_log).refused(2, &["production.vkey"]);
    let check = |says: &str| {
        epigraph(&[&"config", &"check", &config, &"--role", &"signer"])
            .succeeded(&["audit.example/production", says]);
    };
    check("the signing key is not there yet");
    assert!(house.start("signer", "signer.toml").is_err(), "state is created by init only");
    epigraph(&[&"init", &"signer", &"--config", &config, &"--log", &"audit.example/production"])
        .succeeded(&["audit.example/production+", "from size 0"]);
    house.start("signer", "signer.toml").err().unwrap().refused(5, &["audit.example/other", "init signer"]);
    epigraph(&[&"init", &"signer", &"--config", &config]).succeeded(&["audit.example/other+"]);
    check("audit.example/other");
    let vkey = fs::read_to_string(house.path("signer/keys/production.vkey")).unwrap();
    epigraph(&init_log).succeeded(&[vkey.trim()]);
    fs::write(house.path("policy"), format!("log {}\nquorum none\n", vkey.trim())).unwrap();

    let log = house.serve();
    to_log.leads_to(&log);
    let Ok(signer) = house.start("signer", "signer.toml") else { panic!("the signer did not start") };
    to_signer.leads_to(&signer);
    wait_until_ready(&log);
    fs::write(house.outside("lines"), "by hand\n").unwrap();
    house.call("append", &[&house.outside("lines")]).succeeded(&["published, and each receipt is verified"]);
    // The other log's process is not there: nothing is signed for it, and nobody else waits.
    assert!(signer.messages().contains("waiting_for=the log at 127.0.0.1:1"), "{}", signer.messages());
    log.stop();
    signer.stop();
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
