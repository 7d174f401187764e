//! Who is refused at the door, as the command line shows it: which side refused, why, and with which exit code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};

use crate::authority::Authority;
use crate::support::{Ended, House, SERVER, Serving};

const CLIENT: &str = "spiffe://epigraph.quickstart/epigraph/appender/quickstart";

/// A serving log whose certificates, and its client's, come from a CA that the test holds.
struct Door {
    house: House,
    ours: Authority,
    serving: Serving,
}

impl Door {
    fn new() -> Door {
        let house = House::new();
        let ours = Authority::new("ours");
        fs::write(house.path("pki/ca.pem"), &ours.pem).unwrap();
        write(house.path("pki/log/server"), &ours.issue(&[SERVER], ServerAuth));
        let serving = house.serve();
        Door { house, ours, serving }
    }

    /// Calls with this certificate and its key.
    fn call_with(&self, certificate: &[String; 2]) -> Ended {
        write(self.house.path("pki/client/client"), certificate);
        self.house.call("checkpoint", &[])
    }

    /// The right certificate still gets in.
    fn check_open(&self) {
        self.call_with(&self.ours.issue(&[CLIENT], ClientAuth)).succeeded(&["\n3\n"]);
    }
}

fn write(stem: PathBuf, [certificate, key]: &[String; 2]) {
    fs::write(stem.with_extension("pem"), certificate).unwrap();
    fs::write(stem.with_extension("key"), key).unwrap();
}

#[test]
fn a_client_from_another_ca_is_turned_away_by_the_server() {
    let door = Door::new();
    let theirs = Authority::new("theirs").issue(&[CLIENT], ClientAuth);
    door.call_with(&theirs).refused(
        4,
        &["cannot be reached", "is the client certificate from the CA that the server trusts", "client.toml"],
    );
    // Same subject as our CA, another key: the name of an issuer is no proof.
    let namesake = Authority::new("ours").issue(&[CLIENT], ClientAuth);
    door.call_with(&namesake).refused(4, &["cannot be reached", "is the client certificate from the CA"]);
    door.check_open();
}

#[test]
fn a_certificate_that_names_nobody_or_is_for_the_other_side_is_not_even_sent() {
    let door = Door::new();
    let check = |certificate: [String; 2], says: &str| {
        door.call_with(&certificate).refused(2, &["our own certificate is refused", says]);
    };
    check(door.ours.issue(&[], ClientAuth), "exactly one URI as its SPIFFE name, this one carries 0");
    check(door.ours.issue(&[CLIENT, SERVER], ClientAuth), "this one carries 2");
    check(door.ours.issue(&["https://client.example/"], ClientAuth), "the URI in the certificate is refused");
    check(
        door.ours.issue(&["spiffe://epigraph.quickstart/client"], ClientAuth),
        "has not the form spiffe://",
    );
    check(door.ours.issue(&[SERVER], ServerAuth), "lacks the extended key usage clientAuth");
    door.call_with(&door.ours.issue_until(2020, &[CLIENT], ClientAuth))
        .refused(2, &["valid", "issue a new one"]);
    door.check_open();
}

#[test]
fn a_name_of_another_trust_domain_is_no_name_here() {
    let door = Door::new();
    let name = "spiffe://elsewhere.example/epigraph/appender/quickstart";
    let foreign = door.ours.issue(&[name], ClientAuth);
    door.call_with(&foreign).refused(2, &[name, "is not of the trust domain epigraph.quickstart"]);
    // Nor has a client that believes in another domain anybody to call.
    door.house.edit(
        "client.toml",
        "trust_domain = \"epigraph.quickstart\"",
        "trust_domain = \"elsewhere.example\"",
    );
    door.call_with(&foreign).refused(2, &["there is no trust bundle", SERVER]);
    door.house.edit(
        "client.toml",
        "trust_domain = \"elsewhere.example\"",
        "trust_domain = \"epigraph.quickstart\"",
    );
    door.check_open();
}

