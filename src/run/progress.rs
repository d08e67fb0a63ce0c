//! A sign of life on a terminal while a command takes its time; nothing where standard error is a pipe or a file.

use std::time::Duration;

use indicatif::ProgressBar;

/// Time between two pictures of the sign.
const TICK: Duration = Duration::from_millis(120);

/// Stands on the last line of the terminal until it is dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Says what is being done. indicatif draws on standard error, and only if that is a terminal.
    #[must_use]
    pub fn start(what: &'static str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Writes something without the sign in its way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
