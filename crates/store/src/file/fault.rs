//! A directory that fails where a test says: the n-th operation, of one kind or of any, or at a crash point.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Dir, File};

/// The kinds of operations, for choosing one and for the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// [`Dir::open`] or [`Dir::open_read_only`].
    Open,
    /// [`Dir::create`].
    Create,
    /// [`Dir::rename`].
    Rename,
    /// [`Dir::remove`].
    Remove,
    /// [`Dir::protect`].
    Protect,
    /// [`Dir::is_protected`].
    IsProtected,
    /// [`Dir::list`].
    List,
    /// [`Dir::sync`].
    SyncDir,
    /// [`File::read_at`].
    Read,
    /// [`File::write_at`].
    Write,
    /// [`File::reserve`].
    Reserve,
    /// [`File::sync`].
    Sync,
    /// [`File::length`].
    Length,
}

/// How the chosen operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It answers an I/O error and did nothing.
    NotApplied,
    /// It answers an I/O error, yet it was done.
    Applied,
    /// A write puts down this many bytes, then answers an I/O error; any other operation: as `NotApplied`.
    Torn(usize),
    /// It answers that there is no space left and did nothing.
    NoSpace,
    /// It answers that it cannot be done here and did nothing.
    Unsupported,
}

/// Which operation fails, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// `None` counts operations of every kind.
    pub operation: Option<Operation>,
    /// Counted from 0, starting when the fault is set.
    pub nth: usize,
    /// How it fails.
    pub outcome: Outcome,
    /// Whether every operation after it fails too, as if the process had ended there.
    pub crash: bool,
}

/// A wrapper over any directory. Clones are handles of the same wrapper.
#[derive(Clone)]
pub struct FaultDir {
    inner: Arc<dyn Dir>,
    plan: Plan,
}

#[derive(Clone, Default)]
struct Plan(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    fault: Option<Fault>,
    crash_at: Option<(&'static str, usize)>,
    crashed: bool,
    fired: bool,
    operations: Vec<Operation>,
    points: Vec<&'static str>,
}

impl FaultDir {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn Dir>) -> FaultDir {
        FaultDir { inner, plan: Plan::default() }
    }

    /// Sets the one fault; its count starts now.
    pub fn inject(&self, fault: Fault) {
        self.plan.script().fault = Some(fault);
    }

    /// Lets every operation fail once the crash point `name` was passed `nth` times more (from 0) than now.
    pub fn crash_at(&self, name: &'static str, nth: usize) {
        self.plan.script().crash_at = Some((name, nth));
    }

    /// Takes back the fault and the crash.
    pub fn heal(&self) {
        let mut script = self.plan.script();
        (script.fault, script.crash_at, script.crashed) = (None, None, false);
    }

    /// Whether the fault or the crash point was reached.
    pub fn fired(&self) -> bool {
        self.plan.script().fired
    }

    /// All operations so far, in order; also those that failed.
    pub fn operations(&self) -> Vec<Operation> {
        self.plan.script().operations.clone()
    }

    /// All crash points passed so far, in order.
    pub fn points(&self) -> Vec<&'static str> {
        self.plan.script().points.clone()
    }
}

impl Plan {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to become of the operation that comes now; `None` if it just goes on.
    fn next(&self, operation: Operation) -> Option<Outcome> {
        let mut script = self.script();
        script.operations.push(operation);
        if script.crashed {
            return Some(Outcome::NotApplied);
        }
        let fault =
            script.fault.as_mut().filter(|fault| fault.operation.is_none_or(|kind| kind == operation))?;
        if fault.nth > 0 {
            fault.nth -= 1;
            return None;
        }
        let Fault { outcome, crash, .. } = *fault;
        script.fault = None;
        (script.crashed, script.fired) = (crash, true);
        Some(outcome)
    }

    fn run<T>(&self, operation: Operation, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.next(operation) {
            None => work(),
            Some(Outcome::NoSpace) => Err(io::ErrorKind::StorageFull.into()),
            Some(Outcome::Unsupported) => Err(io::ErrorKind::Unsupported.into()),
            Some(Outcome::Applied) => {
                work()?;
                Err(injected(operation))
            }
            Some(Outcome::NotApplied | Outcome::Torn(_)) => Err(injected(operation)),
        }
    }

