//! A witness as a process of its own: created once, killed, restored from yesterday's copy, and asked over mutual TLS.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;

use epigraph_core::cosignature::{self, add_cosignature};
use epigraph_core::note::Parsed;
use epigraph_core::progress::Proposal;
use epigraph_core::{Checkpoint, TreeSize, VKey};
use epigraph_rpc::peer::{self, Proposed};
use epigraph_rpc::{CallError, Reason, Refusal};
use epigraph_store::file::real::RealDir;
use epigraph_store::published::PublishedStore;

use crate::support::{Ended, House, Serving, block_on, command, epigraph};

const NAME: &str = "witness.example/w1";
pub const SERVER: &str = "spiffe://epigraph.quickstart/epigraph/witness/w1";
const CLIENT: &str = "spiffe://epigraph.quickstart/epigraph/witness/w1-client";

/// A quickstart's log that a witness may read, and a witness that has nothing on its list.
pub fn house() -> House {
    let house = House::new();
    let ca = house.path("pki");
    for (spiffe, side, out) in [(SERVER, "--server", "pki/w1/server"), (CLIENT, "--client", "pki/w1/client")]
    {
        let out = house.path(out);
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"pki", &"issue", &"--ca", &ca];
        args.extend([&"--spiffe" as &dyn AsRef<std::ffi::OsStr>, &spiffe, &side, &"--out", &out]);
        if side == "--server" {
            args.extend([&"--ip" as &dyn AsRef<std::ffi::OsStr>, &"127.0.0.1"]);
        }
        epigraph(&args).succeeded(&[]);
    }
    let grant = format!(
        "[[authorize]]\nspiffe = \"{CLIENT}\"\nroles = [\"witness\"]\nlogs = [\"*\"]\n\n[[authorize]]"
    );
    house.edit("log.toml", "[[authorize]]", &grant);
    let config = format!(
        r#"name = "{NAME}"
directory = "w1"
listen = {{ address = "127.0.0.1:0" }}
tls = {{ certificate = "pki/w1/server.pem", key = "pki/w1/server.key", trust_bundle = "pki/ca.pem", trust_domain = "epigraph.quickstart", client = {{ certificate = "pki/w1/client.pem", key = "pki/w1/client.key" }} }}

[[authorize]]
spiffe = "spiffe://epigraph.quickstart/epigraph/*"
roles = ["log", "reader"]
logs = ["*"]
"#
    );
    fs::write(house.path("w1.toml"), config).unwrap();
    house
}

pub fn init(house: &House) -> Ended {
    epigraph(&[&"init", &"witness", &"--config", &house.path("w1.toml")])
}

/// A running witness.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    _stdout: BufReader<ChildStdout>,
    messages: std::path::PathBuf,
    address: String,
}

impl Running {
    fn start(house: &House) -> Result<Running, Ended> {
        let messages = house.outside("w1.messages");
        let mut child =
            command(&[&"serve", &"witness", &"--until-stdin-closes", &"--config", &house.path("w1.toml")])
                .stdin(Stdio::piped())
                .stderr(File::create(&messages).unwrap())
                .spawn()
                .unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        // witnessing as <name> on <address> for <count> logs
        let words: Vec<_> = line.split_whitespace().collect();
        let ["witnessing", "as", NAME, "on", address, "for", _, "logs"] = words[..] else {
            let code = child.wait().unwrap().code();
            return Err(Ended { code, out: line, err: fs::read_to_string(messages).unwrap() });
        };
        let address = address.to_owned();
        Ok(Running { child, stdin, _stdout: stdout, messages, address })
    }

    #[track_caller]
    fn must(house: &House) -> Running {
        Running::start(house).unwrap_or_else(|ended| panic!("the witness did not start: {ended}"))
    }

    fn says(&self, text: &str) -> bool {
        fs::read_to_string(&self.messages).unwrap().contains(text)
    }

