//! What README and `docs/` show can be typed: every `nws` command line parses, every TOML block is a configuration, every
//! link leads somewhere, and every block of commands is run by `.ci/documents` or says why not. What the commands do and
//! print is seen there and not here. The marks are those of `.ci/e2e/blocks.py`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::fs;
use std::path::Path;

use clap::{CommandFactory, Parser};
use nws::cli::Cli;
use nws::config::Sources;

/// What stands for a variable or for what a reader puts in.
const NAME: &str = "etpjkbpf64p3ebhg5oo2sc9q6srjedo.fok78n7f49667lshn7s91un30pdr59kqrdq7c7mustbc84o5mctg.nostr";
const NPUB: &str = "npub10c58gh80yfxx84u3h8ufp7hrqedm9f56md68v8k7uatvgyc9kvasdedxn4";

/// Kinds of blocks; `sh` and `console` are commands, the others are not.
const KINDS: [&str; 11] =
    ["sh", "console", "toml", "text", "ini", "json", "js", "caddyfile", "nginx", "strfry", "haproxy"];

/// A document: its path from the root, and its text.
struct Document {
    path: String,
    text: String,
}

/// A fenced block, with the lines of marks above it.
struct Block<'a> {
    place: String,
    kind: &'a str,
    marks: Vec<&'a str>,
    lines: Vec<&'a str>,
}

impl Block<'_> {
    fn mark(&self, name: &str) -> Option<&str> {
        let open = format!("<!-- {name}");
        self.marks.iter().find_map(|mark| mark.strip_prefix(&open)?.strip_suffix("-->"))
    }

    fn is_commands(&self) -> bool {
        ["sh", "console"].contains(&self.kind)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<Document> {
    let in_docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut paths: Vec<String> = in_docs.map(|name| format!("docs/{}", name.to_str().unwrap())).collect();
    paths.retain(|path| path.ends_with(".md"));
    paths.sort();
    paths.insert(0, "README.md".into());
    let read = |path: String| Document { text: fs::read_to_string(root().join(&path)).unwrap(), path };
    paths.into_iter().map(read).collect()
}

/// The blocks of a document, and its text without them.
fn split(document: &Document) -> (Vec<Block<'_>>, String) {
    let (mut blocks, mut prose, mut marks, mut open) = (Vec::new(), String::new(), Vec::new(), None);
    for (number, line) in document.text.lines().enumerate() {
        let place = format!("{}:{}", document.path, number + 1);
        if line == "```" && open.is_some() {
            blocks.extend(open.take());
        } else if let Some(block) = &mut open {
            let block: &mut Block = block;
            block.lines.push(line);
        } else if let Some(kind) = line.strip_prefix("```") {
            open = Some(Block { place, kind, marks: std::mem::take(&mut marks), lines: Vec::new() });
        } else if line.starts_with("<!--") {
            marks.push(line);
        } else {
            assert!(marks.is_empty() || line.is_empty(), "{place}: the mark above belongs to no block");
            prose.push_str(line);
            prose.push('\n');
        }
    }
    assert!(open.is_none(), "{}: a block does not end", document.path);
    (blocks, prose)
}

/// Where a command can begin: at the start, behind an operator, in a substitution, in quotes, as ssh's `ProxyCommand`.
fn command_at(before: &str) -> bool {
    let before = before.trim_end_matches(' ');
    before.is_empty()
        || before.ends_with(['$', '(', '|', '&', ';', '\'', '"', '='])
        || ["sudo", "ProxyCommand", "eval", "ExecStart=", "time"].iter().any(|word| before.ends_with(word))
        || before.rsplit(' ').next().is_some_and(|word| word.starts_with("NWS_") && word.contains('='))
}

/// The words of the command at the start of `text`, which ends at an operator or at the quote that it stands in.
fn words(text: &str, inside: Option<char>) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in text.chars() {
        match (quote, character) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, c) if Some(c) == inside => break,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, ' ' | '\\') => words.extend(word.take()),
            (None, ')' | '|' | '&' | ';' | '>' | '<') => break,
            (None, '#') if word.is_none() => break,
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Every `nws` command in a line, as words.
fn commands(line: &str) -> Vec<Vec<String>> {
    let starts = line.match_indices("nws ").filter(|(at, _)| command_at(&line[..*at]));
    let parse = |(at, _)| {
        let inside = line[..at].chars().next_back().filter(|c| ['\'', '"'].contains(c));
        words(&line[at..], inside)
    };
    starts.map(parse).collect()
}

/// What a shell or a reader puts in.
fn filled(word: &str) -> String {
    let word = word.replace("%h", "shop.nostr").replace("%p", "22").replace("%d", "/run/credentials");
    let word = word.replace("$name", NAME).replace("$npub", NPUB).replace("$relay", "ws://127.0.0.1:7777");
    match word.as_str() {
        "NAME" => NAME.into(),
        "NPUB" | "npub1…" => NPUB.into(),
        "URL" => "wss://relay.example.com".into(),
        _ => word,
    }
}

#[test]
fn every_command_line_that_is_shown_parses() {
    let mut seen = 0;
    for document in documents() {
        for block in split(&document).0 {
            let command = |line: &str| match block.kind {
                "sh" => true,
                "console" => line.starts_with("$ "),
                _ => line.contains("ProxyCommand nws ") || line.contains("ExecStart="),
            };
            // A backslash joins two lines.
            let text = block.lines.join("\n").replace("\\\n", " ");
            for line in text.lines().filter(|line| command(line)) {
                for words in commands(line) {
                    seen += 1;
                    if let Err(error) = Cli::try_parse_from(words.iter().map(|word| filled(word))) {
                        let help = matches!(error.kind(), clap::error::ErrorKind::DisplayVersion);
                        assert!(help, "{}: {line}\n{error}", block.place);
                    }
                }
            }
        }
    }
    assert!(seen > 40, "only {seen} commands are recognised");
}

