//! Observations: what a monitor signed reads back, what was changed does not, and none passes for a checkpoint.

use epigraph_core::checkpoint::{LogSigned, decode_text};
use epigraph_core::cosignature::CosignedAt;
use epigraph_core::key::{Origin, SigningKey};
use epigraph_core::note::{self, Parsed};
use epigraph_core::observation::{
    BadObservation, MAX_NOTES, MAX_OBSERVATION_BYTES, Observation, recognise, verify,
};
use epigraph_core::{CosigningKey, UnixMillis, VKey};

fn monitor() -> SigningKey {
    SigningKey::from_seed("monitor.example".parse().unwrap(), &[5; 32].into())
}

fn keys() -> [VKey; 1] {
    [monitor().vkey().clone()]
}

fn origin() -> Origin {
    "log.example".parse().unwrap()
}

const NOTE: &str = "log.example\n5\nAAAA\n\n\u{2014} log.example AAAAAAAA\n";

fn observation(detail: &str, notes: &[&str]) -> Result<Observation, BadObservation> {
    Observation::new("stale-head", origin(), "log/1", UnixMillis(1_767_225_600_000), detail, notes)
}

/// `docs/formats/observation.md`, written out.
#[test]
fn the_file_is_as_documented() {
    let observation = observation("nothing new", &[NOTE]).unwrap();
    let text = "epigraph-observation@v1\ncode stale-head\norigin log.example\nsubject log/1\nat 1767225600000\n\
                detail nothing new\nnote\n> log.example\n> 5\n> AAAA\n> \n> \u{2014} log.example AAAAAAAA\n";
    let file = observation.sign(&monitor());
    assert_eq!(file, format!("{text}\n{}\n", monitor().sign_assertion(text)));
    assert!(recognise(file.as_bytes()));
    let (read, by) = verify(file.as_bytes(), &keys()).unwrap();
    assert_eq!((read.notes(), &by), ([NOTE.to_owned()].as_slice(), monitor().vkey()));
    assert_eq!(read, observation);
}

/// Broken to see it fail: the canonical form not compared, with a second signature added.
#[test]
fn a_file_with_one_bit_changed_is_refused() {
    for file in [observation("nothing new", &[NOTE, NOTE]), observation("", &[])] {
        let file = file.unwrap().sign(&monitor()).into_bytes();
        assert!(verify(&file, &keys()).is_ok());
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                assert!(verify(&changed, &keys()).is_err(), "bit {bit} of byte {at}");
            }
            assert!(verify(&file[..at], &keys()).is_err(), "cut at {at}");
        }
        for more in ["\n", "x\n", "\u{2014} stranger AAAAAAAA\n"] {
            assert!(verify(&[&file, more.as_bytes()].concat(), &keys()).is_err(), "{more:?} added");
        }
    }
}

/// Signed by a key that the reader trusts, and still not what the format says: another spelling is another file.
#[test]
fn what_would_be_written_otherwise_is_refused() {
    let sign = |text: &str| note::encode(text, [&monitor().sign_assertion(text)]);
    let lines = ["epigraph-observation@v1", "code a", "origin o", "subject s", "at 5", "detail d"];
    let text = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    assert!(verify(sign(&text(&lines)).as_bytes(), &keys()).is_ok());
    let changes: [(usize, &str, BadObservation); 12] = [
        (0, "epigraph-observation@v12", BadObservation::Header),
        (1, "code ", BadObservation::Line(2)),
        (1, "code A", BadObservation::Line(2)),
        (1, "code  a", BadObservation::Line(2)),
        (2, "origin", BadObservation::Line(3)),
        (3, "subject\u{85}s", BadObservation::Line(4)),
        (3, "subject s\u{85}", BadObservation::Line(4)),
        (4, "at 05", BadObservation::Line(5)),
        (4, "at 18446744073709551616", BadObservation::Line(5)),
        (5, "detail d\nmore", BadObservation::Line(7)),
        (5, "detail d\nnote", BadObservation::NotCanonical),
        (5, "detail d\n> x", BadObservation::Line(7)),
    ];
    for (place, line, why) in changes {
        let mut changed = lines;
        changed[place] = line;
        assert_eq!(verify(sign(&text(&changed)).as_bytes(), &keys()), Err(why), "{line:?}");
    }
    let three = text(&lines) + &"note\n> x\n".repeat(MAX_NOTES + 1);
    assert_eq!(verify(sign(&three).as_bytes(), &keys()), Err(BadObservation::Line(11)));
}

#[test]
fn only_a_named_monitor_is_believed() {
    let file = observation("nothing new", &[]).unwrap().sign(&monitor());
    let other = SigningKey::from_seed("monitor.example".parse().unwrap(), &[6; 32].into());
    // A witness's key of the same name and seed is another key.
    let witness = CosigningKey::from_seed("monitor.example".parse().unwrap(), &[5; 32].into());
    for keys in [vec![], vec![other.vkey().clone()], vec![witness.vkey().clone()]] {
        let error = verify(file.as_bytes(), &keys).unwrap_err();
        assert_eq!(error, BadObservation::UnknownKey("monitor.example".into()));
    }
}

/// Seen to fail without the limit, without the look at the first line, and with a witness's key that counts as a monitor's.
#[test]
fn what_is_none_is_refused_for_what_it_is() {
    let long = vec![b'x'; MAX_OBSERVATION_BYTES + 1];
    assert_eq!(verify(&long, &keys()), Err(BadObservation::TooLong(long.len())));
    assert_eq!(verify(b"something else", &keys()), Err(BadObservation::Header));
    // A cosignature says when a witness saw a checkpoint, and nothing else.
    let witness = CosigningKey::from_seed("monitor.example".parse().unwrap(), &[5; 32].into());
    let file = observation("nothing new", &[]).unwrap().sign(&monitor());
    let text = Parsed::parse(file.as_bytes()).unwrap().text().to_owned();
    let at = CosignedAt::of(UnixMillis(1_767_225_600_000)).unwrap();
    let cosigned = note::encode(&text, [&witness.cosign_assertion(&text, at)]);
    let refused = verify(cosigned.as_bytes(), &[witness.vkey().clone()]);
    assert_eq!(refused, Err(BadObservation::UnknownKey("monitor.example".into())));
}

/// What a monitor signs is never a log's word, even if its key is listed as a log's by mistake.
#[test]
fn no_observation_reads_as_a_checkpoint() {
    let file = observation("5", &[]).unwrap().sign(&monitor());
    assert!(decode_text(Parsed::parse(file.as_bytes()).unwrap().text()).is_err());
    let origin = Origin::new("epigraph-observation@v1").unwrap();
    assert!(LogSigned::open(file.as_bytes(), &origin, &keys()).is_err());
}

#[test]
fn what_would_not_read_back_is_not_stated() {
    let long = "x".repeat(9 * 1024);
    for (detail, notes) in [
        ("a\nb", &[][..]),
        ("a\u{1b}b", &[]),
        (long.as_str(), &[]),
        ("a", &["no line end"]),
        ("a", &[""]),
        ("a", &["tab\there\n"]),
        ("a", &["x\n", "x\n", "x\n"]),
    ] {
        assert!(observation(detail, notes).is_err(), "{detail:?} {notes:?}");
    }
    assert!(matches!(observation("a", &[&format!("{long}\n").repeat(40)]), Err(BadObservation::TooLong(_))));
}
