//! Looking inside a signer and a witness: what they serve is documented, and moves with what they do.

use std::fs;

use epigraph_core::{KeyName, SigningKey};
use epigraph_rpc::peer::{self, Proposed};
use zeroize::Zeroizing;

use crate::metrics::{are_documented, get, sample};
use crate::signer::Pair;
use crate::support::{House, Serving, block_on};
use crate::waiting::{until_page, wait_until_ready};
use crate::witness;

const METRICS: &str = "\n[metrics]\naddress = \"127.0.0.1:0\"\n";

fn with_metrics(house: &House, config: &str, before: &str) {
    house.edit(config, before, &format!("{}\n{before}", METRICS.trim_start()));
}

fn start(house: &House, role: &str, config: &str) -> Serving {
    house.start(role, config).unwrap_or_else(|ended| panic!("the {role} did not start: {ended}"))
}

/// Until a page has this text.
#[track_caller]
fn wait_for(serving: &Serving, path: &str, says: &str) -> String {
    until_page(serving, path, says, |_, text| text.contains(says))
}

#[test]
fn a_signer_tells_its_gate_its_heads_and_its_signatures() {
    let pair = Pair::new();
    with_metrics(&pair.house, "signer.toml", "[tls]");
    let signer = pair.signer();
    assert_eq!(get(&signer, "/healthz", 200), "alive\n");
    assert!(get(&signer, "/readyz", 503).starts_with("gated: "));
    let before = get(&signer, "/metrics", 200);
    assert_eq!(sample(&before, "epigraph_signer_gate", "state=\"waiting\""), 1.0);
    assert_eq!(sample(&before, "epigraph_signer_held_entries", ""), 3.0);

    let log = pair.log();
    wait_until_ready(&log);
    pair.publish("four\nfive\n");
    assert_eq!(get(&signer, "/readyz", 200), "ready\n");
    let after = get(&signer, "/metrics", 200);
    are_documented(&after, "A signer");
    assert_eq!(sample(&after, "epigraph_signer_gate", "state=\"passed\""), 1.0);
    assert_eq!(sample(&after, "epigraph_signer_gate", "state=\"waiting\""), 0.0);
    assert_eq!(sample(&after, "epigraph_signer_held_entries", ""), 5.0);
    assert_eq!(sample(&after, "epigraph_signer_refusals_total", "kind=\"fenced\""), 0.0);
    assert!(sample(&after, "epigraph_signer_signatures_total", "") >= 1.0);
    let term = |text: &str| sample(text, "epigraph_signer_term", "");
    assert_eq!(term(&after), term(&before) + 1.0);
    let origin = pair.house.origin();
    assert!(after.contains(&format!("epigraph_signer_held_entries{{origin=\"{origin}\"}} 5")), "{after}");
    log.stop();
    signer.stop();
}

/// Seen to fail when a refusal was not counted by its kind.
#[test]
fn a_witness_tells_what_it_holds_what_it_cosigned_and_what_it_refused() {
    let house = witness::house();
    with_metrics(&house, "w1.toml", "[[authorize]]");
    witness::init(&house).succeeded(&[]);
    let log = house.serve();
    let running = start(&house, "witness", "w1.toml");
    assert_eq!(get(&running, "/readyz", 200), "ready\n");
    let peer =
        || peer::Witness::new(&running.address, &house.tls(), &witness::SERVER.parse().unwrap()).unwrap();
    block_on(async { witness::propose_to(&house, &log, &peer(), 0).await.unwrap_err() });
    let before = get(&running, "/metrics", 200);
    are_documented(&before, "A witness");
    assert_eq!(sample(&before, "epigraph_witness_refusals_total", "kind=\"unknown_log\""), 1.0);
    assert!(!before.contains("epigraph_witness_held_entries{"), "{before}");

    witness::list_log(&house, &log);
    let listed = wait_for(&running, "/metrics", "epigraph_witness_list_changes_total{change=\"added\"} 1\n");
    assert_eq!(sample(&listed, "epigraph_witness_list_reloads_total", "taken"), 1.0);
    assert_eq!(sample(&listed, "epigraph_witness_logs", "waiting"), 1.0);
    assert_eq!(sample(&listed, "epigraph_witness_last_cosignature_timestamp_seconds", ""), 0.0);
    block_on(async {
        let Ok(Proposed::Cosigned(_)) = witness::propose_to(&house, &log, &peer(), 0).await else { panic!() };
        let Ok(Proposed::Stale { .. }) = witness::propose_to(&house, &log, &peer(), 0).await else {
            panic!()
        };
    });
    let after = get(&running, "/metrics", 200);
    assert_eq!(sample(&after, "epigraph_witness_logs", "passed"), 1.0);
    assert_eq!(sample(&after, "epigraph_witness_held_entries", &format!("\"{}\"", house.origin())), 3.0);
    assert_eq!(sample(&after, "epigraph_witness_cosignatures_total", ""), 1.0);
    assert_eq!(sample(&after, "epigraph_witness_refusals_total", "kind=\"stale\""), 1.0);
    assert_eq!(sample(&after, "epigraph_witness_silent_logs", "1h"), 0.0);
    let started = sample(&after, "epigraph_start_timestamp_seconds", "").floor();
    assert!(sample(&after, "epigraph_witness_last_cosignature_timestamp_seconds", "") >= started);

    fs::write(house.path("w1/logs.toml"), "not a list").unwrap();
    let failed =
        wait_for(&running, "/metrics", "epigraph_witness_list_reloads_total{outcome=\"failed\"} 1\n");
    assert_eq!(sample(&failed, "epigraph_witness_logs", "passed"), 1.0, "the list before holds");
    running.stop();
    log.stop();
}

/// The rule of docs/metrics.md: with more than a hundred logs none has series of its own. Seen to fail when the first hundred had.
#[test]
fn a_witness_of_many_logs_counts_them_instead_of_naming_them() {
    let house = witness::house();
    with_metrics(&house, "w1.toml", "[[authorize]]");
    witness::init(&house).succeeded(&[]);
    let list = |logs: usize| {
        let key = SigningKey::from_seed(KeyName::new("log.example").unwrap(), &Zeroizing::new([7; 32]));
        let log = |n| format!("[[log]]\norigin = \"log.example/{n}\"\nvkey = \"{}\"\n", key.vkey());
        fs::write(house.path("w1/logs.toml"), (0..logs).map(log).collect::<String>()).unwrap();
    };
    list(100);
    let running = start(&house, "witness", "w1.toml");
    let series = |text: &str| text.matches("epigraph_witness_held_entries{").count();
    assert_eq!(series(&get(&running, "/metrics", 200)), 100);
    list(101);
    let text = wait_for(&running, "/metrics", "epigraph_witness_logs{state=\"waiting\"} 101");
    assert_eq!(series(&text), 0);
    assert!(!text.contains("origin="), "{text}");
    running.stop();
}
