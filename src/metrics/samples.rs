//! Metrics whose values are read when somebody looks, in the words of the registry: what the collectors of roles share.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// The labels of a sample, and its value.
pub type Sample<'a, const N: usize, V> = ([(&'static str, &'a str); N], V);

/// One metric after another.
pub struct Samples<'a>(pub DescriptorEncoder<'a>);

impl Samples<'_> {
    pub fn gauge<'s, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = Sample<'s, N, f64>>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    pub fn counter<'s, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'s, N, u64>>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// What fell into each class, by its upper end, in order; the last one has none.
    pub fn histogram<'s, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        samples: impl IntoIterator<Item = Sample<'s, N, (f64, Vec<(f64, u64)>)>>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, Some(unit), MetricType::Histogram)?;
        for (labels, (sum, classes)) in samples {
            let count = classes.iter().map(|(_, count)| count).sum();
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &classes, None)?;
        }
        Ok(())
    }

    /// A gauge with one sample and no labels.
    pub fn value(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    /// A counter with one sample and no labels.
    pub fn count(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }
}

/// 1 for yes.
pub fn flag(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}
