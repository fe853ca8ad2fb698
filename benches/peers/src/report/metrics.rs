//! What is measured: its name among the samples, its name for readers, which figures are good, and what was promised.

use crate::stats::Better;

/// What a figure was promised to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// So many times the best peer's: at least where higher is better, at most where lower is
    OfBest(f64),
    /// The same, of one peer
    Of(&'static str, f64),
    /// No more than this
    AtMost(f64),
    Nothing,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    pub(super) target: Target,
}

const fn metric(name: &'static str, title: &'static str, unit: &'static str, better: Better, target: Target) -> Metric {
    Metric { name, title, unit, better, target }
}

/// All of them, in the order in which they are told.
pub(super) const METRICS: &[Metric] = &{
    use Better::{Higher, Lower};
    use Target::{AtMost, Nothing, Of, OfBest};
    [
        metric("bulk_up_gbps", "bytes to the server", "Gbit/s", Higher, OfBest(1.35)),
        metric("bulk_down_gbps", "bytes to the client", "Gbit/s", Higher, OfBest(1.35)),
        metric("bulk_up_cpu_s_per_gb", "CPU for bytes to the server", "s/GB", Lower, OfBest(0.65)),
        metric("bulk_down_cpu_s_per_gb", "CPU for bytes to the client", "s/GB", Lower, OfBest(0.65)),
        metric("requests_per_s", "requests on 32 connections", "1/s", Higher, OfBest(1.3)),
        metric("requests_p50_us", "their latency, p50", "µs", Lower, OfBest(0.77)),
        metric("requests_p99_us", "their latency, p99", "µs", Lower, OfBest(0.7)),
        metric("single_p50_us", "requests on one connection, p50", "µs", Lower, OfBest(0.95)),
        metric("paced_p50_us", "requests at a fixed rate, p50", "µs", Lower, OfBest(0.77)),
        metric("paced_p99_us", "requests at a fixed rate, p99", "µs", Lower, OfBest(0.7)),
        metric("storm_p99_us", "the same in a storm of connections, p99", "µs", Lower, OfBest(0.7)),
        metric("handshakes_per_s", "full handshakes, a connection each", "1/s", Higher, Of("envoy", 2.0)),
        metric("handshake_cpu_us", "CPU for a full handshake", "µs", Lower, Nothing),
        // What ztunnel's multiplexed connections reached beside Envoy on the same machine: 7,102 to 1,726.
        metric("connects_per_s", "new connections", "1/s", Higher, Of("envoy", 4.12)),
        metric("connect_cpu_us", "CPU for a new connection", "µs", Lower, Nothing),
        metric("idle_pss_kib", "memory of both when idle", "KiB", Lower, AtMost(10_000.0)),
        metric("idle_kib_per_connection", "memory of both for an idle connection", "KiB", Lower, AtMost(12.0)),
        metric("syscalls_per_gb", "system calls for bytes", "1/GB", Lower, Nothing),
        metric("syscalls_per_request", "system calls for a request", "", Lower, Nothing),
    ]
};

/// The metric of this name.
pub(super) fn named(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}
