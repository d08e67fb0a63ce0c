//! The tunnel, measured end to end beside the raw limit of its relay in the same run: `cargo bench --bench tunnel`.
//!
//! Relay, exit and proxy are processes of their own, as in life, so that the system tells what each costs; backend and
//! clients are in this one. See `--help` for what can be asked.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the output is what a benchmark is for")]

mod backend;
mod children;
mod client;
mod events;
mod first_byte;
mod flood;
mod frames;
mod goodput;
mod ground;
mod limit;
mod machine;
mod memory;
mod options;
mod pattern;
mod report;
mod requests;
mod shaper;
mod wire;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use crate::ground::{Ground, Tunnel};
use crate::limit::Limits;
use crate::options::{Options, Part};
use crate::report::Report;

/// What a measurement comes to: any error ends its part.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Tasks that run between two looks at the sockets; tokio's own is 61, each of which may write a quarter of a MiB.
const EVENT_INTERVAL: u32 = 2;

fn main() -> ExitCode {
    let options = Options::parse();
    // What arrives is noticed at once, also beside a transfer: or the delay measured would be this program's own.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().event_interval(EVENT_INTERVAL).build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(async {
            match &options.backend {
                Some(path) => backend::serve_apart(path).await.map(|()| true),
                None => run(&options).await,
            }
        });
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All parts that are wanted; false when one failed.
async fn run(options: &Options) -> Outcome<bool> {
    let mut report = Report::new(options);
    let ground = Ground::prepare(options).await?;
    let tunnel = ground.tunnel().await?;
    let mut well = true;
    for part in Part::ALL.into_iter().filter(|part| options.wants(*part)) {
        if let Err(error) = measure(part, &ground, &tunnel, options, &mut report).await {
            well = false;
            eprintln!("{part:?} failed: {error}\n");
        }
    }
    report.write(options)?;
    Ok(well)
}

async fn measure(part: Part, ground: &Ground, tunnel: &Tunnel, options: &Options, report: &mut Report) -> Outcome<()> {
    let table = match part {
        // Where goodput is wanted too, its own look at the limit is enough.
        Part::Limit if options.wants(Part::Goodput) => return Ok(()),
        Part::Limit => Limits::measure(ground, options).await?.table(None),
        Part::Goodput => {
            let before = Limits::measure(ground, options).await?;
            let transfers = goodput::measure(ground, tunnel, options).await?;
            let after = Limits::measure(ground, options).await?;
            report.add(before.table(Some(&after)));
            goodput::table(&transfers, (before.bytes() + after.bytes()) / 2.0, options)
        }
        Part::FirstByte => first_byte::measure(ground, tunnel, options).await?,
        Part::Requests => requests::measure(ground, tunnel, options).await?,
        Part::Load => first_byte::under_load(tunnel, options).await?,
        Part::Events => events::measure(ground, tunnel, options).await?,
        Part::Flood => flood::measure(options).await?,
        Part::Memory => memory::measure(options).await?,
    };
    report.add(table);
    Ok(())
}
