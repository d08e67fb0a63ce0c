//! What people see in place of the site they wanted: what failed, why, and what to try, as HTML for a browser and as
//! text for everything else. A failure's page appears under the name of the site, so every foreign word in it is
//! escaped and the page may load nothing.

use std::fmt::Write;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::{Error, ErrorKind};

/// The header that tells programs which row of the table of outcomes it was.
pub(super) const NWS_ERROR: HeaderName = HeaderName::from_static("nws-error");

/// Says that a page may load and run nothing, whatever slips into it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// What that header says of an exit's certificate that is not the published one. It is no row of the table: it exists
/// where the proxy ends TLS, and never on the wire.
pub(super) const CERTIFICATE: &str = "certificate";

/// The form that a client can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A browser.
    Html,
    /// Everything else.
    Text,
}

impl Style {
    /// HTML for whoever asks for it by name.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let accepts = headers.get_all(header::ACCEPT);
        let html =
            accepts.iter().any(|value| value.to_str().is_ok_and(|v| v.to_ascii_lowercase().contains("text/html")));
        if html { Self::Html } else { Self::Text }
    }
}

/// A page of a title, a few sentences, and a list of things to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    title: &'static str,
    text: String,
    advice: &'static [&'static str],
    code: Option<&'static str>,
}

impl Page {
    /// What the port is, for whoever opens it like a site. Tells nothing of this machine or its configuration: any
    /// site may get a visitor's browser to read it.
    pub(super) fn about() -> Self {
        Self {
            title: "This is a proxy, not a site",
            text:
                "nws carries connections over Nostr relays. This port speaks SOCKS5 and HTTP to programs that use it \
                   as their proxy."
                    .to_owned(),
            advice: &[
                "In a browser: enter this address and port as the SOCKS5 host (with DNS through the proxy) or as the \
                 HTTP proxy, then open http://NAME.nostr/",
                "With curl: curl --socks5-hostname ADDRESS:PORT http://NAME.nostr/ or curl -x http://ADDRESS:PORT \
                 http://NAME.nostr/",
            ],
            code: None,
        }
    }

    /// A request that a proxy cannot serve.
    pub(super) fn bad_request(reason: String) -> Self {
        Self {
            title: "The proxy cannot serve this request",
            text: reason,
            advice: &[
                "Ask for http://NAME/ in absolute form, or use CONNECT host:port.",
                "For https:// addresses the program has to use CONNECT; look for a setting \"HTTPS proxy\".",
            ],
            code: Some("bad-request"),
        }
    }

    /// A stream that could not be opened.
    pub(super) fn failure(error: &Error) -> Self {
        let kind = error.kind();
        let (title, advice) = words(kind);
        Self { title, text: format!("{}.", error.reason()), advice, code: Some(kind.code()) }
    }

    /// An exit that shows another certificate than it has published; each by its fingerprint.
    pub(super) fn certificate(published: &[String], shown: &str) -> Self {
        Self {
            title: "This is not the certificate of the exit",
            text: format!(
                "The exit's key has signed that its TLS certificate is the one with the SHA-256 fingerprint {}. What was \
                 shown has the fingerprint {shown}. Nothing was sent to it.",
                published.join(" or ")
            ),
            advice: &[
                "If it is yours: was the certificate changed without restarting the exit, or does another service answer \
                 on port 443?",
                "Else tell whoever runs the exit, by another way than this one. There is no way around this page.",
            ],
            code: Some(CERTIFICATE),
        }
    }

