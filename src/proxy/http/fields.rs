//! Which header fields belong to one hop and must not travel on (RFC 9110 section 7.6.1).

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};

/// Fields of one connection, whether or not `Connection` names them. `Transfer-Encoding` is written anew by hyper.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Removes what was meant for the proxy alone.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers, &header::CONNECTION).filter_map(|token| token.parse::<HeaderName>().ok()).collect();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // The framing goes by the encoding; a length beside it is a lie or an attack (RFC 9112 section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    let proxy: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("proxy-")).cloned().collect();
    for name in proxy {
        headers.remove(name);
    }
}

/// The protocol that `Connection: upgrade` asks for or grants. HTTP/2 in clear text is not passed on: it would need
/// the same settings on both hops.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    if !tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    headers.get(header::UPGRADE).filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"h2c")).cloned()
}

/// Puts back what [`strip_hop_by_hop`] took from an upgrade.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// The members of a comma-separated list, over all lines of the field.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn what_belongs_to_one_hop_is_dropped_and_the_rest_kept() {
        let mut fields = headers(&[
            ("connection", "close, X-Own"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic c2VjcmV0"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("x-own", "1"),
            ("x-other", "2"),
            ("content-length", "3"),
        ]);
        fields.append(header::CONNECTION, HeaderValue::from_static("x-second"));
        fields.insert(HeaderName::from_static("x-second"), HeaderValue::from_static("4"));
        strip_hop_by_hop(&mut fields);
        assert_eq!(fields, headers(&[("x-other", "2"), ("content-length", "3")]));
    }

    #[test]
    fn a_length_beside_an_encoding_does_not_travel_on() {
        let mut fields = headers(&[("transfer-encoding", "chunked"), ("content-length", "3")]);
        strip_hop_by_hop(&mut fields);
        assert!(fields.is_empty());
    }

    #[test]
    fn an_upgrade_needs_both_fields_and_is_never_h2c() {
        assert_eq!(upgrade(&headers(&[("upgrade", "websocket")])), None);
        assert_eq!(upgrade(&headers(&[("connection", "upgrade")])), None);
        assert_eq!(upgrade(&headers(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")])), None);
        let asked = upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert_eq!(asked, Some(HeaderValue::from_static("websocket")));
    }
}
