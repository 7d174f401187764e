#![allow(warnings)]
#[path = "../../../benches/runbook/records.rs"]
mod records;
use epigraph_core::{Entropy, SourceKey, UnixMillis};
use epigraph_event::Batch;
use epigraph_event::batch::Unverified;
use epigraph_event::chain::Tip;
use epigraph_event::decode::{Context, cloudtrail, k8s};
use epigraph_event::sensitive::{ALL, Detectors, TokenKey};
use records::{Kind, Records};
use std::time::Instant;
struct E(std::sync::atomic::AtomicU64);
impl Entropy for E {
    fn fill(&self, b: &mut [u8]) {
        let c = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_le_bytes();
        b.iter_mut().zip(c.into_iter().cycle()).for_each(|(b, c)| *b = c);
    }
}
fn cpu() -> f64 {
    let t = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    t.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}
fn main() {
    let n = 8192u64;
    let r = Records { seed: 20_260_302, count: n };
    let recs: Vec<_> = (0..n).map(|i| r.record(i)).collect();
    let bytes: usize = recs.iter().map(|(_, r)| r.len()).sum();
    let key = SourceKey::from_seed("bench".parse().unwrap(), &zeroize::Zeroizing::new([7; 32]));
    let det = Detectors::new(TokenKey::from_bytes(zeroize::Zeroizing::new([7; 32])), &ALL);
    let e = E(Default::default());
    let ctx = Context { tenant: "cluster-one".into(), ..Context::default() };
    let per = |s: f64| s * 1e6 / n as f64;
    println!("{n} records of {:.0} bytes", bytes as f64 / n as f64);
    let now = || Instant::now();
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); 8];
    for round in 0..12 {
        let mut tip = Tip::default();
        for recs in recs.chunks(256) {
            let mut nth = 0;
            let mut add = |t: Instant| {
                times[nth].push(t.elapsed().as_secs_f64() * 1e6 / 256.);
                nth += 1;
            };
            let t = now();
            for (_, r) in recs {
                std::hint::black_box(serde_json::from_str::<serde_json::Value>(r).unwrap());
            }
            add(t);
            let t = now();
            let mut evs: Vec<_> = recs
                .iter()
                .map(|(k, r)| {
                    match k {
                        Kind::CloudTrail => cloudtrail::decode(r.as_bytes(), &ctx),
                        Kind::Kubernetes => k8s::decode(r.as_bytes(), &ctx),
                    }
                    .remove(0)
                    .unwrap()
                })
                .collect();
            add(t);
            let t = now();
            for ev in &mut evs {
                det.apply(ev);
            }
            add(t);
            let t = now();
            let sealed: Vec<_> = evs.into_iter().map(|ev| ev.seal(&e).unwrap()).collect();
            add(t);
            let t = now();
            let b = Batch::sign(&key, &tip, sealed, UnixMillis(1)).unwrap();
            add(t);
            tip = Tip::after(b.signed());
            let t = now();
            let bytes = b.encode();
            add(t);
            let t = now();
            let un = Unverified::decode(&bytes).unwrap();
            add(t);
            let t = now();
            std::hint::black_box(un.verify(key.vkey()).unwrap());
            add(t);
        }
    }
    let t: Vec<f64> = times
        .iter_mut()
        .map(|t| {
            t.sort_by(f64::total_cmp);
            t[t.len() / 4]
        })
        .collect();
    let total: f64 = t[1..6].iter().sum();
    println!(
        "us/event: parse {:.2} | decode {:.2} apply {:.2} seal {:.2} sign {:.2} encode {:.2} = {:.2} ({:.0} MB/s) | undecode {:.2} verify {:.2}",
        t[0],
        t[1],
        t[2],
        t[3],
        t[4],
        t[5],
        total,
        bytes as f64 / n as f64 / total,
        t[6],
        t[7]
    );
}
