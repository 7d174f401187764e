//! PostgreSQL, where it is installed, as a yardstick: a server of its own with what it comes with (fsync on, every commit waits for the
//! disk), spoken to over a Unix socket in its own protocol (version 3, simple queries), without a library between.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{Read, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::clock;
use crate::collect::BATCH;
use crate::decode::decoded;
use crate::load::Load;
use crate::records::Records;

pub(crate) const WHAT: &str =
    "PostgreSQL (raw JSON, indexes over id, actor, thing, request and outcome; 4 connections)";

/// Connections that insert at one time: more than cores, so that one syncs while others work.
const CONNECTIONS: usize = 4;

const INSTALLED: &str = "/usr/lib/postgresql";
/// It does not run as root: as whom then.
const USER: &str = "postgres";

const LOOK_EVERY: Duration = Duration::from_millis(50);
const PATIENCE_LOOKS: u32 = 600;

const TABLE: &str = "CREATE TABLE events (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id text NOT NULL, tenant text NOT NULL,
    occurred_at timestamptz NOT NULL, action text NOT NULL, actor text NOT NULL, thing text NOT NULL, request text NOT NULL,
    result int NOT NULL, address text NOT NULL, record json NOT NULL);
CREATE INDEX ON events (event_id);
CREATE INDEX ON events (actor, occurred_at);
CREATE INDEX ON events (thing, occurred_at);
CREATE INDEX ON events (request);
CREATE INDEX ON events (result, action, occurred_at)";

/// Whether there is one.
pub(crate) enum Answered {
    Serves(Postgres),
    /// Why not.
    Not(String),
}

/// A server.
pub(crate) struct Postgres {
    process: Child,
    /// Beside the other measures' directories, because another user must get there.
    dir: TempDir,
}

impl Postgres {
    /// Sets a server up beside `dir` and starts it, with an empty table.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Answered> {
        let Some(programs) = programs() else {
            return Ok(Answered::Not(format!("there is none in {INSTALLED}")));
        };
        let beside = dir.parent().and_then(Path::parent).context("no folder to lie in")?;
        let dir = tempfile::Builder::new().prefix("pg-").tempdir_in(beside)?;
        let user = user(&dir)?;
        let as_user = |program: &str| {
            let mut command = Command::new(programs.join(program));
            command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let data = dir.path().join("data");
        let messages =
            || fs::OpenOptions::new().create(true).append(true).open(dir.path().join("messages.txt"));
        let mut initdb = as_user("initdb");
        initdb.args(["--auth=trust", "--username=bench", "--encoding=UTF8", "--locale=C", "-D"]).arg(&data);
        let made = initdb.stderr(messages()?).status()?;
        if !made.success() {
            let why = fs::read_to_string(dir.path().join("messages.txt"))?;
            return Ok(Answered::Not(format!("initdb ended with {made}: {}", why.trim())));
        }
        let mut server = as_user("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(dir.path()).args(["-c", "listen_addresses="]);
        let process = server.stderr(messages()?).spawn()?;
        let postgres = Postgres { process, dir };
        let mut patience = PATIENCE_LOOKS;
        let mut connection = loop {
            match Connection::open(postgres.dir.path()) {
                Ok(connection) => break connection,
                Err(error) if patience == 0 => return Err(error),
                Err(_) => patience -= 1,
            }
            thread::sleep(LOOK_EVERY);
        };
        connection.query(TABLE)?;
        Ok(Answered::Serves(postgres))
    }

    /// Inserts these records. Making the statements is not counted.
    pub(crate) fn insert(&self, records: Records, numbers: std::ops::Range<u64>) -> anyhow::Result<Load> {
        let mut shares: Vec<Vec<String>> = vec![Vec::new(); CONNECTIONS];
        for (place, first) in numbers.clone().step_by(BATCH as usize).enumerate() {
            let batch = first..(first + BATCH).min(numbers.end);
            shares[place % CONNECTIONS].push(statement(records, batch)?);
        }
        let start = clock::now();
        let latencies = thread::scope(|scope| {
            let inserting: Vec<_> = shares
                .iter()
                .map(|statements| {
                    scope.spawn(move || {
                        let mut connection = Connection::open(self.dir.path())?;
                        let mut latencies = Vec::with_capacity(statements.len());
                        for statement in statements {
                            let sent = clock::now();
                            connection.query(statement)?;
                            latencies.push(sent.elapsed());
                        }
                        anyhow::Ok(latencies)
                    })
                })
                .collect();
            let mut latencies = Vec::new();
            for thread in inserting {
                latencies.extend(thread.join().map_err(|_| anyhow::anyhow!("a connection ended"))??);
            }
            anyhow::Ok(latencies)
        })?;
        let (elapsed, done) = (start.elapsed(), numbers.end - numbers.start);
        Ok(Load { elapsed, done, latencies, server_cpu: Duration::ZERO })
    }

    /// Lets it write what it has put off, which nobody waits for.
    pub(crate) fn rest(&self) -> anyhow::Result<()> {
        Connection::open(self.dir.path())?.query("CHECKPOINT")
    }

    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        // The processes that it started see that it is gone, and may take a moment.
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The newest one's programs.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(INSTALLED).ok()?.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    versions.filter(|programs| programs.join("postgres").is_file()).max()
}

/// As whom it runs, if that is not who runs this; the directory is theirs then.
fn user(dir: &TempDir) -> anyhow::Result<Option<(u32, u32)>> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find_map(|line| line.strip_prefix(USER)?.strip_prefix(':'));
    let mut fields = line.with_context(|| format!("no user {USER}"))?.split(':').skip(1);
    let mut id = || anyhow::Ok(fields.next().context("a line of /etc/passwd")?.parse::<u32>()?);
    let ids = (id()?, id()?);
    chown(dir.path(), Some(ids.0), Some(ids.1))?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    Ok(Some(ids))
}

