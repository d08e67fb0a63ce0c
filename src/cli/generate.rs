//! `nws man` and `nws completions`: what a package ships beside the program, made from the parser itself.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Arguments of `nws man`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ManArgs {
    /// Write a page for each command into this directory, as nws.1, nws-proxy.1 and so on, instead of the page of nws
    /// itself to standard output.
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
}

/// Arguments of `nws completions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct CompletionsArgs {
    /// The shell that they are for.
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// The page of nws itself, as roff.
///
/// # Errors
///
/// None that could happen in memory.
pub fn page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(page)
}

/// Writes a page for each command into a directory.
///
/// # Errors
///
/// The directory cannot be written to.
pub fn pages(directory: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command(), directory)
}

/// The completions for a shell.
#[must_use]
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nws", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        let directory = tempfile::tempdir().unwrap();
        pages(directory.path()).unwrap();
        let bash = String::from_utf8(completions(Shell::Bash)).unwrap();
        let page = String::from_utf8(page().unwrap()).unwrap();
        for command in Cli::command().get_subcommands() {
            let word = command.get_name();
            let own = std::fs::read_to_string(directory.path().join(format!("nws-{word}.1"))).unwrap();
            assert!(own.contains(".TH") && own.contains("\\-\\-config"), "{word}");
            assert!(page.contains(&format!("nws\\-{word}(1)")), "{word}");
            assert!(bash.contains(&format!("nws,{word})")), "{word}");
        }
    }

    #[test]
    fn a_directory_that_is_missing_is_an_error() {
        assert!(pages(Path::new("/nowhere/at/all")).is_err());
    }
}
