//! The committed definitions are those that the code generates; `UPDATE=1` writes them.

use std::{fs, path::Path};

use entente::api::crds::{render, templated};

#[allow(clippy::disallowed_methods, reason = "a golden file is rewritten on request")]
fn same(file: &Path, text: &str) {
    if std::env::var("UPDATE").is_ok() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let held = fs::read_to_string(file).unwrap_or_default();
    assert!(
        held == text,
        "{} is not what the code generates: run UPDATE=1 cargo test --test integration",
        file.display()
    );
}

#[test]
fn the_definitions_in_crds_and_in_the_chart_are_generated_from_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, yaml) in render().unwrap() {
        same(&root.join("crds").join(name), &yaml);
        same(&root.join("charts/entente/templates/crds").join(name), &templated(&yaml));
    }
}
