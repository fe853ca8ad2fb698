//! The program `entente-proxy`: the sidecar alone, so that a pod holds no page of what only the controller needs.

fn main() -> std::process::ExitCode {
    entente::cli::run_proxy()
}
