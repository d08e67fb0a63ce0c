//! The documents tell the truth about the command line: the help text of every command stands word for word in
//! `docs/commands.md`, and those of the commands that everybody needs in the README.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::process::Command;

use clap::CommandFactory;
use nws::cli::Cli;

const README: &str = include_str!("../README.md");
const COMMANDS: &str = include_str!("../docs/commands.md");

/// Columns that the help texts in the README are wrapped to.
const COLUMNS: &str = "80";

/// Every command by its words, `nws` itself first; taken from the parser, so that a new one cannot be forgotten.
fn commands() -> Vec<Vec<String>> {
    fn walk(command: &clap::Command, words: &[String], out: &mut Vec<Vec<String>>) {
        out.push(words.to_vec());
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            walk(sub, &[words, &[sub.get_name().to_owned()]].concat(), out);
        }
    }
    let mut out = Vec::new();
    walk(&Cli::command(), &[], &mut out);
    out
}

/// What the binary prints. Neither of its streams is a terminal here, so it wraps at what `COLUMNS` says.
fn help(words: &[String]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_nws")).args(words).arg("--help").env("COLUMNS", COLUMNS).output().unwrap();
    assert!(output.status.success(), "{words:?}");
    // The names of the programs differ on systems with an .exe.
    String::from_utf8(output.stdout).unwrap().replace("nws.exe", "nws")
}

/// The fenced block behind the heading of a command.
fn block(document: &'static str, title: &str) -> Option<&'static str> {
    let (_, section) = document.split_once(&format!("\n### `{title}`\n"))?;
    let section = section.split("\n#").next()?;
    let (_, rest) = section.split_once("```text\n")?;
    rest.split_once("```").map(|(block, _)| block)
}

/// Lines without the spaces at their ends, which editors remove.
fn trimmed(text: &str) -> String {
    text.trim().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Whether the block of a command is there and true.
fn check(name: &str, document: &'static str, words: &[String]) {
    let title = [&["nws".to_owned()][..], words].concat().join(" ");
    let block = block(document, &title).unwrap_or_else(|| panic!("{name} has no ```text block under ### `{title}`"));
    assert_eq!(trimmed(block), trimmed(&help(words)), "{name}, ### `{title}`: run .ci/help-texts");
}

#[test]
fn the_help_text_of_every_command_stands_in_the_reference() {
    let commands = commands();
    assert!(commands.len() >= 8, "{commands:?}");
    for words in &commands {
        check("docs/commands.md", COMMANDS, words);
    }
    assert_eq!(COMMANDS.matches("\n### `nws").count(), commands.len(), "docs/commands.md has a command that is none");
}

#[test]
fn what_the_readme_shows_of_the_commands_is_true() {
    let shown: Vec<_> = README.split("\n### `nws").skip(1).filter_map(|rest| rest.split('`').next()).collect();
    for command in ["", " proxy", " exit"] {
        assert!(shown.contains(&command), "README.md lacks ### `nws{command}`");
    }
    for command in shown {
        check("README.md", README, &command.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    }
}
