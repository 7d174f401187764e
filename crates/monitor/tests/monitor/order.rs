//! The order of entries: what is missing stands until it comes, and what is remembered survives the process.

use std::sync::Arc;

use bytes::Bytes;
use epigraph_core::{LeafIndex, UnixMillis};
use epigraph_monitor::audit::{Broken, Sequence, SequenceRule};
use epigraph_monitor::finding::Code;
use epigraph_monitor::run::StartError;
use epigraph_monitor::standing::Condition;

use crate::liar::Liar;
use crate::support::{Home, origin};
use crate::trees::Tree;

/// Entries are numbers; below the highest none is missing, and none comes twice.
#[derive(Clone, Default)]
struct Numbers(Vec<u64>);

impl SequenceRule for Numbers {
    fn begin(&self) -> Box<dyn Sequence> {
        Box::new(Numbers::default())
    }

    fn resume(&self, text: &str) -> Option<Box<dyn Sequence>> {
        let numbers = text.strip_prefix("numbers\n")?.lines().map(|line| line.parse().ok());
        Some(Box::new(Numbers(numbers.collect::<Option<_>>()?)))
    }
}

impl Sequence for Numbers {
    fn check(&mut self, _: LeafIndex, entry: &[u8], _: UnixMillis) -> Result<(), Broken> {
        let number = String::from_utf8(entry.to_vec()).unwrap().parse().unwrap();
        let known = self.0.contains(&number);
        self.0.push(number);
        if known { Err(Broken { rule: "twice", why: "it is there already".into() }) } else { Ok(()) }
    }

    fn stands(&self) -> Vec<Condition> {
        let highest = self.0.iter().max().copied().unwrap_or(0);
        let missing = (0..highest).filter(|number| !self.0.contains(number));
        let condition = |number| Condition {
            code: Code::SourceGap,
            subject: format!("number {number}"),
            detail: "it is missing".into(),
        };
        missing.map(condition).collect()
    }

    fn write(&self) -> String {
        let lines = self.0.iter().map(|number| format!("{number}\n"));
        format!("numbers\n{}", lines.collect::<String>())
    }

    fn duplicate(&self) -> Box<dyn Sequence> {
        Box::new(self.clone())
    }
}

/// The log goes on with these numbers.
fn append(log: &Liar, numbers: &[u64]) {
    log.change(|world| {
        world.served.extend(numbers.iter().map(|number| Bytes::from(number.to_string())));
        world.tree = Tree::of(&world.served);
    });
}

/// Fails if what is remembered is not kept, or is taken as it was read and not as it was proven.
#[tokio::test]
async fn a_gap_stands_until_it_is_filled_also_across_a_restart() {
    let log = Liar::start(vec![Bytes::from_static(b"0")]).await;
    append(&log, &[1, 4]);
    let home = Home::new();
    let rule = || Some(Arc::new(Numbers::default()) as Arc<dyn SequenceRule>);
    let readers = || vec![("log/a", log.serving.reader("a"))];
    let mut running = home.start_in_order(readers(), rule()).unwrap();
    let open = |findings: &[epigraph_monitor::finding::Finding]| {
        findings.iter().filter(|finding| finding.is_open()).count()
    };
    running.until("two are missing", |_, findings| open(findings) == 2).await;
    // Somebody else says the same of one, and has to be heard before it is over.
    let same = Condition { code: Code::SourceGap, subject: "number 3".into(), detail: "here too".into() };
    running.monitor.report(&origin(), "service", vec![same]).await.unwrap();
    running.kill().await;

    log.world().follows.clear();
    append(&log, &[2, 3, 1]);
    let mut running = home.start_in_order(readers(), rule()).unwrap();
    let found = running.finding(Code::MalformedEntry).await;
    assert_eq!(found.detail, "entry 5: twice: it is there already");
    assert!(log.world().follows.iter().all(|from| *from >= 3), "{:?}", log.world().follows);
    running.audited(6).await;
    let gaps = |findings: &[epigraph_monitor::finding::Finding]| {
        findings.iter().filter(|finding| finding.is_open() && finding.code == Code::SourceGap).count()
    };
    assert_eq!(gaps(&running.monitor.findings()), 2);
    append(&log, &[5]);
    running.audited(7).await;
    running.monitor.report(&origin(), "service", Vec::new()).await.unwrap();
    running.until("none is missing", |_, findings| gaps(findings) == 0).await;
    running.kill().await;

    // Without the rule what it remembered is let go, and with it again everything is read again.
    home.start_in_order(readers(), None).unwrap().kill().await;
    log.world().follows.clear();
    let mut running = home.start_in_order(readers(), rule()).unwrap();
    running.audited(7).await;
    running.kill().await;
}

/// A rule that cannot read what was kept is a refusal, not a fresh start.
#[tokio::test]
async fn what_was_remembered_is_not_forgotten_in_silence() {
    struct Others;
    impl SequenceRule for Others {
        fn begin(&self) -> Box<dyn Sequence> {
            Numbers::default().begin()
        }
        fn resume(&self, _: &str) -> Option<Box<dyn Sequence>> {
            None
        }
    }
    let log = Liar::start(vec![Bytes::from_static(b"0")]).await;
    let home = Home::new();
    let readers = || vec![("log/a", log.serving.reader("a"))];
    let mut running = home.start_in_order(readers(), Some(Arc::new(Numbers::default()))).unwrap();
    running.audited(1).await;
    running.kill().await;
    let refused = home.start_in_order(readers(), Some(Arc::new(Others)));
    assert!(matches!(refused.err(), Some(StartError::Rule { vantage, .. }) if vantage == "log/a"));
}
