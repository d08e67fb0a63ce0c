//! How busy the whole machine is: a run beside which others work measures them too, and must say so.

use std::fs;

use crate::Outcome;
use crate::children::TICKS;

/// Seconds that all processors together were busy so far, whoever for.
pub(crate) fn busy() -> Outcome<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).ok_or("/proc/stat is of another form")?;
    let ticks: Vec<f64> = line.split_whitespace().map_while(|text| text.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; what guests use is in user already.
    let share = |index: usize| ticks.get(index).copied().unwrap_or(0.0);
    Ok([0, 1, 2, 5, 6].into_iter().map(share).sum::<f64>() / TICKS)
}

/// How many processors there are.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Lets this process and its children open enough files, as far as the system allows; the number that it got.
pub(crate) fn open_files(wanted: u64) -> u64 {
    let granted = |limit: u64| rlimit::increase_nofile_limit(limit).unwrap_or(0);
    // Only root may go beyond the hard limit.
    match rlimit::setrlimit(rlimit::Resource::NOFILE, wanted, wanted) {
        Ok(()) => wanted,
        Err(_) => granted(wanted),
    }
}
