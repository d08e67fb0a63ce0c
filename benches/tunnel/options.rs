//! What the benchmark is asked to do: its own flags, since `cargo bench -- …` hands on what stands behind the dashes.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};

/// How much a shaped run transfers when nobody says: as many seconds of the relays' rate.
const SHAPED_SECONDS: f64 = 15.0;

/// Starts relay, exit, backend and proxy, and measures the tunnel beside the raw limit of the relay in the same run.
#[derive(Debug, Clone, Parser)]
#[command(name = "cargo bench --bench tunnel --", disable_version_flag = true)]
pub(crate) struct Options {
    /// The relay: `embedded` (nws relay), `nostr-rs-relay` (started from --relay-binary), or the URL of one that runs.
    #[arg(long, default_value = "embedded")]
    pub(crate) relay: String,
    /// Where nostr-rs-relay lies. [default: ~/.cache/nws-ci/bin/nostr-rs-relay, where .ci/run puts it]
    #[arg(long, value_name = "PATH")]
    pub(crate) relay_binary: Option<PathBuf>,
    /// Relays of this kind that the exit is on.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) relays: u8,
    /// Milliseconds that each relay is far away: what an event takes longer from its publisher to its subscriber, half
    /// of it before the relay and half behind. A handshake with the relay takes as much longer.
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    pub(crate) delay: f64,
    /// Bytes a second that each relay takes in from all its clients, and as many that it gives out, as 5000000 or
    /// "5 MB". What is too much queues.
    #[arg(long, value_name = "BYTES")]
    pub(crate) rate: Option<ByteSize>,
    /// Messages a second that each relay takes in. What is too much queues.
    #[arg(long, value_name = "N")]
    pub(crate) events_per_second: Option<f64>,
    /// Bytes of one transfer. [default: 256 MiB; with a shaped relay what takes some 15 s]
    #[arg(long, value_name = "BYTES")]
    pub(crate) size: Option<ByteSize>,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART,...")]
    pub(crate) only: Vec<Part>,
    /// Everything small and short: shows that it works, measures little.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Also what takes minutes: memory after 1 GiB and with 10,000 idle streams.
    #[arg(long)]
    pub(crate) full: bool,
    /// Another nws to measure. [default: the one built with the benchmark]
    #[arg(long, value_name = "PATH")]
    pub(crate) nws: Option<PathBuf>,
    /// Also write the tables here, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Also write the numbers here, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Be the backend of another run, and say here where.
    #[arg(long, hide = true, value_name = "FILE")]
    pub(crate) backend: Option<PathBuf>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

/// The parts of a run, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// What the relay alone passes on, and how long it takes.
    Limit,
    /// One stream down and up, CPU for each MiB.
    Goodput,
    /// Time to first byte: cold, warm, in each language.
    FirstByte,
    /// Requests a second.
    Requests,
    /// A small request beside a saturating download.
    Load,
    /// Events for each MiB and each request.
    Events,
    /// What one key's flood of openings costs another.
    Flood,
    /// Memory with idle streams, with --full also after 1 GiB and with 10,000.
    Memory,
}

impl Part {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Limit,
        Self::Goodput,
        Self::FirstByte,
        Self::Requests,
        Self::Load,
        Self::Events,
        Self::Flood,
        Self::Memory,
    ];
}

impl Options {
    /// Whether a part is wanted.
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// Bytes of one transfer.
    pub(crate) fn transfer(&self) -> u64 {
        let usual = if self.quick { ByteSize::mib(24) } else { ByteSize::mib(256) }.as_u64();
        self.size.map_or_else(
            || self.shaped_rate().map_or(usual, |rate| usual.min((rate * SHAPED_SECONDS) as u64)),
            |size| size.as_u64(),
        )
    }

    /// Bytes of stream a second that all relays together can carry when they are shaped, roughly.
    fn shaped_rate(&self) -> Option<f64> {
        // Full events carry some 56 % of their size and 30 to 49 KB.
        let by_bytes = self.rate.map(|rate| rate.as_u64() as f64 * 0.56);
        let by_events = self.events_per_second.map(|events| events * 40e3);
        by_bytes.into_iter().chain(by_events).min_by(f64::total_cmp).map(|rate| rate * f64::from(self.relays))
    }

    /// One way from a client to the relay, or back.
    pub(crate) fn half_delay(&self) -> Duration {
        Duration::from_secs_f64(self.delay / 2e3)
    }

    /// Whether the relays need a shaper before them.
    pub(crate) fn shapes(&self) -> bool {
        self.delay > 0.0 || self.rate.is_some() || self.events_per_second.is_some()
    }

    /// The smaller number in a quick run.
    pub(crate) fn few(&self, quick: usize, usual: usize) -> usize {
        if self.quick { quick } else { usual }
    }

    /// The shorter time in a quick run.
    pub(crate) fn brief(&self, quick: f64, usual: f64) -> Duration {
        Duration::from_secs_f64(if self.quick { quick } else { usual })
    }
}
