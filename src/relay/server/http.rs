//! What the embedded relay answers to an HTTP request: the upgrade to a websocket (RFC 6455 section 4.2), the relay
//! information document (NIP-11), or a page that says what this is. It serves no events.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE,
    HeaderValue, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use nostr::JsonUtil;
use nostr::nips::nip11::{Limitation, RelayInformationDocument};
use tokio_tungstenite::tungstenite::handshake::server::create_response;

use super::{MAX_FILTER_LIMIT, MAX_SUBSCRIPTION_ID, RelayServerOptions};

/// Media type of the relay information document.
const NOSTR_JSON: &str = "application/nostr+json";

/// What the library beneath implements: events, this document, authentication, counting, protected events, and
/// negentropy.
const SUPPORTED_NIPS: [u16; 6] = [1, 11, 42, 45, 70, 77];

/// What a browser sees.
const PAGE: &str = "This is a Nostr relay (nws), made for the events of a tunnel (NIP-74).\n\
    Point a Nostr client at this address with ws:// in front; there is nothing to see here for a browser.\n\
    Its limits, for machines: curl -H 'Accept: application/nostr+json' <this address>\n";

/// The HTTP side of the relay.
#[derive(Debug, Clone)]
pub(super) struct Front {
    document: Arc<str>,
}

impl Front {
    pub(super) fn new(options: &RelayServerOptions, max_message_bytes: usize) -> Self {
        let document = RelayInformationDocument {
            name: Some("nws relay".to_owned()),
            description: Some("Embedded relay of nws, for ephemeral events; what it stores is lost at its end".into()),
            supported_nips: Some(SUPPORTED_NIPS.to_vec()),
            software: Some(env!("CARGO_PKG_NAME").to_owned()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            limitation: Some(Limitation {
                max_message_length: Some(saturate(max_message_bytes)),
                max_subscriptions: Some(saturate(options.max_subscriptions)),
                max_limit: Some(saturate(MAX_FILTER_LIMIT)),
                max_subid_length: Some(saturate(MAX_SUBSCRIPTION_ID)),
                auth_required: Some(options.auth),
                payment_required: Some(false),
                ..Limitation::default()
            }),
            ..RelayInformationDocument::default()
        };
        Self { document: without_nulls(&document).into() }
    }

    /// The answer to a request, and the upgrade to wait for when that answer is 101.
    pub(super) fn answer(&self, mut request: Request<Incoming>) -> (Response<Full<Bytes>>, Option<OnUpgrade>) {
        let mut response = Response::new(Full::default());
        if request.headers().contains_key(UPGRADE) {
            let mut handshake = Request::new(());
            *handshake.method_mut() = request.method().clone();
            *handshake.version_mut() = request.version();
            *handshake.headers_mut() = request.headers().clone();
            match create_response(&handshake) {
                Ok(accepted) => {
                    let response = accepted.map(|()| Full::default());
                    return (response, Some(hyper::upgrade::on(&mut request)));
                }
                Err(error) => {
                    // RFC 6455 section 4.4: the version that would do goes with the refusal.
                    *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
                    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
                    text(&mut response, format!("Not a websocket handshake of RFC 6455: {error}\n"));
                }
            }
        } else if request.method() == Method::OPTIONS {
            *response.status_mut() = StatusCode::NO_CONTENT;
        } else if request.method() != Method::GET && request.method() != Method::HEAD {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            text(&mut response, PAGE);
        } else if wants_document(request.headers()) {
            *response.body_mut() = Full::from(self.document.as_bytes().to_vec());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(NOSTR_JSON));
        } else {
            text(&mut response, PAGE);
        }
        // NIP-11: web clients on other origins read the document too.
        let any = HeaderValue::from_static("*");
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, any.clone());
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_HEADERS, any);
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, OPTIONS"));
        (response, None)
    }
}

/// The document as JSON without the members that say nothing: some clients take `null` for a broken limit.
fn without_nulls(document: &RelayInformationDocument) -> String {
    fn strip(value: &mut serde_json::Value) {
        if let serde_json::Value::Object(members) = value {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(strip);
        }
    }
    match serde_json::to_value(document) {
        Ok(mut value) => {
            strip(&mut value);
            value.to_string()
        }
        Err(_) => document.as_json(),
    }
}

fn text(response: &mut Response<Full<Bytes>>, body: impl Into<Bytes>) {
    *response.body_mut() = Full::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
}

fn wants_document(headers: &HeaderMap) -> bool {
    let types = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    types
        .flat_map(|value| value.split(','))
        .any(|range| range.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(NOSTR_JSON)))
}

/// NIP-11 libraries read 32-bit numbers.
fn saturate(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
