//! `nws name`: make, read and keep `.nostr` names. Arguments in, text out; printing is the caller's. What needs the address
//! book is done by `run/names.rs`.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::config::Settings;
use crate::name::{
    Alias, DNS_NAME_MAX, NameError, NostrName, is_nostr, parse_name_or_key, parse_public_key, parse_relay,
};
use crate::proxy::Names;
use crate::run::find::{self, Address};
use crate::run::{RunError, names, qr};

/// Arguments of `nws name`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct NameArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: NameCommand,
}

/// What `nws name` does.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum NameCommand {
    /// Make the .nostr name of a public key on its relays.
    Encode {
        /// Public key: hex, npub1…, nprofile1…, or a .nostr name.
        #[arg(long, value_name = "KEY")]
        key: String,
        /// Relay URL; may be given several times. Without a scheme, wss:// is assumed. Without any, those of the
        /// nprofile or name are taken, and otherwise the name is that of the key alone.
        #[arg(long = "relay", value_name = "URL")]
        relays: Vec<String>,
    },
    /// Show the public key and the relays of a .nostr name, npub or nprofile.
    Decode {
        /// The name; any letter case.
        #[arg(value_name = "NAME")]
        name: String,
        /// Print JSON with public_key (hex), npub and relays.
        #[arg(long)]
        json: bool,
    },
    /// Keep a name: LABEL.nostr is then the same as NAME.
    ///
    /// The address book is a file (names_file in the configuration) that can be edited by hand as well. A name that stands
    /// for another key is not changed without --replace.
    Add {
        /// What the name is to be, as wallet for wallet.nostr: lower-case letters, digits and hyphens.
        #[arg(value_name = "LABEL")]
        label: Alias,
        /// What it stands for: a .nostr name, npub1…, nprofile1… or a public key in hex.
        #[arg(value_name = "NAME", value_parser = parse_name_or_key)]
        name: NostrName,
        /// Give a name that stands for another key this one instead.
        #[arg(long)]
        replace: bool,
    },
    /// Forget a name of the address book.
    Remove {
        /// The name, with or without .nostr.
        #[arg(value_name = "LABEL")]
        label: Alias,
    },
    /// Look up the key that a domain gives to a name (NIP-05).
    ///
    /// It is shown, and kept only if --add says so and you agree: the domain can say otherwise tomorrow.
    Find {
        /// The address, as alice@example.com; of a domain alone, its own key.
        #[arg(value_name = "ADDRESS")]
        address: Address,
        /// Keep the key under this name.
        #[arg(long, value_name = "LABEL")]
        add: Option<Alias>,
        /// Give a name that stands for another key this one instead.
        #[arg(long, requires = "add")]
        replace: bool,
        /// Keep it without a question.
        #[arg(long, requires = "add")]
        yes: bool,
    },
    /// Print a QR code of a name's address.
    Qr {
        /// The name: a .nostr name, npub1… or a name that is kept.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List the names of the address book and of the configuration.
    List {
        /// Print JSON: for each name the full name, npub and relays.
        #[arg(long)]
        json: bool,
    },
}

impl NameArgs {
    /// Whether it is answered from its arguments alone, without any configuration.
    #[must_use]
    pub const fn is_pure(&self) -> bool {
        matches!(self.command, NameCommand::Encode { .. } | NameCommand::Decode { .. })
    }
}

/// Runs a `nws name` that needs the configuration.
///
/// # Errors
///
/// Whatever keeps it from being done.
pub async fn run_with(args: &NameArgs, settings: &Settings) -> Result<String, RunError> {
    match &args.command {
        NameCommand::Add { label, name, replace } => names::add(settings, label, name, *replace),
        NameCommand::Remove { label } => names::remove(settings, label),
        NameCommand::Find { address, add, replace, yes } => {
            find::run(settings, address, add.as_ref(), *replace, *yes).await
        }
        NameCommand::Qr { name } => qr_code(name, settings),
        NameCommand::List { json } => Ok(names::list(&settings.config, *json)),
        // Never asked for here.
        NameCommand::Encode { .. } | NameCommand::Decode { .. } => Ok(String::new()),
    }
}

/// The code of a name, which may be one that is kept.
fn qr_code(text: &str, settings: &Settings) -> Result<String, RunError> {
    let usage = |error: NameError| RunError::Usage(error.to_string());
    let name = match is_nostr(text) {
        true => Names::new(settings.config.names.clone()).resolve(text).map_err(usage)?,
        false => parse_name_or_key(text).map_err(usage)?,
    };
    let too_long = || RunError::Usage("the name is too long for a QR code; name fewer relays".to_owned());
    let code = qr::code(&name).ok_or_else(too_long)?;
    Ok(format!("{code}\nhttp://{name}/"))
}

/// What `nws name` has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameOutput {
    /// The text for standard output, without a newline at its end.
    pub stdout: String,
    /// A line for standard error, if anything is remarkable about the name.
    pub warning: Option<String>,
}

/// Runs a `nws name` that is answered from its arguments alone.
pub fn run(args: &NameArgs) -> Result<NameOutput, NameError> {
    match &args.command {
        NameCommand::Encode { key, relays } => encode(key, relays),
        NameCommand::Decode { name, json } => {
            let name = name.parse()?;
            let stdout = if *json { json_text(&name) } else { human_text(&name) };
            Ok(NameOutput { stdout, warning: None })
        }
        // These need the configuration: `run_with`.
        _ => Ok(NameOutput { stdout: String::new(), warning: None }),
    }
}

