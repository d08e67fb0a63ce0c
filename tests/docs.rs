//! The documents say what the program says: every setting stands in `docs/configuration.md`, every code and every
//! member of a message in `docs/protocol.md`, every outcome with all its translations in `docs/errors.md`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use nws::ErrorKind;
use nws::config::Config;
use nws::message::Message;
use uuid::Uuid;

const CONFIGURATION: &str = include_str!("../docs/configuration.md");
const PROTOCOL: &str = include_str!("../docs/protocol.md");
const ERRORS: &str = include_str!("../docs/errors.md");

/// Every leaf of a configuration, dotted.
fn keys(prefix: &str, value: &serde_json::Value, out: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                keys(&dotted, value, out);
            }
        }
        _ => out.push(prefix.to_owned()),
    }
}

#[test]
fn every_setting_has_a_row_of_its_own_and_no_row_is_left_over() {
    let mut settings = Vec::new();
    keys("", &serde_json::to_value(Config::default()).unwrap(), &mut settings);
    settings.sort();
    let rows = CONFIGURATION.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let mut rows: Vec<&str> = rows.map(|(key, _)| key).collect();
    rows.sort_unstable();
    assert_eq!(rows, settings);
}

#[test]
fn every_code_has_a_row_with_its_socks_reply_and_its_http_status() {
    for kind in ErrorKind::ALL {
        let row = format!("| `{}` | {:02} | {} |", kind.code(), kind.socks_reply(), kind.http_status().as_u16());
        assert!(PROTOCOL.lines().any(|line| line.starts_with(&row)), "docs/protocol.md lacks {row}");
    }
}

#[test]
fn the_reference_of_errors_has_the_table_of_the_program() {
    let (_, section) = ERRORS.split_once("\n## The codes\n").unwrap();
    let table = section.split("\n\n").find(|part| part.trim_start().starts_with("| code |")).unwrap();
    let rows: Vec<Vec<&str>> =
        table.trim().lines().skip(2).map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
    for (row, kind) in rows.iter().zip(ErrorKind::ALL) {
        let [code, socks, http, level, meaning, advice] = row[..] else { panic!("not six columns: {row:?}") };
        assert_eq!(code, format!("`{}`", kind.code()));
        assert_eq!(socks, format!("{:02}", kind.socks_reply()), "{code}");
        assert_eq!(http, kind.http_status().as_u16().to_string(), "{code}");
        assert_eq!(level, kind.level().to_string().to_lowercase(), "{code}");
        assert!(!meaning.is_empty() && !advice.is_empty(), "{code}");
    }
    assert_eq!(rows.len(), ErrorKind::ALL.len());
}

#[test]
fn every_member_of_a_message_has_a_row() {
    let message = Message {
        data: b"x".as_slice().into(),
        destination: Some("x".into()),
        entry_public_address: Some("x".into()),
        nws: Some(1),
        off: Some(1),
        fin: true,
        ack: Some(1),
        sack: vec![(2, 3)],
        max: Some(1),
        probe: true,
        code: Some("x".into()),
        reason: Some("x".into()),
        auth: Some("{}".into()),
        ..Message::new(Uuid::nil(), nws::message::Type::Data)
    };
    let json: serde_json::Value = serde_json::from_slice(&nws::message::encode(&[message])).unwrap();
    let members = json.as_object().unwrap();
    assert_eq!(members.len(), 15);
    for member in members.keys() {
        let row = PROTOCOL.lines().find(|line| line.starts_with("| `") && line.contains(&format!("`{member}`")));
        assert!(row.is_some(), "docs/protocol.md lacks a row for {member}");
    }
}
