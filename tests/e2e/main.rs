//! Promises on a real Kubernetes: the node of `./up node` with the chart installed. `./test cluster` runs them.

mod cluster;
mod workloads;

mod changes;
mod objects;
mod outage;
mod refused;
mod renewal;
mod server_tls;
mod talk;
mod chart;
