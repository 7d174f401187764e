//! The files of `[tls]` that are replaced while a log serves, and who is let in no more from then on (RELIABILITY T2, T4, T5).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use epigraph_core::{Clock, UnixMillis};
use epigraph_rpc::channel::{Channel, channel};
use epigraph_rpc::v1::AppendRequest;
use epigraph_rpc::v1::log_service_client::LogServiceClient;
use epigraph_rpc::{ClientTls, Credentials, TrustBundle, Usage};
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};

use crate::authority::Authority;
use crate::metrics::{get, sample};
use crate::support::{DOMAIN, House, SERVER, Serving, block_on, signal};

/// Nothing that is tested takes so long; a wait that would never end fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls that are answered between one replacement and the next.
const BETWEEN: usize = 30;

const ONE: &str = "spiffe://epigraph.quickstart/epigraph/appender/quickstart";
const TWO: &str = "spiffe://epigraph.quickstart/epigraph/appender/two";
const PARTNER: &str = "partner.example";
const THEIRS: &str = "spiffe://partner.example/epigraph/appender/three";

/// 2040-01-01T00:00:00Z: what the tests issue is valid then, and their clients look at nothing else.
struct Then;

impl Clock for Then {
    fn now(&self) -> UnixMillis {
        UnixMillis(2_208_988_800_000)
    }
}

/// A log whose CA the test holds, with these lines in its `[tls]` table.
struct Door {
    house: House,
    ours: Authority,
}

impl Door {
    fn new(lines: &str) -> Door {
        let house = House::new();
        let ours = Authority::new("ours");
        let door = Door { house, ours };
        door.put("pki/ca.pem", &door.ours.pem);
        door.own(&door.ours);
        let domain = format!("trust_domain = \"{DOMAIN}\"\n");
        door.house.edit("log.toml", &domain, &format!("{domain}reload_interval_ms = 100\n{lines}"));
        door.house.edit("log.toml", "roles = [\"appender\", \"reader\"]", "roles = [\"appender\"]");
        for name in [TWO, THEIRS] {
            let grant = format!(
                "[[authorize]]\nspiffe = \"{name}\"\nroles = [\"appender\"]\nlogs = [\"*\"]\n\n[[authorize]]"
            );
            door.house.edit("log.toml", "[[authorize]]", &grant);
        }
        door
    }

    /// Replaces a file in one step, as whoever renews certificates should.
    fn put(&self, name: &str, text: &str) {
        let new = self.house.outside("new");
        fs::write(&new, text).unwrap();
        let path = self.house.path(name);
        if path.exists() {
            fs::set_permissions(&new, fs::metadata(&path).unwrap().permissions()).unwrap();
        }
        fs::rename(new, path).unwrap();
    }

    /// A new certificate for the log. Between the two files they do not fit, which changes nothing.
    fn own(&self, issuer: &Authority) {
        let [certificate, key] = issuer.issue(&[SERVER], ServerAuth);
        self.put("pki/log/server.key", &key);
        self.put("pki/log/server.pem", &certificate);
    }

    /// A client that shows this certificate, on a connection of its own. Within a runtime.
    fn client(&self, serving: &Serving, trusted: &str, own: &[String; 2]) -> LogServiceClient<Channel> {
        let own = Credentials::from_pem(own[0].as_bytes(), own[1].as_bytes(), Usage::Client, Then.now());
        let mut trust = vec![TrustBundle::from_pem(DOMAIN, trusted.as_bytes()).unwrap()];
        trust.push(TrustBundle::from_pem(PARTNER, trusted.as_bytes()).unwrap());
        let tls = ClientTls::new(own.unwrap(), trust, Arc::new(Then)).unwrap();
        LogServiceClient::new(channel(&serving.address, &tls, &SERVER.parse().unwrap()).unwrap())
    }

    /// Clients of this CA with the serial numbers 7 and 8.
    fn two_clients(&self, serving: &Serving) -> [LogServiceClient<Channel>; 2] {
        [(7, ONE), (8, TWO)].map(|(serial, name)| {
            self.client(serving, &self.ours.pem, &self.ours.issue_numbered(serial, name))
        })
    }
}

