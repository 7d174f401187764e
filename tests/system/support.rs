//! What the tests share: a log that `quickstart` made, the program run on it, and how it ended.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::UNIX_EPOCH;

use epigraph_client::Client;
use epigraph_client::pin::Pin;
use epigraph_core::{Clock, Hash, Origin, Policy, UnixMillis};
use epigraph_rpc::channel::{Channel, channel};
use epigraph_rpc::v1::log_service_client::LogServiceClient;
use epigraph_rpc::{ClientTls, Credentials, SpiffeId, TrustBundle, Usage, peer};
use tempfile::TempDir;

/// The trust domain of a quickstart.
pub const DOMAIN: &str = "epigraph.quickstart";

/// The name of a quickstart's server.
pub const SERVER: &str = "spiffe://epigraph.quickstart/epigraph/log/quickstart";

/// Runs the program with these arguments to its end.
pub fn epigraph(args: &[&dyn AsRef<OsStr>]) -> Ended {
    command(args).output().unwrap().into()
}

/// The program, with nothing of this process's environment that changes what it does.
pub fn command(args: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epigraph"));
    command.args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["NO_COLOR", "EPIGRAPH_LOG", "EPIGRAPH_PROFILE"] {
        command.env_remove(name);
    }
    command
}

/// Lets a future and all that it calls run on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// How a process ended.
pub struct Ended {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {:?}\n--- output\n{}\n--- messages\n{}", self.code, self.out, self.err)
    }
}

impl Ended {
    /// It did what it was asked, and printed these texts.
    #[track_caller]
    pub fn succeeded(&self, says: &[&str]) -> &Ended {
        assert_eq!(self.code, Some(0), "{self}");
        says.iter().for_each(|text| assert!(self.out.contains(text), "{text:?} is missing: {self}"));
        self
    }

    /// It said no, with this exit code, and its last message has these texts.
    #[track_caller]
    pub fn refused(&self, code: i32, says: &[&str]) -> &Ended {
        assert_eq!(self.code, Some(code), "{self}");
        assert!(!self.err.contains("panicked"), "{self}");
        let at = self.err.rfind("epigraph: ").unwrap_or_else(|| panic!("it does not say why: {self}"));
        let message = &self.err[at..];
        says.iter().for_each(|text| assert!(message.contains(text), "{text:?} is missing: {self}"));
        self
    }

    /// The command line itself was refused: exit 2, and the words at fault are named.
    #[track_caller]
    pub fn refused_by_usage(&self, says: &str) {
        assert_eq!(self.code, Some(2), "{self}");
        assert!(self.err.contains(says) && self.err.contains("--help"), "{self}");
    }

    /// The one object that `--json` prints.
    #[track_caller]
    pub fn object(&self) -> serde_json::Value {
        assert_eq!(self.out.lines().count(), 1, "{self}");
        let value: serde_json::Value = serde_json::from_str(&self.out).unwrap();
        assert!(value.is_object(), "{self}");
        value
    }
}

/// A log with its signer, its client and their keys, as `quickstart` makes them, in a directory of its own.
pub struct House {
    dir: TempDir,
    /// So that each process has a file for its messages, also beside another one.
    starts: AtomicU32,
}

impl House {
    /// Three small entries.
    pub fn new() -> House {
        House::with_lines(b"one\ntwo\nthree\n")
    }

    /// A house that nothing is in yet.
    pub fn empty() -> House {
        let house = House { dir: TempDir::new().unwrap(), starts: AtomicU32::new(0) };
        fs::create_dir(house.path("")).unwrap();
        house
    }

    /// An entry for each line. Later starts of the log choose a port anew, so that two tests never meet on one.
    pub fn with_lines(lines: &[u8]) -> House {
        let dir = TempDir::new().unwrap();
        let house = House { dir, starts: AtomicU32::new(0) };
        let input = house.dir.path().join("input");
        fs::write(&input, lines).unwrap();
        let home = house.path("");
        epigraph(&[&"quickstart", &"--once", &"--alone", &"--dir", &home, &"--input", &input]).succeeded(&[]);
        let config = fs::read_to_string(house.path("log.toml")).unwrap();
        let is_address = |line: &&str| line.starts_with("address = ");
        for line in config.lines().filter(is_address) {
            house.edit("log.toml", line, "address = \"127.0.0.1:0\"");
        }
        house
    }