fn statement(records: Records, numbers: std::ops::Range<u64>) -> anyhow::Result<String> {
    let mut sql = String::from(
        "INSERT INTO events (event_id, tenant, occurred_at, action, actor, thing, request, result, address, record) VALUES ",
    );
    for (place, number) in numbers.enumerate() {
        let record = records.record(number);
        let event = decoded(&record)?;
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let actor = event.identity.actor.as_ref().map_or("", |actor| actor.id.as_str());
        let thing = event.identity.resources.first().map_or("", |thing| thing.id.as_str());
        let address = event.identity.addresses.first().map_or("", String::as_str);
        write!(
            sql,
            "{}({},{},to_timestamp({}),{},{},{},{},{},{},{})",
            if place == 0 { "" } else { "," },
            quoted(&event.core.event_id),
            quoted(&event.core.tenant),
            event.core.occurred_at_ns as f64 / 1e9,
            quoted(&event.core.action),
            quoted(actor),
            quoted(thing),
            quoted(&event.core.request_id),
            event.core.result,
            quoted(address),
            quoted(&record.1)
        )?;
    }
    Ok(sql)
}

/// A connection that has said who it is.
struct Connection(UnixStream);

impl Connection {
    fn open(dir: &Path) -> anyhow::Result<Connection> {
        let mut connection = Connection(UnixStream::connect(dir.join(".s.PGSQL.5432"))?);
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        startup.extend_from_slice(b"user\0bench\0database\0postgres\0\0");
        connection.send(&startup)?;
        connection.ready()?;
        Ok(connection)
    }

    /// Runs a statement to its end.
    fn query(&mut self, sql: &str) -> anyhow::Result<()> {
        let mut message = Vec::with_capacity(sql.len() + 6);
        message.push(b'Q');
        message.extend_from_slice(&u32::try_from(sql.len() + 5)?.to_be_bytes());
        message.extend_from_slice(sql.as_bytes());
        message.push(0);
        self.0.write_all(&message)?;
        self.ready()
    }

    /// A message without a type, which only the first one is.
    fn send(&mut self, body: &[u8]) -> anyhow::Result<()> {
        let length = u32::try_from(body.len() + 4)?.to_be_bytes();
        Ok(self.0.write_all(&[&length, body].concat())?)
    }

    /// Reads up to where the server waits for the next statement.
    fn ready(&mut self) -> anyhow::Result<()> {
        let mut failed = None;
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let [kind, length @ ..] = head;
            let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
            self.0.read_exact(&mut body)?;
            match kind {
                b'E' => failed = Some(String::from_utf8_lossy(&body).replace('\0', " ")),
                b'Z' => break,
                _ => {}
            }
        }
        failed.map_or(Ok(()), |why| Err(anyhow::anyhow!("PostgreSQL refused: {why}")))
    }
}
