//! The program `entente`: parse, run, exit code; nothing else.

fn main() -> std::process::ExitCode {
    entente::cli::run()
}
