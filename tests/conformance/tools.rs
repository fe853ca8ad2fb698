//! The programs of others, each behind one function, and the folder they read from.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// A folder of PEM files.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file; answers its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

/// Runs OpenSSL in `folder`; what it says is part of a failure.
pub(crate) fn openssl(folder: &Folder, arguments: &[&str]) {
    let output = run(Command::new("openssl").current_dir(folder.path()).args(arguments));
    assert!(output.status.success(), "openssl {}: {}", arguments.join(" "), said(&output));
}

/// What OpenSSL says of `leaf`, whose chain is `above`, with `roots` and lists of everybody in the chain.
pub(crate) fn verify(folder: &Folder, leaf: &str, above: &[String], roots: &str, lists: &str) -> Result<(), String> {
    let [leaf, above, roots, lists] = [
        folder.file("leaf.pem", leaf),
        folder.file("above.pem", &above.concat()),
        folder.file("ca.crt", roots),
        folder.file("crl.pem", lists),
    ];
    let mut command = Command::new("openssl");
    command.args(["verify", "-x509_strict", "-check_ss_sig", "-crl_check_all", "-no-CApath", "-no-CAstore"]);
    command.arg("-CAfile").arg(roots).arg("-untrusted").arg(above).arg("-CRLfile").arg(lists);
    let output = run(command.arg(leaf));
    if output.status.success() { Ok(()) } else { Err(said(&output)) }
}

/// A program that `./test conformance` installs: its folder is the value of `variable`.
pub(crate) fn installed(variable: &str, program: &str) -> Command {
    let folder = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: run ./test conformance"));
    Command::new(Path::new(&folder).join(program))
}

pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display()))
}

pub(crate) fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}