async fn append(client: &mut LogServiceClient<Channel>) -> Result<(), tonic::Status> {
    let entries = vec![Bytes::from_static(b"x")];
    client.append(AppendRequest { entries, ..Default::default() }).await.map(drop)
}

/// How often the files were taken in, or were not.
fn reloads(serving: &Serving, outcome: &str) -> f64 {
    let text = get(serving, "/metrics", 200);
    let label = format!("outcome=\"{outcome}\"");
    if text.contains(&format!("epigraph_tls_reloads_total{{{label}}}")) {
        sample(&text, "epigraph_tls_reloads_total", &label)
    } else {
        0.0
    }
}

/// Waits until something is so. A log for which it never is is killed, and then fails the test.
fn until(serving: &Serving, is_so: impl Fn() -> bool) {
    let pid = serving.pid().to_string();
    let (over, is_over) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        if is_over.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            signal("KILL", &pid);
        }
    });
    while !is_so() {
        get(serving, "/healthz", 200);
    }
    drop(over);
    guard.join().unwrap();
}

/// Changes files and waits until they are in force.
fn replaced(serving: &Serving, change: impl FnOnce()) {
    let before = reloads(serving, "replaced");
    change();
    until(serving, || reloads(serving, "replaced") > before);
}

/// Until the log has said this.
fn said(serving: &Serving, texts: &[&str]) {
    until(serving, || {
        let messages = serving.messages();
        messages.lines().any(|line| texts.iter().all(|text| line.contains(text)))
    });
}

/// Lets the load end also when the test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// T4. One caller stays on its connection, one makes a new connection for each call. Seen to fail when what was read again was not
/// put in force.
#[test]
fn the_certificate_and_the_ca_of_clients_are_replaced_under_load_and_no_call_fails() {
    let door = Door::new("");
    let serving = door.house.serve();
    let next = Authority::new("next");
    let both = format!("{}{}", door.ours.pem, next.pem);
    let mine = door.ours.issue(&[ONE], ClientAuth);
    let (stop, (answered, answers)) = (AtomicBool::new(false), mpsc::sync_channel(0));
    thread::scope(|threads| {
        let _stops = Stops(&stop);
        let load = |stays: bool| {
            let (door, serving, stop, both, mine, answered) =
                (&door, &serving, &stop, &both, &mine, answered.clone());
            threads.spawn(move || {
                block_on(async {
                    let mut client = door.client(serving, both, mine);
                    while !stop.load(Ordering::SeqCst) {
                        append(&mut client).await.unwrap();
                        if !stays {
                            client = door.client(serving, both, mine);
                        }
                        let _ = answered.try_send(());
                    }
                })
            })
        };
        let load = [load(true), load(false)];
        drop(answered);
        let go_on = || (0..BETWEEN).for_each(|_| answers.recv_timeout(PATIENCE).unwrap());
        go_on();

        // Who trusts the next CA alone tells the new certificate from the old one.
        let shown = || block_on(async { append(&mut door.client(&serving, &next.pem, &mine)).await });
        shown().unwrap_err();
        replaced(&serving, || door.own(&next));
        shown().unwrap();
        go_on();

        let theirs = next.issue(&[TWO], ClientAuth);
        let let_in = || block_on(async { append(&mut door.client(&serving, &both, &theirs)).await });
        let_in().unwrap_err();
        replaced(&serving, || door.put("pki/ca.pem", &both));
        let_in().unwrap();
        go_on();
        stop.store(true, Ordering::SeqCst);
        load.into_iter().for_each(|load| load.join().unwrap());
    });
    serving.stop();
}

/// What is done to a client in use: its next calls are refused, those of another go on.
#[track_caller]
fn check_cut_off(key: &str, text: impl Fn(&Authority, bool) -> String, why: &str) {
    let door = Door::new(key);
    door.put("out", &text(&door.ours, false));
    let serving = door.house.serve();
    block_on(async {
        let [mut one, mut two] = door.two_clients(&serving);
        append(&mut one).await.unwrap();
        append(&mut two).await.unwrap();
        replaced(&serving, || door.put("out", &text(&door.ours, true)));
        append(&mut one).await.unwrap_err();
        append(&mut one).await.unwrap_err();
        append(&mut two).await.unwrap();
    });
    said(&serving, &[why]);
    let refused = get(&serving, "/metrics", 200);
    assert!(sample(&refused, "epigraph_refused_connections_total", "kind=\"revoked\"") > 0.0, "{refused}");
    serving.stop();
}

