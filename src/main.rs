//! The `nws` command: parse, start, exit code. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use nws::cli::{self, Cli};
use nws::config::Sources;
use nws::run::{RunError, log};

/// musl's own has one lock for all threads (Cargo.toml says what that costs).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::refuse(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::complain(&error),
    }
}

/// Runs what the command line asks for.
fn run(cli: Cli) -> Result<(), RunError> {
    if let Some(answered) = cli::answer(&cli) {
        return answered;
    }
    let settings = cli.settings(Sources::of_process())?;
    log::start(&settings.config.log);
    cli::dispatch(cli, settings)
}