    fn peer(&self, house: &House) -> peer::Witness {
        peer::Witness::new(&self.address, &house.tls(), &SERVER.parse().unwrap()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts the house's log on the witness's list, where it is served now.
pub fn list_log(house: &House, serving: &Serving) {
    let text = format!(
        "[[log]]\norigin = \"{}\"\nvkey = \"{}\"\naddress = \"{}\"\nserver = \"{}\"\n",
        house.origin(),
        house.vkey(),
        serving.address,
        crate::support::SERVER
    );
    fs::write(house.path("w1/logs.toml"), text).unwrap();
}

/// Proposes the log's newest published checkpoint, as the log would.
async fn propose(
    house: &House,
    serving: &Serving,
    witness: &Running,
    old: u64,
) -> Result<Proposed, CallError> {
    propose_to(house, serving, &witness.peer(house), old).await
}

/// The same to a witness that is known by its address.
pub async fn propose_to(
    house: &House,
    serving: &Serving,
    witness: &peer::Witness,
    old: u64,
) -> Result<Proposed, CallError> {
    let origin = house.origin();
    let log =
        peer::Log::new(&serving.address, &house.tls(), &crate::support::SERVER.parse().unwrap()).unwrap();
    let note = log.checkpoint(origin.as_str()).await.unwrap();
    let head = Checkpoint::open(&note, &house.policy()).unwrap().head();
    let old_size = TreeSize::new(old).unwrap();
    let proof = match old {
        0 => Vec::new(),
        _ => log.consistency_proof(origin.as_str(), old_size, head.size).await.unwrap(),
    };
    let proposal = Proposal { old_size, head, proof, note: note.to_vec() };
    witness.add_checkpoint(origin.as_str(), proposal).await
}

#[track_caller]
fn refusal(answer: Result<Proposed, CallError>) -> Refusal {
    match answer {
        Err(CallError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

fn vkey(house: &House) -> VKey {
    fs::read_to_string(house.path("w1/keys/witness.vkey")).unwrap().trim_end().parse().unwrap()
}

/// Broken to see it fail: `init` takes a key that is there.
#[test]
fn state_and_key_come_into_being_together_and_only_once() {
    let house = house();
    let config = house.path("w1.toml");
    Running::start(&house).err().unwrap().refused(5, &["never initialised", "Run `init`"]);
    init(&house).succeeded(&["initialised the witness witness.example/w1", "its vkey"]);
    init(&house).refused(5, &["initialised already"]);
    // D1: a second process on the same directory.
    let running = Running::must(&house);
    epigraph(&[&"serve", &"witness", &"--config", &config]).refused(5, &["is in use by process"]);
    drop(running);
    // The state is lost, the key is not: nobody knows what it has cosigned.
    let heads = house.path("w1/heads");
    let saved = fs::read(&heads).unwrap();
    fs::remove_file(&heads).unwrap();
    Running::start(&house).err().unwrap().refused(5, &["`heads` is missing", "retires its key"]);
    fs::remove_file(house.path("w1/format")).unwrap();
    init(&house).refused(5, &["must not cosign again", "retire the key", "Nothing was changed"]);
    assert!(!heads.exists());
    fs::write(&heads, saved).unwrap();
}

/// C9: killed at any time, it holds what it cosigned, says so, and cosigns it again. Broken to see it fail: the head is
/// kept in memory alone.
#[test]
fn a_witness_cosigns_growth_takes_new_logs_and_remembers_through_a_kill() {
    let house = house();
    init(&house).succeeded(&[]);
    let mut log = house.serve();
    let mut witness = Running::must(&house);
    block_on(async {
        let refused = refusal(propose(&house, &log, &witness, 0).await);
        assert_eq!(refused.reason(), Reason::UnknownOrigin);
        list_log(&house, &log);
        while !witness.says("logs were added to the list") {
            tokio::task::yield_now().await;
        }
        let Ok(Proposed::Cosigned(lines)) = propose(&house, &log, &witness, 0).await else { panic!() };
        let shown = witness.peer(&house).checkpoint(house.origin().as_str()).await.unwrap();
        let parsed = Parsed::parse(&shown).unwrap();
        assert!(parsed.signatures().contains(&lines[0]));
        cosignature::verify(parsed.text(), &lines[0], &vkey(&house)).unwrap();
        Checkpoint::open(&shown, &house.policy()).unwrap();
        let (logs, next) = witness.peer(&house).logs("").await.unwrap();
        assert_eq!((logs[0].origin.as_str(), logs[0].size.get(), next), (house.origin().as_str(), 3, None));
        let mut watching = witness.peer(&house).watch(house.origin().as_str()).await.unwrap();
        assert_eq!(watching.next().await.unwrap().unwrap(), shown);
    });
    house.call("append", &[&house.path("policy")]).succeeded(&["published"]);
    witness.child.kill().unwrap();
    witness.child.wait().unwrap();
    witness = Running::must(&house);
    block_on(async {
        // The log believes that its proposal was never answered.
        let Ok(Proposed::Stale { held, note }) = propose(&house, &log, &witness, 0).await else { panic!() };
        assert_eq!(held.size.get(), 3);
        assert_eq!(Checkpoint::open(&note.unwrap(), &house.policy()).unwrap().head(), held);
        let Ok(Proposed::Cosigned(_)) = propose(&house, &log, &witness, 3).await else { panic!() };
    });
    // Told to stop, it lets its watchers go instead of waiting for them.
    block_on(async {
        let mut watching = witness.peer(&house).watch(house.origin().as_str()).await.unwrap();
        assert!(watching.next().await.unwrap().is_some());
        drop(witness.stdin.take());
        assert_eq!(watching.next().await.unwrap(), None);
    });
    assert_eq!(witness.child.wait().unwrap().code(), Some(0));
    log.kill();
}

/// A14, R2: yesterday's copy of the directory, and the log shows a newer cosignature. R6 on the way: a log that cannot be
/// reached. Broken to see it fail: the gate passes without having judged.
#[test]
fn yesterdays_copy_of_a_witness_is_refused_when_the_log_shows_a_newer_cosignature() {
    let house = house();
    init(&house).succeeded(&[]);
    let log = house.serve();
    list_log(&house, &log);
    let witness = Running::must(&house);
    let _ = block_on(propose(&house, &log, &witness, 0)).unwrap();
    let yesterday = house.save(house.path("w1"));

    house.call("append", &[&house.path("policy")]).succeeded(&["published"]);
    let newest = block_on(async {
        let Ok(Proposed::Cosigned(_)) = propose(&house, &log, &witness, 3).await else { panic!() };
        witness.peer(&house).checkpoint(house.origin().as_str()).await.unwrap()
    });
    drop(witness);
    log.stop();
    // The log publishes it with the cosignature.
    let published = Arc::new(RealDir::open(&house.log("checkpoints")).unwrap());
    let (mut store, _) = PublishedStore::open(published).unwrap();
    let parsed = Parsed::parse(&newest).unwrap();
    let ours = parsed.signatures().iter().find(|line| line.name == NAME).unwrap();
    let current = String::from_utf8(store.current().unwrap().to_vec()).unwrap();
    let note = add_cosignature(&current, ours, &vkey(&house)).unwrap().unwrap();
    store.store(note.as_bytes()).unwrap();
    drop(store);

    yesterday.put_back();
    let log = house.serve();
    let witness = Running::must(&house);
    // Its list still says where the log was.
    let gated = refusal(block_on(propose(&house, &log, &witness, 3)));
    assert_eq!(gated.reason(), Reason::Gated, "{gated}");
    drop(witness);

    list_log(&house, &log);
    let witness = Running::must(&house);
    let back = refusal(block_on(propose(&house, &log, &witness, 3)));
    assert_eq!(back.reason(), Reason::RolledBack, "{back}");
    for part in ["it holds size 3", "on size ", "put the newest copy back", "retire this key"] {
        assert!(back.message().contains(part), "{part:?} is missing: {back}");
    }
    assert!(witness.says("this witness went back"));
    drop(witness);

    log.stop();
}
