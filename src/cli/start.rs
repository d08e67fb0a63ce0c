//! From a parsed command line to a running command: the runtime, the signals, the one place that knows which command
//! is which function of `run`, and what is said to the user before and after.

use std::io::{self, Write};
use std::process::ExitCode;

use tokio::runtime::Builder;

use super::environment::{self, EnvArgs};
use super::generate::{self, ManArgs};
use super::name::{self, NameArgs};
use super::{Cli, Command, NameArg, TrustCommand};
use crate::config::{Config, Settings, Sources};
use crate::run::shutdown::{Shutdown, signals};
use crate::run::sockets::Inherited;
use crate::run::{self, EXIT_USAGE, RunError, log};

/// Runs a command that stays up until it ends or is told to.
///
/// # Errors
///
/// Whatever ended the command other than well.
pub fn dispatch(cli: Cli, settings: Settings) -> Result<(), RunError> {
    let inherited =
        Inherited::take().map_err(|source| RunError::System { what: "cannot use the sockets passed to us", source })?;
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| RunError::System { what: "cannot start threads", source })?;
    let result = runtime.block_on(serve(cli, settings, inherited));
    // A name look-up that hangs in the resolver cannot be cancelled, and must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Runs the command under the signals of the process.
async fn serve(cli: Cli, settings: Settings, inherited: Inherited) -> Result<(), RunError> {
    let shutdown = Shutdown::new(settings.config.limits.drain_timeout);
    let signals = signals().map_err(|source| RunError::System { what: "cannot wait for signals", source })?;
    tokio::spawn(shutdown.clone().watch(signals, |code| std::process::exit(code.into())));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), command = cli.command.word(), "nws starts");
    settings.drop_in.log();
    shutdown.supervise(start(cli, settings, inherited, shutdown.clone())).await
}

/// The commands that stay up, one arm each.
async fn start(cli: Cli, settings: Settings, inherited: Inherited, shutdown: Shutdown) -> Result<(), RunError> {
    let again = cli.clone();
    let reread = move || again.settings(Sources::of_process()).map(|settings| settings.config);
    match &cli.command {
        // These were answered before there was a runtime.
        Command::Env(_) | Command::Man(_) | Command::Completions(_) => Ok(()),
        Command::Name(args) => say(&name::run_with(args, &settings).await?),
        Command::Proxy(_) => run::proxy::run(settings.config, inherited, shutdown, reread).await,
        Command::Exit(_) => {
            let keys = run::key::load(settings.private_key.as_ref(), settings.config.exit.key_file.as_deref())?;
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
        Command::Check => say(&run::doctor::checked(&settings)),
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
        Command::Relay(_) => run::relay::run(settings.config, inherited, shutdown, reread).await,
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
    let _ = io::stderr().write_all(log::last_words(&format!("nws: {error}")).as_bytes());
    ExitCode::from(error.exit_code())
}

/// Answers a command that only prints something, without a runtime and without a log; `None` for every other one.
#[must_use]
pub fn answer(cli: &Cli) -> Option<Result<(), RunError>> {
    let failed = |what| move |source| RunError::System { what, source };
    let answer = match &cli.command {
        Command::Name(args) if args.is_pure() => name(args),
        Command::Env(args) => env(cli, *args),
        Command::Man(ManArgs { dir: None }) => generate::page().map_err(failed("cannot make the page")),
        Command::Man(ManArgs { dir: Some(directory) }) => {
            generate::pages(directory).map(|()| Vec::new()).map_err(failed("cannot write the pages"))
        }
        Command::Completions(args) => Ok(generate::completions(args.shell)),
        _ => return None,
    };
    Some(answer.and_then(|text| io::stdout().write_all(&text).map_err(failed("cannot write the answer"))))
}

/// The part of `nws name` that needs no configuration.
fn name(args: &NameArgs) -> Result<Vec<u8>, RunError> {
    let output = name::run(args).map_err(|error| RunError::Usage(error.to_string()))?;
    if let Some(warning) = output.warning {
        let _ = writeln!(io::stderr(), "nws: {warning}");
    }
    Ok(format!("{}\n", output.stdout).into_bytes())
}

/// `nws env`.
fn env(cli: &Cli, args: EnvArgs) -> Result<Vec<u8>, RunError> {
    let proxy = cli.settings(Sources::of_process())?.config.proxy;
    let lines = environment::lines(args, &proxy)?;
    if let Some(warning) = environment::warning(args, &proxy) {
        let _ = writeln!(io::stderr(), "nws: {warning}");
    }
    Ok(lines.into_bytes())
}

/// Writes an answer on standard output.
fn say(text: &str) -> Result<(), RunError> {
    writeln!(io::stdout(), "{text}").map_err(|source| RunError::System { what: "cannot write the answer", source })
}
