//! The sidecar: credentials, interception, inbound, outbound, relay, probes, drain.
