//! What operators take from deploy/: every expression parses, and names only what is documented.

use std::collections::BTreeSet;
use std::fs;

use promql_parser::parser::{self, Expr};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::metrics::documented;

fn file(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The metrics that a query asks for, and of which values of their labels.
#[derive(Default)]
struct Named {
    metrics: BTreeSet<String>,
    /// Metric and value; of a pattern each of its words.
    values: BTreeSet<(String, String)>,
}

impl ExprVisitor for Named {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        let selector = match expr {
            Expr::VectorSelector(selector) => selector,
            Expr::MatrixSelector(matrix) => &matrix.vs,
            _ => return Ok(true),
        };
        let name = selector.name.clone().ok_or("a selector without a name")?;
        for matcher in &selector.matchers.matchers {
            let words = matcher.value.split('|').map(|word| (name.clone(), word.to_owned()));
            self.values.extend(words);
        }
        self.metrics.insert(name);
        Ok(true)
    }
}

fn named_by(query: &str) -> Result<Named, String> {
    let mut named = Named::default();
    walk_expr(&mut named, &parser::parse(query)?)?;
    Ok(named)
}

/// The metrics that a query asks for, or why it is none.
fn metrics_of(query: &str) -> Result<BTreeSet<String>, String> {
    Ok(named_by(query)?.metrics)
}

/// The alerts of deploy/alerts.yml: name and query.
fn alerts() -> Vec<(String, String)> {
    let rules = YamlLoader::load_from_str(&file("deploy/alerts.yml")).unwrap();
    let groups = rules[0]["groups"].as_vec().unwrap();
    let alerts = groups.iter().flat_map(|group| group["rules"].as_vec().unwrap());
    let text = |value: &Yaml| value.as_str().unwrap().to_owned();
    alerts.map(|alert| (text(&alert["alert"]), text(&alert["expr"]))).collect()
}

/// Every metric of the query has a row in docs/metrics.md. A histogram has its series under names of their own.
#[track_caller]
fn check_query(query: &str, of_prometheus: &[&str]) -> BTreeSet<String> {
    let named = metrics_of(query).unwrap_or_else(|why| panic!("{query}: {why}"));
    let documented = documented();
    for name in &named {
        let series = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
        let known = documented
            .iter()
            .any(|(known, kind, _)| known == name || (kind == "histogram" && Some(known.as_str()) == series));
        assert!(known || of_prometheus.contains(&name.as_str()), "{query}: {name} is not documented");
    }
    named
}

#[test]
fn the_parser_tells_queries_from_what_is_none() {
    for query in ["rate(x[5m]", "sum by (a b) (x)", "x +", "x{a=b}", "rate(x)"] {
        assert!(metrics_of(query).is_err(), "{query}");
    }
    let names = metrics_of("sum(rate(a_total[5m])) / on (x) b > time() - c").unwrap();
    assert_eq!(names, ["a_total", "b", "c"].map(String::from).into());
}

#[test]
fn every_alert_asks_for_documented_metrics_and_says_what_to_do() {
    let rules = YamlLoader::load_from_str(&file("deploy/alerts.yml")).unwrap();
    let groups = rules[0]["groups"].as_vec().unwrap();
    let alerts: Vec<&Yaml> = groups.iter().flat_map(|group| group["rules"].as_vec().unwrap()).collect();
    assert!(alerts.len() >= 8, "{}", alerts.len());
    let mut names = BTreeSet::new();
    for alert in alerts {
        let name = alert["alert"].as_str().unwrap();
        assert!(name.starts_with("Epigraph") && names.insert(name), "{name}");
        check_query(alert["expr"].as_str().unwrap(), &["up"]);
        assert!(["page", "ticket"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{name}");
        let said = &alert["annotations"];
        let summary = said["summary"].as_str().unwrap();
        assert!(summary.contains("{{ $labels."), "{name} does not say of what");
        assert!(said["runbook"].as_str().unwrap().len() > summary.len() / 2, "{name}");
        let keys: BTreeSet<_> = alert.as_hash().unwrap().keys().filter_map(Yaml::as_str).collect();
        let known = ["alert", "annotations", "expr", "for", "labels"].into();
        assert!(keys.is_subset(&known), "{name}: {keys:?}");
    }
}

/// F53: what was denied, what was forged and a fork raise an alert each, and no two the same; what an alert waits for is something that the
/// programs say. Broken to see it fail: a code of a refusal misspelt; the denied questions put into the alert of the forged batches.
#[test]
fn denied_reads_forged_batches_and_forks_are_alerts_of_their_own() {
    let said = [file("docs/metrics.md"), file("docs/reading.md")].concat();
    for (name, query) in alerts() {
        for (metric, word) in named_by(&query).unwrap().values {
            assert!(
                metric == "up" || said.contains(&format!("`{word}`")),
                "{name}: nobody says {word:?} of {metric}"
            );
        }
    }
    let raised_by = |metric: &str, word: &str| {
        let asks =
            |query: &str| named_by(query).unwrap().values.contains(&(metric.to_owned(), word.to_owned()));
        let alerts: Vec<_> =
            alerts().into_iter().filter(|(_, query)| asks(query)).map(|(name, _)| name).collect();
        let [alert] = &alerts[..] else { panic!("{metric} of {word}: {alerts:?}") };
        alert.clone()
    };
    let classes = [
        raised_by("epigraph_calls_total", "PERMISSION_DENIED"),
        raised_by("epigraph_audit_refused_queries_total", "FORBIDDEN"),
        raised_by("epigraph_audit_troubles_total", "bad-signature"),
        raised_by("epigraph_audit_troubles_total", "id-collision"),
        raised_by("epigraph_log_witness_troubles_total", "conflict"),
        raised_by("epigraph_witness_refusals_total", "conflict"),
    ];
    assert_eq!(classes.iter().collect::<BTreeSet<_>>().len(), classes.len(), "{classes:?}");
}

#[test]
fn the_dashboard_asks_for_documented_metrics_by_its_own_variables() {
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana-dashboard.json")).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let names: Vec<_> = list(&dashboard["templating"]["list"]).iter().map(|v| v["name"].clone()).collect();
    assert_eq!(names, ["datasource", "instance", "origin"]);

    let (mut ids, mut rows, mut asked) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    for panel in list(&dashboard["panels"]) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        if panel["type"] == "row" {
            rows.push(title.to_owned());
            continue;
        }
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}");
        for target in list(&panel["targets"]) {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let query = target["expr"].as_str().unwrap();
            let narrowed = query.matches("=~\"$origin\"").count() + query.matches("=~\"$instance\"").count();
            // What Grafana puts in before Prometheus sees it.
            let query = query.replace("$__rate_interval", "5m");
            let named = check_query(&query, &[]);
            assert_eq!(narrowed, query.matches("epigraph_").count(), "{title}: a series of all logs");
            asked.extend(named);
        }
    }
    let expected = [
        "Health",
        "Append path",
        "Publication",
        "Tree, lookup and scrubber",
        "Signer",
        "Witness",
        "Monitor",
        "Connections and refusals",
        "Process",
        "Audit service",
        "Collector",
    ];
    assert_eq!(rows, expected);
    for annotation in list(&dashboard["annotations"]["list"]) {
        check_query(&annotation["expr"].as_str().unwrap().replace("$__interval", "1m"), &[]);
    }
    // What is served and not shown anywhere is forgotten.
    for (name, kind, _) in documented() {
        let shown = if kind == "histogram" { format!("{name}_bucket") } else { name };
        assert!(asked.contains(&shown), "{shown} has no panel");
    }
}
