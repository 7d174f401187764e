//! A log, its signer and four witnesses, each a process, that start together: after a power cut at a whole site everybody waits for
//! everybody, and nobody for ever; and a signer that was put back together with what its log shows is told so by the witnesses.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use crate::metrics::get_any;
use crate::signer::Door;
use crate::support::{House, Serving, epigraph};
use crate::waiting::{ends, wait_until_ready};

const ROLES: [&str; 6] = ["log", "signer", "witness-1", "witness-2", "witness-3", "witness-4"];

/// What `quickstart` makes, with three of four, each process behind a door.
pub struct Site {
    pub house: House,
    doors: BTreeMap<&'static str, Door>,
}

impl Site {
    pub fn new() -> Site {
        let house = House::empty();
        let home = house.path("");
        epigraph(&[&"quickstart", &"--once", &"--dir", &home]).succeeded(&[]);
        let configs =
            ROLES.map(|role| (role, fs::read_to_string(house.path(&format!("{role}.toml"))).unwrap()));
        let listens = |config: &str, table: &str| {
            let (_, rest) = config.split_once(&format!("[{table}]\naddress = \"")).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        let addresses: Vec<_> =
            configs.iter().map(|(role, config)| (*role, listens(config, "listen"), Door::new())).collect();
        for (role, config) in &configs {
            let own = listens(config, "listen");
            let mut moved =
                config.replace(&listens(config, "metrics"), "127.0.0.1:0").replace(&own, "127.0.0.1:0");
            for (_, address, door) in &addresses {
                moved = moved.replace(address, &door.address);
            }
            fs::write(house.path(&format!("{role}.toml")), moved).unwrap();
            if role.starts_with("witness") {
                house.edit(&format!("{role}/logs.toml"), &addresses[0].1, &addresses[0].2.address);
            }
        }
        for (_, address, door) in addresses.iter().filter(|(role, ..)| role.starts_with("witness")) {
            house.edit("client.toml", address, &door.address);
        }
        Site { house, doors: addresses.into_iter().map(|(role, _, door)| (role, door)).collect() }
    }

    #[track_caller]
    pub fn start(&self, role: &'static str) -> Serving {
        let kind = role.split('-').next().unwrap();
        let serving = match self.house.start(kind, &format!("{role}.toml")) {
            Ok(serving) => serving,
            Err(ended) => panic!("{role} did not start: {ended}"),
        };
        self.doors[role].leads_to(&serving);
        serving
    }

    /// Everybody at once.
    pub fn start_all(&self) -> BTreeMap<&'static str, Serving> {
        thread::scope(|scope| {
            let starting: Vec<_> = ROLES.map(|role| (role, scope.spawn(move || self.start(role)))).into();
            let started =
                |(role, start): (_, thread::ScopedJoinHandle<'_, Serving>)| (role, start.join().unwrap());
            let all: BTreeMap<_, _> = starting.into_iter().map(started).collect();
            self.house.point_at(&all["log"]);
            all
        })
    }

    #[track_caller]
    pub fn publish(&self, lines: &str) {
        let input = self.house.outside("more");
        fs::write(&input, lines).unwrap();
        self.house.call("append", &[&input]).succeeded(&["published, and each receipt is verified"]);
    }
}

/// R6, C8: all six are killed at once and started at once; they find together, and publish, with what was durable before. Broken to
/// see it fail: the signer's gate waits for its own log to be ready; a log that waits at its gate does not show what is published.
#[test]
fn everything_that_was_killed_at_once_may_start_at_once() {
    let site = Site::new();
    for round in 0..2 {
        let mut all = site.start_all();
        wait_until_ready(&all["log"]);
        site.publish(&format!("of round {round}\n"));
        all.values_mut().for_each(Serving::kill);
    }
    let all = site.start_all();
    wait_until_ready(&all["log"]);
    wait_until_ready(&all["signer"]);
    let out = site.house.call("checkpoint", &[]).succeeded(&[]).out.clone();
    assert_eq!(out.lines().nth(1).unwrap(), "50");
}

/// R5, R6: with one witness that may lie, a signer of three of four signs nothing before three have said what they hold; it names
/// those who have not. Broken to see it fail: only the log is asked.
#[test]
fn a_signer_waits_for_enough_witnesses_and_names_them() {
    let site = Site::new();
    let _two = [site.start("witness-1"), site.start("witness-2")];
    let log = site.start("log");
    let signer = site.start("signer");
    let missing = |why: &str| ["witness-3", "witness-4"].iter().all(|name| why.contains(name));
    let answered = |why: &str| ["the log", "witness-1", "witness-2"].iter().all(|name| !why.contains(name));
    loop {
        let (code, why) = get_any(&signer, "/readyz");
        assert_eq!(code, 503, "{why}");
        if missing(&why) && answered(&why) {
            break;
        }
    }
    let _third = site.start("witness-4");
    wait_until_ready(&signer);
    wait_until_ready(&log);
}

/// R5, A13: the signer's directory and what the log shows are put back together, so that nothing on the two machines is newer. The
/// witnesses remember, and one of them is enough to refuse. Broken to see it fail: `judge` hears the log alone.
#[test]
fn a_signer_that_was_put_back_with_its_log_is_told_so_by_a_witness() {
    let site = Site::new();
    let house = &site.house;
    let saved = [house.save(house.path("signer")), house.save(house.path("log"))];
    let mut all = site.start_all();
    wait_until_ready(&all["log"]);
    site.publish("forgotten\n");
    all.values_mut().for_each(Serving::kill);
    saved.iter().for_each(crate::support::Saved::put_back);

    let _one = site.start("witness-2");
    let mut signer = site.start("signer");
    ends(&mut signer).refused(
        5,
        &["the signer of ", "went back", "size 48", "size 49", "witness-2", "Put the newest copy back"],
    );
    let mut log = site.start("log");
    ends(&mut log).refused(5, &["the journal of ", "it has 48 entries", "witness-2 holds 49"]);
}