fn encode(key: &str, relays: &[String]) -> Result<NameOutput, NameError> {
    let name = match relays.is_empty() && is_nostr(key) {
        true => key.parse()?,
        false => {
            let relays: Vec<_> = relays.iter().map(|relay| parse_relay(relay)).collect::<Result<_, _>>()?;
            NostrName::new(parse_public_key(key)?, relays)
        }
    };
    let stdout = name.to_string();
    let warning = (!name.fits_dns()).then(|| {
        format!(
            "warning: the name has {} characters; DNS allows {DNS_NAME_MAX}, so browsers and SOCKS5 clients may refuse \
             it; name fewer relays, or such with shorter URLs",
            stdout.len()
        )
    });
    Ok(NameOutput { stdout, warning })
}

fn human_text(name: &NostrName) -> String {
    let mut text = format!("public key  {}\nnpub        {}\nrelays      ", name.public_key, name.npub());
    let relays: Vec<&str> = name.relays.iter().map(|relay| relay.as_str()).collect();
    match relays.is_empty() {
        true => text.push_str("(none in the name: those of the configuration are used)"),
        false => text.push_str(&relays.join("\n            ")),
    }
    text
}

fn json_text(name: &NostrName) -> String {
    let relays: Vec<&str> = name.relays.iter().map(|relay| relay.as_str()).collect();
    let decoded = json!({ "public_key": name.public_key.to_hex(), "npub": name.npub(), "relays": relays });
    format!("{decoded:#}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use nostr::PublicKey;

    use super::*;

    const KEY: &str = "3ef54d9f7eaa3a6fafaea680b1d047248c93408776027317a9535a2056b2ef53";
    const NPUB: &str = "npub18m65m8m74gaxltaw56qtr5z8yjxfxsy8wcp8x9af2ddzq44jaafsg42xxg";
    const NAME: &str = "etpjkbpf60n30bhg5oo3kdpn6srg.7rqkr7rul8t6vbtekq0b3k274i696g47eo1765t9add20llitt9g.nostr";

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        name: NameArgs,
    }

    fn nws_name(args: &[&str]) -> Result<NameOutput, NameError> {
        run(&Cli::try_parse_from(["name"].iter().chain(args)).unwrap().name)
    }

    #[test]
    fn encode_takes_a_key_in_every_form() {
        for key in [KEY, NPUB, NAME, "7rqkr7rul8t6vbtekq0b3k274i696g47eo1765t9add20llitt9g"] {
            let output = nws_name(&["encode", "--key", key, "--relay", "ws://0.0.0.0:7777/"]).unwrap();
            assert_eq!(output, NameOutput { stdout: NAME.to_owned(), warning: None }, "{key}");
        }
    }

    #[test]
    fn encode_without_relays_takes_those_of_the_nprofile_or_none() {
        use nostr::nips::nip19::{Nip19Profile, ToBech32};

        let relay = nostr::RelayUrl::parse("ws://0.0.0.0:7777").unwrap();
        let profile = Nip19Profile::new(PublicKey::from_hex(KEY).unwrap(), [relay]).to_bech32().unwrap();
        assert_eq!(nws_name(&["encode", "--key", &profile]).unwrap().stdout, NAME);
        let of_key_alone = nws_name(&["encode", "--key", NPUB]).unwrap().stdout;
        assert_eq!(of_key_alone, "7rqkr7rul8t6vbtekq0b3k274i696g47eo1765t9add20llitt9g.nostr");
        let other = nws_name(&["encode", "--key", &profile, "--relay", "b.example"]).unwrap().stdout;
        assert_eq!(other.parse::<NostrName>().unwrap().relays[0].as_str(), "wss://b.example");
    }

    #[test]
    fn encode_warns_of_a_name_that_dns_cannot_carry() {
        let long = format!("wss://relay.example.com/{}", "x".repeat(200));
        let output = nws_name(&["encode", "--key", KEY, "--relay", &long]).unwrap();
        assert!(output.warning.unwrap().contains("DNS allows 253"));
        assert_eq!(output.stdout.parse::<NostrName>().unwrap().relays[0].as_str(), long);
    }

    #[test]
    fn decode_shows_one_relay_a_line() {
        let two = nws_name(&["encode", "--key", KEY, "--relay", "ws://0.0.0.0:7777", "--relay", "b.example"]).unwrap();
        assert_eq!(
            nws_name(&["decode", &two.stdout]).unwrap().stdout,
            format!(
                "public key  {KEY}\nnpub        {NPUB}\nrelays      ws://0.0.0.0:7777\n            wss://b.example"
            )
        );
        assert!(nws_name(&["decode", NPUB]).unwrap().stdout.contains("those of the configuration"));
    }

    #[test]
    fn decode_as_json_has_the_key_the_npub_and_the_relays() {
        let text = nws_name(&["decode", NAME, "--json"]).unwrap().stdout;
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            serde_json::json!({ "public_key": KEY, "npub": NPUB, "relays": ["ws://0.0.0.0:7777"] })
        );
        let text = nws_name(&["decode", NPUB, "--json"]).unwrap().stdout;
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["relays"], serde_json::json!([]));
    }

    #[test]
    fn a_wrong_relay_is_named() {
        let error = nws_name(&["encode", "--key", KEY, "--relay", "https://relay.example.com"]).unwrap_err();
        assert!(error.to_string().contains("\"https://relay.example.com\" is not a relay URL"), "{error}");
    }
}
