//! The directions between modules, and the purity of the core.

use std::{collections::BTreeMap, fs, path::Path};

/// What each module may import.
const MAY_USE: &[(&str, &[&str])] = &[
    ("identity", &["refusal"]),
    ("refusal", &[]),
    ("brief", &["identity", "refusal"]),
    ("sidecar", &[]),
    ("pki", &["brief", "identity", "refusal"]),
    ("api", &[]),
    ("topology", &["api", "brief", "identity", "pki", "sidecar"]),
    ("plan", &["api", "brief", "identity", "pki", "refusal", "sidecar", "topology"]),
    (
        "controller",
        &[
            "api",
            "brief",
            "handshakes",
            "identity",
            "mounted",
            "pki",
            "plan",
            "refusal",
            "sidecar",
            "telemetry",
            "topology",
        ],
    ),
    ("proxy", &["brief", "handshakes", "identity", "mounted", "pki", "refusal", "sidecar", "telemetry"]),
    ("handshakes", &["pki"]),
    ("mounted", &["identity", "telemetry"]),
    ("telemetry", &[]),
    ("cli", &["api", "controller", "pki", "plan", "proxy", "sidecar", "telemetry"]),
];

const CORE: &[&str] = &["identity", "refusal", "brief", "sidecar", "pki", "api", "topology", "plan"];

/// What the core never says: async, clock, dice, environment, files, sockets, clients.
const IMPURE: &[&str] = &[
    "async fn",
    ".await",
    "tokio::",
    "SystemTime::now",
    "Timestamp::now",
    "Instant::now",
    "std::env",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "kube::Client",
    "telemetry::",
    "rand::",
    "KeyPair::generate",
];

const LONGEST_FILE: usize = 600;

fn sources() -> BTreeMap<String, Vec<(String, String)>> {
    let mut found = BTreeMap::<String, Vec<(String, String)>>::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let inner = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            let module = inner.split(['/', '.']).next().unwrap().to_owned();
            found.entry(module).or_default().push((inner, fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

/// The code of a file without its tests.
fn code(file: &str, text: &str) -> String {
    if file.ends_with("tests.rs") {
        return String::new();
    }
    let tests = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..tests].lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn used(code: &str) -> Vec<String> {
    let mut names = vec![];
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + 7..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for character in list.chars() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => names.push(std::mem::take(&mut name)),
                    _ if depth == 0 => name.push(character),
                    _ => {}
                }
            }
            names.push(name);
        } else {
            names.push(rest.to_owned());
        }
    }
    let word = |name: String| name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    names.into_iter().map(word).filter(|name| !name.is_empty()).collect()
}

#[test]
fn modules_import_in_one_direction_only() {
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    for (module, files) in sources() {
        let Some(allowed) = rules.get(module.as_str()) else {
            assert!(matches!(module.as_str(), "bin" | "lib" | "main"), "module {module} has no place in the map");
            continue;
        };
        for (file, text) in files {
            for name in used(&code(&file, &text)) {
                let fine = name == module || allowed.contains(&name.as_str());
                assert!(fine, "{file} imports crate::{name}, which {module} must not");
            }
        }
    }
}

#[test]
fn the_core_is_plain_functions_over_values() {
    for (module, files) in sources().into_iter().filter(|(module, _)| CORE.contains(&module.as_str())) {
        for (file, text) in files {
            let code = code(&file, &text);
            for word in IMPURE {
                assert!(!code.contains(word), "{file} of {module} says {word:?}");
            }
        }
    }
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    for (file, text) in sources().into_values().flatten() {
        let lines = code(&file, &text).lines().count();
        assert!(lines <= LONGEST_FILE, "{file} has {lines} lines, {LONGEST_FILE} at most");
    }
}

#[test]
fn a_verifier_is_replaced_in_two_places_only() {
    let places: Vec<String> = sources()
        .into_values()
        .flatten()
        .filter(|(file, text)| code(file, text).contains(".dangerous()"))
        .map(|(file, _)| file)
        .collect();
    assert!(places.len() <= 2, "`dangerous()` stands in {places:?}");
}
