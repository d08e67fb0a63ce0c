//! The documents say what the program says: every setting stands in `docs/configuration.md`, every code and every
//! member of a message in `docs/protocol.md`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use nws::ErrorKind;
use nws::config::Config;
use nws::message::Message;
use uuid::Uuid;

const CONFIGURATION: &str = include_str!("../docs/configuration.md");
const PROTOCOL: &str = include_str!("../docs/protocol.md");

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