/// T2. Seen to fail when the new rules for clients were not put in force.
#[test]
fn a_client_in_use_whose_certificate_is_revoked_is_cut_off() {
    let list = |ca: &Authority, out: bool| ca.revoked_until(2100, if out { &[7] } else { &[] });
    check_cut_off("revocation_lists = [\"out\"]\n", list, "the CA's revocation list says so");
}

/// T2. Seen to fail when the new rules for clients were not put in force.
#[test]
fn a_client_in_use_that_is_put_on_the_deny_list_is_cut_off() {
    let list = |_: &Authority, out: bool| if out { format!("{ONE}\n") } else { "# nobody\n".to_owned() };
    check_cut_off("deny_list = \"out\"\n", list, "quickstart is denied by its name");
}

/// T5. Seen to fail when at a failed reload the lists were taken for none.
#[test]
fn a_revocation_list_of_no_use_refuses_the_start_and_changes_nothing_later() {
    let door = Door::new("revocation_lists = [\"our.crl\"]\n");
    let expired = door.ours.revoked_until(2020, &[]);
    door.house.serve_refused(2, &["our.crl"]);
    door.put("our.crl", "rot");
    door.house.serve_refused(2, &["our.crl", "this is no revocation list"]);
    door.put("our.crl", &expired);
    door.house.serve_refused(2, &["our.crl", "expired"]);
    door.put("our.crl", &door.ours.revoked_until(2100, &[7]));
    let serving = door.house.serve();
    block_on(async {
        let [mut one, mut two] = door.two_clients(&serving);
        append(&mut one).await.unwrap_err();
        append(&mut two).await.unwrap();
        for (text, why) in [("rot", "this is no revocation list"), (&expired, "expired")] {
            let before = reloads(&serving, "failed");
            door.put("our.crl", text);
            until(&serving, || reloads(&serving, "failed") > before);
            said(&serving, &["in force before stays in force", "our.crl", why]);
            append(&mut one).await.unwrap_err();
            append(&mut two).await.unwrap();
            append(&mut door.two_clients(&serving)[1]).await.unwrap();
        }
        assert_eq!(reloads(&serving, "replaced"), 0.0);
        replaced(&serving, || door.put("our.crl", &door.ours.revoked_until(2100, &[])));
        append(&mut one).await.unwrap();
        append(&mut two).await.unwrap();
    });
    serving.stop();
}

/// A17. Seen to fail when a chain to the CA of any domain was enough.
#[test]
fn the_ca_of_another_trust_domain_vouches_for_its_own_names_alone() {
    let door = Door::new("");
    let theirs = Authority::new("theirs");
    door.put("partner.pem", &theirs.pem);
    let domain =
        format!("[[tls.domain]]\ntrust_domain = \"{PARTNER}\"\ntrust_bundle = \"partner.pem\"\n\n[[log]]");
    let check = |serving: &Serving, ca: &Authority, name: &str, let_in: bool| {
        let own = ca.issue(&[name], ClientAuth);
        let answer = block_on(async { append(&mut door.client(serving, &door.ours.pem, &own)).await });
        assert_eq!(answer.is_ok(), let_in, "{name} {answer:?}");
    };
    let serving = door.house.serve();
    check(&serving, &theirs, THEIRS, false);
    serving.stop();
    door.house.edit("log.toml", "[[log]]", &domain);
    let serving = door.house.serve();
    check(&serving, &theirs, THEIRS, true);
    check(&serving, &theirs, ONE, false);
    check(&serving, &door.ours, THEIRS, false);
    check(&serving, &door.ours, ONE, true);
    let nobody = "spiffe://partner.example/epigraph/appender/nobody";
    check(&serving, &theirs, nobody, false);
    serving.stop();
}