    fn wrap(&self, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(FaultFile { inner: file, plan: self.clone() })
    }
}

fn injected(operation: Operation) -> io::Error {
    io::Error::other(format!("injected fault in {operation:?}"))
}

impl Dir for FaultDir {
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.plan.run(Operation::Open, || self.inner.open(name)).map(|file| self.plan.wrap(file))
    }

    fn open_read_only(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.plan.run(Operation::Open, || self.inner.open_read_only(name)).map(|file| self.plan.wrap(file))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.plan.run(Operation::Create, || self.inner.create(name)).map(|file| self.plan.wrap(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.plan.run(Operation::Rename, || self.inner.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.plan.run(Operation::Remove, || self.inner.remove(name))
    }

    fn protect(&self, name: &str) -> io::Result<()> {
        self.plan.run(Operation::Protect, || self.inner.protect(name))
    }

    fn is_protected(&self, name: &str) -> io::Result<bool> {
        self.plan.run(Operation::IsProtected, || self.inner.is_protected(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.plan.run(Operation::List, || self.inner.list())
    }

    fn sync(&self) -> io::Result<()> {
        self.plan.run(Operation::SyncDir, || self.inner.sync())
    }

    fn crash_point(&self, name: &'static str) {
        let mut script = self.plan.script();
        script.points.push(name);
        match &mut script.crash_at {
            Some((wanted, 0)) if *wanted == name => (script.crashed, script.fired) = (true, true),
            Some((wanted, left)) if *wanted == name => *left -= 1,
            _ => {}
        }
    }
}

struct FaultFile {
    inner: Box<dyn File>,
    plan: Plan,
}

impl File for FaultFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.plan.run(Operation::Read, || self.inner.read_at(offset, buffer))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self.plan.next(Operation::Write) {
            None => self.inner.write_at(offset, bytes),
            Some(Outcome::NoSpace) => Err(io::ErrorKind::StorageFull.into()),
            Some(Outcome::Unsupported) => Err(io::ErrorKind::Unsupported.into()),
            Some(Outcome::NotApplied) => Err(injected(Operation::Write)),
            Some(Outcome::Applied) => self.torn(offset, bytes),
            Some(Outcome::Torn(kept)) => self.torn(offset, bytes.get(..kept).unwrap_or(bytes)),
        }
    }

    fn reserve(&self, length: u64) -> io::Result<()> {
        self.plan.run(Operation::Reserve, || self.inner.reserve(length))
    }

    fn sync(&self) -> io::Result<()> {
        self.plan.run(Operation::Sync, || self.inner.sync())
    }

    fn length(&self) -> io::Result<u64> {
        self.plan.run(Operation::Length, || self.inner.length())
    }
}

impl FaultFile {
    fn torn(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, bytes)?;
        Err(injected(Operation::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryDir;
    use super::*;

    fn check(outcome: Outcome, crash: bool, kept: &[u8], next_write_works: bool) {
        let memory = MemoryDir::new();
        let dir = FaultDir::new(Arc::new(memory.clone()));
        let file = dir.create("a").unwrap();
        file.write_at(0, b"....").unwrap();
        dir.inject(Fault { operation: Some(Operation::Write), nth: 1, outcome, crash });
        file.write_at(0, b"1").unwrap();
        assert!(file.write_at(1, b"abc").is_err());
        assert!(dir.fired());
        assert_eq!(memory.content("a").unwrap(), kept, "{outcome:?}");
        assert_eq!(file.sync().is_ok(), next_write_works, "{outcome:?}");
    }

    #[test]
    fn the_chosen_operation_fails_as_told() {
        check(Outcome::NotApplied, false, b"1...", true);
        check(Outcome::Applied, false, b"1abc", true);
        check(Outcome::Torn(2), true, b"1ab.", false);
        check(Outcome::NoSpace, false, b"1...", true);
    }

    #[test]
    fn after_a_crash_point_nothing_works_until_healed() {
        let dir = FaultDir::new(Arc::new(MemoryDir::new()));
        dir.crash_at("here", 1);
        dir.crash_point("here");
        dir.create("a").unwrap();
        dir.crash_point("here");
        assert!(dir.create("b").is_err() && dir.list().is_err());
        dir.heal();
        assert_eq!(dir.list().unwrap(), ["a"]);
        assert_eq!(dir.points(), ["here", "here"]);
    }
}
