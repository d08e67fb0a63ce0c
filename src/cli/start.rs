//! From a parsed command line to a running command: the runtime, the signals, the one place that knows which command
//! is which function of `run`, and what is said to the user before and after.

use std::io::{self, Write};
use std::process::ExitCode;

use tokio::runtime::Builder;

use super::name::{self, NameArgs};
use super::{Cli, Command, NameArg, TrustCommand};
use crate::config::{Config, Settings, Sources};
use crate::run::shutdown::{Shutdown, signals};
use crate::run::{self, EXIT_USAGE, RunError};

/// Runs a command that stays up until it ends or is told to.
///
/// # Errors
///
/// Whatever ended the command other than well.
pub fn dispatch(cli: Cli, settings: Settings) -> Result<(), RunError> {
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| RunError::System { what: "cannot start threads", source })?;
    let result = runtime.block_on(serve(cli, settings));
    // A name look-up that hangs in the resolver cannot be cancelled, and must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Runs the command under the signals of the process.
async fn serve(cli: Cli, settings: Settings) -> Result<(), RunError> {
    let shutdown = Shutdown::new(settings.config.limits.drain_timeout);
    let signals = signals().map_err(|source| RunError::System { what: "cannot wait for signals", source })?;
    tokio::spawn(shutdown.clone().watch(signals, |code| std::process::exit(code.into())));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), command = cli.command.word(), "nws starts");
    settings.drop_in.log();
    shutdown.supervise(start(cli, settings, shutdown.clone())).await
}

/// The commands that stay up, one arm each.
async fn start(cli: Cli, settings: Settings, shutdown: Shutdown) -> Result<(), RunError> {
    match &cli.command {
        Command::Name(args) => answer(&name::run_with(args, &settings).await?),
        Command::Proxy(_) => {
            let reread = move || cli.settings(Sources::of_process()).map(|settings| settings.config);
            run::proxy::run(settings.config, shutdown, reread).await
        }
        Command::Exit(_) => {
            let keys = run::key::load(settings.private_key.as_ref(), settings.config.exit.key_file.as_deref())?;
            let reread = move || cli.settings(Sources::of_process()).map(|settings| settings.config);
            run::exit::run(settings.config, keys, shutdown, reread).await
        }
        Command::Connect(args) => {
            let (to, through) = (args.destination()?, args.reach.through());
            run::connect::run(settings.config, to, through, shutdown).await
        }
        Command::Forward(args) => {
            let forwards = args.forwards.iter().map(|arg| arg.0.clone()).collect();
            let (through, info_file) = (args.reach.through(), args.info_file.clone());
            run::forward::run(settings.config, forwards, through, info_file, shutdown).await
        }
        Command::Doctor(args) => {
            let name = args.name.clone();
            run::doctor::run(settings, name, shutdown).await
        }
        Command::Check => answer(&run::doctor::checked(&settings)),
        Command::Exits(args) => run::exits::run(settings.config, args.wait, args.probe, args.json, shutdown).await,
        Command::Cert(args) => {
            let relays = args.relays(&settings.config)?.to_vec();
            let NameArg { text, name } = &args.name;
            let Config { limits, relay_proxy, .. } = settings.config;
            run::cert::run(limits, relay_proxy.upstream(), text, name, &relays, args.wait, shutdown).await
        }
        Command::Trust(what) => {
            let directory = run::trust::directory(&settings.config.proxy.trust)?;
            match what {
                TrustCommand::Init(_) => run::trust::init(&directory),
                TrustCommand::Install(args) => run::trust::install(&directory, &args.stores()),
                TrustCommand::Remove(args) => run::trust::remove(&directory, &args.stores()),
            }
        }
        Command::Relay(_) => run::relay::run(settings.config, shutdown).await,
        Command::Demo(args) => run::demo::run(settings.config, args.once, shutdown).await,
    }
}

/// Says what is wrong with a command line, or the help or version that it asks for.
#[must_use]
pub fn refuse(error: &clap::Error) -> ExitCode {
    // Nothing can be done about a closed terminal.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
}

/// Says why a command ended, on standard error, and gives its exit code.
#[must_use]
pub fn complain(error: &RunError) -> ExitCode {
    let _ = writeln!(io::stderr(), "nws: {error}");
    ExitCode::from(error.exit_code())
}

/// Runs `nws name`, which needs neither configuration nor runtime.
///
/// # Errors
///
/// The name, key or relay is wrong, or nobody reads the answer.
pub fn print_name(args: &NameArgs) -> Result<(), RunError> {
    let output = name::run(args).map_err(|error| RunError::Usage(error.to_string()))?;
    if let Some(warning) = output.warning {
        let _ = writeln!(io::stderr(), "nws: {warning}");
    }
    answer(&output.stdout)
}

/// Writes an answer on standard output.
fn answer(text: &str) -> Result<(), RunError> {
    writeln!(io::stdout(), "{text}").map_err(|source| RunError::System { what: "cannot write the answer", source })
}