#[test]
fn a_known_name_without_the_right_is_refused_by_name() {
    let door = Door::new();
    let nobody = "spiffe://epigraph.quickstart/epigraph/reader/nobody";
    door.call_with(&door.ours.issue(&[nobody], ClientAuth))
        .refused(3, &[nobody, "(PERMISSION_DENIED, request "]);
    // The name alone says nothing: what counts is who was granted what.
    let appender = "spiffe://epigraph.quickstart/epigraph/appender/somebody-else";
    door.call_with(&door.ours.issue(&[appender], ClientAuth))
        .refused(3, &[appender, "(PERMISSION_DENIED, request "]);
    door.check_open();
    let Door { house, ours, serving } = door;
    serving.stop();

    let reader = format!(
        "[[authorize]]\nspiffe = \"{nobody}\"\nroles = [\"reader\"]\nlogs = [\"{}\"]\n\n[[authorize]]",
        house.origin().as_str()
    );
    house.edit("log.toml", "[[authorize]]", &reader);
    let serving = house.serve();
    let door = Door { house, ours, serving };
    door.call_with(&door.ours.issue(&[nobody], ClientAuth)).succeeded(&["\n3\n"]);
    let input = door.house.path("policy");
    door.house.call("append", &[&input]).refused(3, &[nobody, "(PERMISSION_DENIED, request "]);
    door.check_open();
}

#[test]
fn a_server_that_is_not_the_one_expected_is_not_talked_to() {
    let door = Door::new();
    door.check_open();
    let other = "spiffe://epigraph.quickstart/epigraph/log/other";
    door.house.edit("client.toml", SERVER, other);
    door.house.call("checkpoint", &[]).refused(4, &["cannot be reached", SERVER, other]);
    door.house.edit("client.toml", other, SERVER);

    fs::write(door.house.path("pki/ca.pem"), Authority::new("theirs").pem).unwrap();
    door.house.call("checkpoint", &[]).refused(4, &["cannot be reached", "UnknownIssuer"]);
    fs::write(door.house.path("pki/ca.pem"), &door.ours.pem).unwrap();
    door.check_open();
}

#[test]
fn a_key_that_others_can_read_is_refused_on_both_sides_with_the_command_that_helps() {
    let door = Door::new();
    door.check_open();
    let (client, server) = (door.house.path("pki/client/client.key"), door.house.path("pki/log/server.key"));
    fs::set_permissions(&client, fs::Permissions::from_mode(0o640)).unwrap();
    door.house.call("checkpoint", &[]).refused(2, &["client.key", "chmod 600"]);
    fs::set_permissions(&client, fs::Permissions::from_mode(0o600)).unwrap();
    door.check_open();
    let Door { house, serving, .. } = door;
    serving.stop();
    fs::set_permissions(&server, fs::Permissions::from_mode(0o644)).unwrap();
    house.serve_refused(2, &["server.key", "chmod 600"]);
    fs::set_permissions(&server, fs::Permissions::from_mode(0o600)).unwrap();
    house.serve();
}

#[test]
fn a_log_does_not_start_with_a_certificate_that_no_client_would_accept() {
    let Door { house, ours, serving } = Door::new();
    serving.stop();
    let check = |certificate: [String; 2], says: &str| {
        write(house.path("pki/log/server"), &certificate);
        house.serve_refused(2, &[says]);
    };
    check(ours.issue(&[CLIENT], ClientAuth), "lacks the extended key usage serverAuth");
    check(ours.issue(&[], ServerAuth), "this one carries 0");
    check(ours.issue_until(2020, &[SERVER], ServerAuth), "issue a new one");
    let [certificate, _] = ours.issue(&[SERVER], ServerAuth);
    let [_, key] = ours.issue(&[SERVER], ServerAuth);
    check([certificate, key], "TLS");
    write(house.path("pki/log/server"), &ours.issue(&[SERVER], ServerAuth));
    house.serve();
}