#[test]
fn commands_are_recognised_where_shells_find_them() {
    let found = |line| commands(line).into_iter().map(|words| words.join(" ")).collect::<Vec<_>>();
    assert_eq!(found("nws proxy &   # stays"), ["nws proxy"]);
    assert_eq!(found("curl --cacert <(nws cert $name) https://$name/"), ["nws cert $name"]);
    assert_eq!(found("ssh -o ProxyCommand='nws connect %h:%p' user@$name"), ["nws connect %h:%p"]);
    assert_eq!(found("eval \"$(nws env)\""), ["nws env"]);
    assert_eq!(found("NWS_LOG__FILTER=debug nws check; nws doctor"), ["nws check", "nws doctor"]);
    assert_eq!(found("apt install ./nws_1.deb; systemctl status nws-exit; sudo nws relay"), ["nws relay"]);
}

/// Goes down into the subcommands that `words` name, and fails at a flag or subcommand that is none.
fn know(words: &[String]) -> Result<(), String> {
    let mut command = Cli::command();
    command.build();
    let mut command = &command;
    for word in &words[1..] {
        if let Some(long) = word.strip_prefix("--") {
            let long = long.split('=').next().unwrap_or_default();
            if !command.get_arguments().any(|argument| argument.get_long() == Some(long)) {
                return Err(format!("--{long} is no flag of {}", command.get_name()));
            }
        } else if command.has_subcommands() && word.chars().all(|c| c.is_ascii_lowercase()) {
            command = command.find_subcommand(word).ok_or(format!("{word} is no command"))?;
        }
    }
    Ok(())
}

#[test]
fn every_command_that_is_named_in_a_sentence_exists_with_its_flags() {
    let mut seen = 0;
    for document in documents() {
        let prose = split(&document).1.replace('\n', " ");
        for code in prose.split('`').skip(1).step_by(2).filter(|code| code.starts_with("nws ")) {
            seen += 1;
            // Of `add/remove/list` the first stands for all.
            let words: Vec<String> = words(code, None).iter().map(|word| word.replace(',', "")).collect();
            know(&words).unwrap_or_else(|error| panic!("{}: `{code}`: {error}", document.path));
        }
    }
    assert!(seen > 40, "only {seen} are recognised");
}

#[test]
fn every_toml_block_is_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for document in documents() {
        for block in split(&document).0 {
            // A file that is named, and not ours, is the configuration of another program.
            if block.kind != "toml" || block.mark("file").is_some_and(|file| !file.contains("nws")) {
                continue;
            }
            seen += 1;
            let path = directory.path().join("nws.toml");
            fs::write(&path, block.lines.join("\n").replace("npub1…", NPUB)).unwrap();
            if let Err(error) = Sources::none().required_file(&path).load() {
                panic!("{}: {error}", block.place);
            }
        }
    }
    assert!(seen > 5, "only {seen} blocks of TOML");
}

#[test]
fn every_block_of_commands_is_run_or_says_why_not() {
    let runs = fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(runs.lines().any(|line| line.trim() == ".ci/documents"), ".ci/run does not run .ci/documents");
    let mut run = 0;
    for document in documents() {
        for block in split(&document).0 {
            let place = &block.place;
            assert!(
                KINDS.contains(&block.kind),
                "{place}: `{}` is no kind of block that is known: {KINDS:?}",
                block.kind
            );
            for mark in &block.marks {
                let known = ["not run: ", "terminal: ", "file: ", "output -->"];
                let known = known.iter().any(|known| mark.strip_prefix("<!-- ").is_some_and(|m| m.starts_with(known)));
                assert!(known && mark.ends_with(" -->"), "{place}: this mark means nothing: {mark}");
            }
            let first = block.lines.first().is_some_and(|line| line.starts_with("$ "));
            assert!(block.kind != "console" || first, "{place}: a console block begins with a command behind `$ `");
            if let Some(reason) = block.mark("not run") {
                assert!(block.is_commands(), "{place}: only commands can be left out");
                assert!(reason.trim_matches([':', ' ']).len() > 8, "{place}: no reason why it is not run");
            } else if block.is_commands() {
                run += 1;
            }
        }
    }
    assert!(run > 20, "only {run} blocks are run");
}

#[test]
fn every_file_of_the_sources_that_is_named_exists() {
    let mut seen = 0;
    for document in documents() {
        let prose = split(&document).1.replace('\n', " ");
        for code in prose.split('`').skip(1).step_by(2) {
            let known = ["tests/", ".ci/", "systemd/", "config/", "benches/", "fuzz/", "src/"];
            if known.iter().any(|directory| code.starts_with(directory)) && !code.contains([' ', '*']) {
                seen += 1;
                assert!(root().join(code).exists(), "{}: there is no {code}", document.path);
            }
        }
    }
    assert!(seen > 30, "only {seen} files are recognised");
}

/// The anchors of a document: its headings as GitHub writes them.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let documents = documents();
    for document in &documents {
        let prose = split(document).1;
        let links = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = root().join(&document.path).parent().unwrap().join(file);
            let text = match file {
                "" => document.text.clone(),
                _ if target.is_dir() => continue,
                _ => fs::read_to_string(&target).unwrap_or_else(|_| panic!("{}: no {link}", document.path)),
            };
            assert!(anchor.is_empty() || anchors(&text).iter().any(|a| a == anchor), "{}: no {link}", document.path);
        }
    }
    let readme = &documents[0].text;
    for document in &documents[1..] {
        assert!(readme.contains(&format!("({}", document.path)), "README.md does not lead to {}", document.path);
    }
}
