//! What a relay says of its limits: the NIP-11 document, asked for once per connection and beside it.

use std::io;
use std::time::Duration;

use nostr::RelayUrl;
use serde::Deserialize;

use super::http;
use super::upstream::Upstream;
use crate::envelope::EventLimits;

/// A relay that names a smaller limit than this is not believed: not even an opening would fit.
const PLAUSIBLE_MIN: usize = 1024;

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    limitation: Option<Limitation>,
}

#[derive(Deserialize)]
struct Limitation {
    #[serde(default)]
    max_message_length: Option<u64>,
    #[serde(default)]
    max_content_length: Option<u64>,
}

/// What a relay has told of itself.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// What it takes.
    pub(super) limits: EventLimits,
    /// The time that it is there, as HTTP writes it (RFC 9110 section 5.6.7).
    pub(super) date: Option<String>,
}

/// Fetches the document and reads the limits from it, `default` where it names none.
pub(super) async fn fetch(
    relay: &RelayUrl,
    upstream: Option<&Upstream>,
    default: EventLimits,
    limit: Duration,
) -> io::Result<Told> {
    let answer = http::get(relay.into(), upstream, "application/nostr+json", limit).await?;
    if !answer.status.is_success() {
        return Err(io::Error::other(format!("status {}", answer.status)));
    }
    let document: Document = serde_json::from_slice(&answer.body).map_err(io::Error::other)?;
    Ok(Told { limits: limits(&document, default), date: answer.date })
}

fn limits(document: &Document, default: EventLimits) -> EventLimits {
    let Some(limitation) = &document.limitation else { return default };
    let plausible = |named: Option<u64>, default: usize| {
        named.and_then(|n| usize::try_from(n).ok()).filter(|&n| n >= PLAUSIBLE_MIN).unwrap_or(default)
    };
    // A relay that names only one of the two is not assumed to be smaller in the other.
    let message = plausible(limitation.max_message_length, default.message);
    let content = plausible(limitation.max_content_length, message);
    EventLimits { message, content }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: EventLimits = EventLimits { message: 65_536, content: 65_536 };

    fn read(text: &str) -> EventLimits {
        limits(&serde_json::from_str(text).unwrap(), DEFAULT)
    }

    #[test]
    fn limits_are_taken_from_the_document_and_defaulted_where_it_is_silent() {
        assert_eq!(read("{}"), DEFAULT);
        assert_eq!(
            read(r#"{"limitation":{"max_message_length":131072}}"#),
            EventLimits { message: 131_072, content: 131_072 }
        );
        assert_eq!(
            read(r#"{"limitation":{"max_content_length":4096}}"#),
            EventLimits { message: 65_536, content: 4096 }
        );
        assert_eq!(read(r#"{"limitation":{"max_message_length":0,"auth_required":true}}"#), DEFAULT);
    }
}