    /// A path in the quickstart's directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join("home").join(relative)
    }

    /// A path beside the quickstart's directory.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces one text in a file, which must have it.
    #[track_caller]
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from:?}");
        fs::write(self.path(file), text.replacen(from, to, 1)).unwrap();
    }

    pub fn origin(&self) -> Origin {
        Origin::new(value(&self.path("client.toml"), "origin")).unwrap()
    }

    pub fn policy(&self) -> Policy {
        fs::read_to_string(self.path("policy")).unwrap().parse().unwrap()
    }

    pub fn vkey(&self) -> String {
        self.policy().logs()[0].to_string()
    }

    /// A path in the directory of this log within the log process's directory.
    pub fn log(&self, relative: &str) -> PathBuf {
        self.path("log").join(self.origin().hash().to_string()).join(relative)
    }

    /// The journal's segments, the first first.
    pub fn segments(&self) -> Vec<PathBuf> {
        let mut segments: Vec<_> = fs::read_dir(self.log("journal"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension() == Some(OsStr::new("seg")))
            .collect();
        segments.sort();
        segments
    }

    /// The receipt of an entry of the quickstart's; its entry lies beside it.
    pub fn receipt(&self, index: u64) -> PathBuf {
        self.path(&format!("receipts/{index:06}.tlog-proof"))
    }

    /// Starts the log, which must serve.
    #[track_caller]
    pub fn serve(&self) -> Serving {
        match self.try_serve() {
            Ok(serving) => serving,
            Err(ended) => panic!("the log did not start: {ended}"),
        }
    }

    /// Starts the log, which must refuse, with this exit code and in a message that has these texts.
    #[track_caller]
    pub fn serve_refused(&self, code: i32, says: &[&str]) {
        match self.try_serve() {
            Ok(serving) => panic!("the log serves {} entries: {}", serving.entries, serving.messages()),
            Err(ended) => drop(ended.refused(code, says)),
        }
    }

    fn try_serve(&self) -> Result<Serving, Ended> {
        let serving = self.start("log", "log.toml")?;
        self.point_at(&serving);
        Ok(serving)
    }

    /// Later client commands of this house go to this log.
    pub fn point_at(&self, serving: &Serving) {
        let old = value(&self.path("client.toml"), "address");
        self.edit("client.toml", &old, &serving.address);
    }

    /// Starts a role with a configuration of this house. It refuses, or says where it listens.
    pub fn start(&self, role: &str, config: &str) -> Result<Serving, Ended> {
        self.start_in(&[], role, config)
    }

    /// The same in an environment with more in it.
    pub fn start_in(&self, more: &[(&str, &Path)], role: &str, config: &str) -> Result<Serving, Ended> {
        let messages =
            self.outside(&format!("messages-{}-{config}", self.starts.fetch_add(1, Ordering::Relaxed)));
        let mut child = command(&[&"serve", &role, &"--until-stdin-closes", &"--config", &self.path(config)])
            .envs(more.iter().copied())
            .stdin(Stdio::piped())
            .stderr(File::create(&messages).unwrap())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        // serving <origin> on <address> with <count> entries
        // signing for <origin> on <address>
        // witnessing as <name> on <address> for <count> logs
        // monitoring <origin> as <name> on <address>
        // auditing as <name> on <address>: <count> sources, over the log <origin>
        let words: Vec<_> = line.split_whitespace().collect();
        let (address, entries) = match words[..] {
            ["serving", _, "on", address, "with", entries, "entries"] => (address, entries.parse().unwrap()),
            ["signing", "for", _, "on", address] => (address, 0),
            ["witnessing", "as", _, "on", address, "for", _, "logs"] => (address, 0),
            ["monitoring", _, "as", _, "on", address] => (address, 0),
            ["auditing", "as", _, "on", address, ..] => (address.trim_end_matches(':'), 0),
            _ => {
                let code = child.wait().unwrap().code();
                return Err(Ended { code, out: line, err: fs::read_to_string(messages).unwrap() });
            }
        };
        let address = address.to_owned();
        Ok(Serving { child, stdin, stdout, messages, address, entries })
    }

    /// A client command with this house's profile.
    pub fn call(&self, command: &str, args: &[&dyn AsRef<OsStr>]) -> Ended {
        self.call_as("", command, args)
    }

    /// A client command with another profile in this house.
    pub fn call_as(&self, profile: &str, command: &str, args: &[&dyn AsRef<OsStr>]) -> Ended {
        let profile = self.path(profile);
        let mut all: Vec<&dyn AsRef<OsStr>> = vec![&command];
        all.extend(args);
        all.extend([&"--profile" as &dyn AsRef<OsStr>, &profile]);
        epigraph(&all)
    }

    /// Appends lines and waits until they are published, with receipts that verify.
    #[track_caller]
    pub fn publish(&self, lines: &str) {
        let input = self.outside("more");
        fs::write(&input, lines).unwrap();
        self.call("append", &[&input]).succeeded(&["published, and each receipt is verified"]);
    }

    /// Appends a line, on the log's disk alone.
    #[track_caller]
    pub fn append(&self, line: &str) {
        let input = self.outside("durable");
        fs::write(&input, line).unwrap();
        self.call("append", &[&input, &"--wait", &"durable"]).succeeded(&["indexes"]);
    }

    /// The size of the newest published checkpoint; the client verifies it under its policy.
    #[track_caller]
    pub fn published(&self) -> u64 {
        let out = self.call("checkpoint", &[]).succeeded(&[]).out.clone();
        out.lines().nth(1).unwrap().parse().unwrap()
    }

    /// The verifying client with this house's profile. Within a runtime.
    pub fn client(&self, serving: &Serving) -> Client {
        let log = peer::Log::new(&serving.address, &self.tls(), &server()).unwrap();
        let pin = Pin::new(&self.path("state"), &self.origin()).unwrap();
        Client::new(log, self.origin(), self.policy(), pin)
    }

    /// The log as its callers see it, who verify nothing. Within a runtime.
    pub fn log_peer(&self, serving: &Serving) -> peer::Log {
        peer::Log::new(&serving.address, &self.tls(), &server()).unwrap()
    }

    /// A client that sends whatever it is told to. Within a runtime.
    pub fn raw_client(&self, serving: &Serving) -> LogServiceClient<Channel> {
        LogServiceClient::new(channel(&serving.address, &self.tls(), &server()).unwrap())
    }

    /// What the quickstart's client proves to be.
    pub fn tls(&self) -> ClientTls {
        self.tls_of("pki/client/client")
    }

    /// With a certificate of this house's CA: `<stem>.pem` and `<stem>.key`.
    pub fn tls_of(&self, stem: &str) -> ClientTls {
        tls_in(&self.path(""), stem)
    }

    /// Keeps a copy of a directory, to be put back later.
    pub fn save(&self, original: PathBuf) -> Saved {
        let copy = TempDir::new_in(self.dir.path()).unwrap();
        copy_directory(&original, &copy.path().join("copy"));
        Saved { original, copy }
    }
}

