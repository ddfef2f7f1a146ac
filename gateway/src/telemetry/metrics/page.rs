//! The Prometheus text format as Envoy prints it: counters, gauges, histograms, each in alphabetical order; a `# TYPE`
//! line for each family and no `# HELP`; empty braces where there are no labels.
//!
//! Source: `reference/telemetry-and-operations.md` §1.5, §2.1.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

/// A page under construction.
#[derive(Debug, Default)]
pub struct Page {
    families: BTreeMap<(Kind, &'static str), String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Page {
    /// Adds a sample of a counter.
    pub fn counter(&mut self, name: &'static str, labels: &[(&str, &str)], value: u64) {
        self.counter_with(name, &render(labels), value);
    }

    /// Adds a sample of a counter whose labels are rendered already.
    pub(super) fn counter_with(&mut self, name: &'static str, labels: &str, value: u64) {
        self.sample(Kind::Counter, name, "", labels, value);
    }

    /// Adds a sample of a gauge.
    pub fn gauge(&mut self, name: &'static str, labels: &[(&str, &str)], value: u64) {
        self.sample(Kind::Gauge, name, "", &render(labels), value);
    }

    /// Adds a histogram: the counts of the buckets up to each bound and, last, of those above all bounds.
    pub(super) fn histogram(
        &mut self,
        name: &'static str,
        labels: &str,
        bounds: &[&str],
        counts: &[u64],
        sum: impl Display,
    ) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut cumulative = 0;
        for (bound, count) in bounds.iter().chain(&["+Inf"]).zip(counts) {
            cumulative += count;
            self.sample(Kind::Histogram, name, "_bucket", &format!("{labels}{comma}le=\"{bound}\""), cumulative);
        }
        self.sample(Kind::Histogram, name, "_sum", labels, sum);
        self.sample(Kind::Histogram, name, "_count", labels, cumulative);
    }

    /// The text.
    pub fn finish(self) -> String {
        let mut text = String::new();
        for ((kind, name), samples) in self.families {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            // Writing to a string can't fail.
            let _ = writeln!(text, "# TYPE {name} {kind}");
            text.push_str(&samples);
        }
        text
    }

    fn sample(&mut self, kind: Kind, name: &'static str, suffix: &str, labels: &str, value: impl Display) {
        let samples = self.families.entry((kind, name)).or_default();
        let _ = writeln!(samples, "{name}{suffix}{{{labels}}} {value}");
    }
}

/// `a="1",b="2"`, with `\`, `"` and line ends escaped.
pub(super) fn render(labels: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (index, (name, value)) in labels.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_sorted_by_kind_and_name() {
        let mut page = Page::default();
        page.histogram("c_ms", "a=\"1\"", &["0.5", "1"], &[1, 0, 2], 12);
        page.gauge("b", &[], 7);
        page.counter("z_total", &[("path", "a\\b\"c\n")], 1);
        page.counter("a_total", &[], 2);
        assert_eq!(
            page.finish(),
            "# TYPE a_total counter\n\
             a_total{} 2\n\
             # TYPE z_total counter\n\
             z_total{path=\"a\\\\b\\\"c\\n\"} 1\n\
             # TYPE b gauge\n\
             b{} 7\n\
             # TYPE c_ms histogram\n\
             c_ms_bucket{a=\"1\",le=\"0.5\"} 1\n\
             c_ms_bucket{a=\"1\",le=\"1\"} 1\n\
             c_ms_bucket{a=\"1\",le=\"+Inf\"} 3\n\
             c_ms_sum{a=\"1\"} 12\n\
             c_ms_count{a=\"1\"} 3\n"
        );
    }
}