    /// The page as a complete answer.
    pub(super) fn into_response(self, status: StatusCode, style: Style) -> Response<Bytes> {
        let (kind, body) = match style {
            Style::Html => ("text/html; charset=utf-8", self.html()),
            Style::Text => ("text/plain; charset=utf-8", self.plain()),
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    fn plain(&self) -> String {
        let mut out = format!("{}\n\n{}\n", self.title, self.text);
        for line in self.advice {
            let _ = write!(out, "\n* {line}");
        }
        if let Some(code) = self.code {
            let _ = write!(out, "\n\nnws: {code}");
        }
        out.push('\n');
        out
    }

    fn html(&self) -> String {
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\n\
             <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem;\
             overflow-wrap:anywhere}}small{{color:#666}}</style></head>\n\
             <body>\n<h1>{title}</h1>\n<p>{text}</p>\n<ul>\n",
            title = escape(self.title),
            text = escape(&self.text),
        );
        for line in self.advice {
            let _ = writeln!(out, "<li>{}</li>", escape(line));
        }
        out.push_str("</ul>\n");
        if let Some(code) = self.code {
            let _ = writeln!(out, "<p><small>nws: {}</small></p>", escape(code));
        }
        out.push_str("</body>\n</html>\n");
        out
    }
}

/// What each outcome means to people.
const fn words(kind: ErrorKind) -> (&'static str, &'static [&'static str]) {
    match kind {
        ErrorKind::Denied => (
            "Not allowed",
            &[
                "Check the address and its port: the exit offers only the services it was started with.",
                "Ask whoever runs the exit whether you may use it.",
            ],
        ),
        ErrorKind::NetworkUnreachable => (
            "The way there is closed",
            &[
                "Check this machine's connection to the internet.",
                "The relays of this name may be down; ask its owner for a name with other relays.",
            ],
        ),
        ErrorKind::HostUnreachable => (
            "Nothing was found under this name",
            &[
                "Check the name letter by letter; one wrong letter makes it another name.",
                "If the name is right, the machine behind the exit may be off.",
            ],
        ),
        ErrorKind::Refused => (
            "The service is not running",
            &[
                "The exit was reached, but nothing answers behind it. Try again when the service has been started.",
                "If it is yours, check the address in the exit's --service.",
            ],
        ),
        ErrorKind::Timeout => (
            "Nobody answered in time",
            &[
                "The exit may be off, or no longer on the relays of this name. Try again in a minute.",
                "If it is yours, check that it runs and names the same relays.",
            ],
        ),
        ErrorKind::Overloaded => (
            "Too busy just now",
            &["A limit is reached, here or at the exit. Try again in a minute, or close connections you do not need."],
        ),
        ErrorKind::UnknownStream => {
            ("The exit has forgotten this connection", &["It was probably restarted. Load the page again."])
        }
        ErrorKind::Aborted => ("The connection broke off", &["The other end gave it up. Load the page again."]),
        ErrorKind::Protocol => (
            "The answer could not be understood",
            &[
                "The service may not speak HTTP on this port, or may have broken off. Load the page again.",
                "If it needs https://, use that in the address.",
            ],
        ),
        ErrorKind::Internal => (
            "Something went wrong",
            &["Load the page again. If it stays so, the log of the proxy says more (nws proxy -v)."],
        ),
    }
}

/// Text that is safe between tags and in quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_words_cannot_leave_the_text() {
        let error = Error::new(ErrorKind::Denied, "<script>alert('x')</script> & \"more\"");
        let page = Page::failure(&error).html();
        assert!(!page.contains("<script"));
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;more&quot;"));
    }

    #[test]
    fn a_wrong_certificate_is_told_with_both_fingerprints() {
        let page = Page::certificate(&["AA:BB".into(), "CC:DD".into()], "EE:FF");
        for text in [page.html(), page.plain()] {
            assert!(["AA:BB or CC:DD", "EE:FF", "nws: certificate"].iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn every_kind_has_a_title_and_something_to_try() {
        for kind in ErrorKind::ALL {
            let page = Page::failure(&Error::new(kind, "the reason"));
            assert!(!page.title.is_empty() && !page.advice.is_empty());
            assert!(page.plain().contains("the reason.") && page.plain().contains(kind.code()));
        }
    }

    #[test]
    fn only_who_asks_for_html_gets_it() {
        let mut headers = HeaderMap::new();
        assert_eq!(Style::of(&headers), Style::Text);
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        assert_eq!(Style::of(&headers), Style::Text);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/xml, Text/HTML;q=0.9"));
        assert_eq!(Style::of(&headers), Style::Html);
    }
}
