//! The proxy that relays are reached through, Tor or another (`[relay_proxy]`): SOCKS5, with names resolved at its far end
//! and never here, so that nobody on the way learns which relays are used.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

use fast_socks5::client::{Config, Socks5Stream};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{AuthenticationMethod, Socks5Command, SocksError};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use url::Url;

use crate::destination::{Destination, Host};

/// Longest user or password (RFC 1929 section 2).
const CREDENTIAL_MAX: usize = 255;

/// Where a SOCKS5 proxy is by convention (RFC 1928 section 3).
const DEFAULT_PORT: u16 = 1080;

/// The proxy before the relays. User and password are shown by nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upstream {
    proxy: Destination,
    credentials: Option<(String, String)>,
}

/// Why a text is no such proxy. It does not repeat the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write socks5://HOST:PORT or socks5://USER:PASSWORD@HOST:PORT, as socks5://127.0.0.1:9050")]
pub struct UpstreamError(&'static str);

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let url = Url::parse(text).map_err(|_| UpstreamError("is no URL"))?;
        if !matches!(url.scheme(), "socks5" | "socks5h") {
            return Err(UpstreamError("has another scheme than socks5"));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(UpstreamError("has no host"))?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(UpstreamError("has more behind the port"));
        }
        let port = url.port().unwrap_or(DEFAULT_PORT);
        if port == 0 {
            return Err(UpstreamError("has port 0, which nothing can be connected to"));
        }
        let (user, password) = (decoded(url.username()), decoded(url.password().unwrap_or_default()));
        if user.len() > CREDENTIAL_MAX || password.len() > CREDENTIAL_MAX {
            return Err(UpstreamError("has a user or a password of more than 255 bytes"));
        }
        let credentials = (!user.is_empty() || url.password().is_some()).then_some((user, password));
        Ok(Self { proxy: Destination { host: Host::parse(host), port }, credentials })
    }
}

/// A part of a URL as it was meant.
fn decoded(part: &str) -> String {
    // The decoder is that of forms, to which these two mean something.
    let part = part.replace('+', "%2B").replace('&', "%26");
    url::form_urlencoded::parse(part.as_bytes()).next().map(|(text, _)| text.into_owned()).unwrap_or_default()
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socks5://{}", self.proxy)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upstream({self})")
    }
}

impl TryFrom<String> for Upstream {
    type Error = UpstreamError;

    fn try_from(text: String) -> Result<Self, UpstreamError> {
        text.parse()
    }
}

impl From<Upstream> for String {
    /// Without user and password.
    fn from(upstream: Upstream) -> Self {
        upstream.to_string()
    }
}

impl Upstream {
    /// Connects to the proxy alone.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn reach(&self) -> io::Result<TcpStream> {
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("the proxy {self}: {error}"));
        let stream = match &self.proxy.host {
            Host::Ip(ip) => TcpStream::connect((*ip, self.proxy.port)).await,
            Host::Name(name) => TcpStream::connect((name.as_str(), self.proxy.port)).await,
        };
        stream.map_err(failed)
    }

    /// Connects to a host through the proxy, which resolves its name.
    ///
    /// # Errors
    /// The proxy cannot be reached, or does not connect.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let stream = self.reach().await?;
        stream.set_nodelay(true)?;
        let target = match host.parse() {
            Ok(ip) => TargetAddr::Ip(SocketAddr::new(ip, port)),
            Err(_) => TargetAddr::Domain(host.to_owned(), port),
        };
        let auth =
            self.credentials.clone().map(|(username, password)| AuthenticationMethod::Password { username, password });
        let asked = async {
            let mut socks = Socks5Stream::use_stream(stream, auth, Config::default()).await?;
            socks.request(Socks5Command::TCPConnect, target).await?;
            Ok(socks.get_socket())
        };
        asked.await.map_err(|error| io::Error::other(format!("the proxy {self}: {}", words(&error))))
    }
}

/// What went wrong, without the user, whom the library's own words repeat.
fn words(error: &SocksError) -> String {
    match error {
        SocksError::AuthenticationRejected(_) => "it does not accept the user and password".to_owned(),
        SocksError::AuthMethodUnacceptable(_) => "it wants another way to authenticate".to_owned(),
        SocksError::ReplyError(reply) => format!("it cannot connect to the relay: {reply}"),
        other => format!("it does not speak SOCKS5: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_url_whose_password_nothing_shows() {
        for (text, shown, credentials) in [
            ("socks5://127.0.0.1:9050", "socks5://127.0.0.1:9050", None),
            ("socks5h://tor.example", "socks5://tor.example:1080", None),
            ("socks5://[::1]:9/", "socks5://[::1]:9", None),
            ("socks5://me:se%20c+r&et@h:9", "socks5://h:9", Some(("me", "se c+r&et"))),
            ("socks5://me@h:9", "socks5://h:9", Some(("me", ""))),
        ] {
            let upstream: Upstream = text.parse().unwrap();
            assert_eq!(upstream.to_string(), shown);
            let expected = credentials.map(|(user, password)| (user.to_owned(), password.to_owned()));
            assert_eq!(upstream.credentials, expected, "{text}");
            let all = format!("{upstream:?} {upstream:#?} {}", serde_json::to_string(&upstream).unwrap());
            assert!(!all.contains("me") && !all.contains("et"), "{all}");
        }
        for (text, why) in [
            ("127.0.0.1:9050", "no URL"),
            ("http://h:secret@h:1", "another scheme"),
            ("socks5://", "no"),
            ("socks5://h:0", "port 0"),
            ("socks5://h:1/x", "more behind"),
            (&format!("socks5://{}@h:1", "secret".repeat(50)), "more than 255"),
        ] {
            let error = text.parse::<Upstream>().unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