/// With a certificate that lies in a quickstart's directory: `<stem>.pem` and `<stem>.key`.
pub fn tls_in(home: &Path, stem: &str) -> ClientTls {
    let (chain, key) = (home.join(format!("{stem}.pem")), home.join(format!("{stem}.key")));
    let clock = Arc::new(Then::of(&chain));
    let own = Credentials::from_files(&chain, &key, Usage::Client, clock.now()).unwrap();
    let trust = TrustBundle::from_file(DOMAIN, &home.join("pki/ca.pem")).unwrap();
    ClientTls::new(own, trust, clock).unwrap()
}

/// The value of a key in a TOML file that `quickstart` wrote: `key = "value"` on a line of its own.
fn value(file: &Path, key: &str) -> String {
    let text = fs::read_to_string(file).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix("= \""));
    value.unwrap().trim_end_matches('"').to_owned()
}

fn server() -> SpiffeId {
    SERVER.parse().unwrap()
}

fn copy_directory(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// A copy of a directory.
pub struct Saved {
    original: PathBuf,
    copy: TempDir,
}

impl Saved {
    /// What an operator does with a backup: the directory as it was, whatever happened since.
    pub fn put_back(&self) {
        fs::remove_dir_all(&self.original).unwrap();
        copy_directory(&self.copy.path().join("copy"), &self.original);
    }
}

/// A running log, signer, witness or monitor.
pub struct Serving {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    messages: PathBuf,
    pub address: String,
    pub entries: u64,
}

impl Serving {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard error so far.
    pub fn messages(&self) -> String {
        fs::read_to_string(&self.messages).unwrap()
    }

    /// Lets it finish; it must end well.
    #[track_caller]
    pub fn stop(mut self) -> Ended {
        drop(self.stdin.take());
        let ended = self.ended();
        ended.succeeded(&[]);
        ended
    }

    /// Lets it finish; it must end with what it has to say about a log that failed.
    #[track_caller]
    pub fn stop_and_fail(mut self) {
        drop(self.stdin.take());
        self.ended().refused(5, &[]);
    }

    /// Waits until it ended by itself.
    pub fn ended(&mut self) -> Ended {
        let mut out = String::new();
        self.stdout.read_to_string(&mut out).unwrap();
        Ended { code: self.child.wait().unwrap().code(), out, err: self.messages() }
    }

    /// SIGKILL, and nothing of it is left when this returns.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal by its name to a process, or with a minus sign to a process group.
pub fn signal(name: &str, target: &str) {
    assert!(Command::new("kill").args(["-s", name, "--", target]).status().unwrap().success());
}

/// The clock of a test stands still at the time when a file was made.
pub struct Then(UnixMillis);

impl Then {
    pub fn of(path: &Path) -> Then {
        let since = fs::metadata(path).unwrap().modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
        Then(UnixMillis(since.as_millis() as u64))
    }
}

impl Clock for Then {
    fn now(&self) -> UnixMillis {
        self.0
    }
}

/// Overwrites bytes of a file in place, write-protected or not, and leaves its mode as it was.
pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

/// Flips one bit of a file.
pub fn flip(path: &Path, offset: u64) {
    let mut byte = [0];
    File::open(path).unwrap().read_exact_at(&mut byte, offset).unwrap();
    overwrite(path, offset, &[byte[0] ^ 1]);
}

/// Where the first occurrence of some bytes starts in a file.
#[track_caller]
pub fn find(path: &Path, bytes: &[u8]) -> u64 {
    let content = fs::read(path).unwrap();
    content.windows(bytes.len()).position(|window| window == bytes).unwrap() as u64
}

/// The leaf hash of an entry.
pub fn leaf(entry: &[u8]) -> Hash {
    epigraph_core::hash::leaf_hash(entry)
}
