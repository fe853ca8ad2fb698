//! What stands beside absolute figures: machine, kernel, versions, settings, date.

use std::{fs, path::Path};

use entente::telemetry;

use crate::{
    network::{self, CLIENT},
    options::Options,
    outer::AWAKE,
    pair::Laboratory,
    peer::Peer,
    report::Fact,
};

/// One line for each fact.
pub(crate) async fn gather(options: &Options, laboratory: &Laboratory) -> Vec<Fact> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let congestion = network::output(&format!("ip netns exec {CLIENT} sysctl -n net.ipv4.tcp_congestion_control"))
        .await
        .unwrap_or_default();
    let awake = fs::read_to_string(AWAKE)
        .map_or_else(|_| "as long as the machine lets it".to_owned(), |ns| format!("{} ns before it halts", ns.trim()));
    let mut facts = vec![];
    for (name, value) in [
        ("date", telemetry::now().to_string()),
        ("processor", format!("{} ({cores} cores)", model.trim_start_matches([' ', '\t', ':']))),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("congestion control", congestion.trim().to_owned()),
        ("an idle processor looks for work", awake),
        (
            "blocks",
            format!("{} of {} s after {} s, seed {}", options.blocks, options.seconds, options.warmup, options.seed),
        ),
        ("peers' TLS", "1.3, TLS_AES_128_GCM_SHA256, X25519, P-256, no resumption, 10,000 revoked serials".to_owned()),
        (
            "entente's TLS",
            "1.3, X25519MLKEM768 where both have it, P-256, no resumption, 10,000 revoked serials".to_owned(),
        ),
    ] {
        facts.push(Fact { name: name.to_owned(), value });
    }
    for peer in Peer::ALL.into_iter().filter(|peer| *peer != Peer::Direct) {
        let words = peer.version_words(&options.envoy, &options.entente);
        let value = version(&words, &laboratory.places.folder).await;
        // Some say first where they are.
        let value = value.rsplit("version: ").next().unwrap_or_default().to_owned();
        facts.push(Fact { name: peer.name().to_owned(), value });
    }
    facts
}

/// The first line that tells a version.
async fn version(words: &[String], folder: &Path) -> String {
    let Some((program, flags)) = words.split_first() else { return String::new() };
    let Ok(output) = tokio::process::Command::new(program).args(flags).current_dir(folder).output().await else {
        return "unknown".to_owned();
    };
    let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let line = told.lines().find(|line| line.contains(|letter: char| letter.is_ascii_digit()));
    line.unwrap_or("unknown").trim().replace(&folder.display().to_string(), "")
}
