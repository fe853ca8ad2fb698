//! What the tests of the sidecar share: a trust domain, a small control server, applications, and clients that
//! misbehave.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod applications;
pub(crate) mod control;
pub(crate) mod dns;
pub(crate) mod domain;
pub(crate) mod partner;
pub(crate) mod wire;

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use entente::sidecar::PROXY_PROGRAM;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `check` answers, looking again and again; fails with `what` when patience ends.
pub(crate) async fn eventually<T, F>(what: &str, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let looking = async {
        loop {
            if let Some(answer) = check().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Ends `future` within patience.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// The words that begin a process anew in namespaces of its own (network, mounts, processes), which end with it.
pub(crate) const UNSHARE: &[&str] =
    &["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Links a program to where any user can reach it, or copies it where it cannot be linked.
pub(crate) fn place(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(drop))
}

/// Places the program `entente` in `folder`, and beside it what `entente proxy` goes on as, as in the image.
pub(crate) fn place_programs(entente: &Path, folder: &Path) -> std::io::Result<PathBuf> {
    let placed = folder.join("entente");
    place(entente, &placed)?;
    place(&entente.with_file_name(PROXY_PROGRAM), &placed.with_file_name(PROXY_PROGRAM))?;
    Ok(placed)
}

/// Shows the sidecars' logs where `ENTENTE_TEST_LOG` is set.
pub(crate) fn logs() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("ENTENTE_TEST_LOG").is_some() {
            entente::telemetry::init(entente::telemetry::LogFormat::Text);
        }
    });
}
