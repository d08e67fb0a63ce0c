//! The member `direct`: what two peers of this program say to each other about a connection beside the relays
//! (`docs/protocol.md`, "Direct connections"). What is done with it is in [`crate::tunnel`].

use serde::{Deserialize, Serialize};

/// Bytes of a token, and of a fingerprint.
pub const SECRET_LEN: usize = 32;

/// The member `direct` of a message; members that it does not carry stay out of the JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Direct {
    /// Where the sender waits for a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offer: Option<Offer>,
    /// In a `CONNECT`: the proxy dials an address that the exit offers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dials: bool,
    /// The sender has not reached what it was offered, and this is why; a word for machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
}

/// An address where one connection for one stream is waited for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// `host:port`.
    pub address: String,
    /// What opens the door, once.
    #[serde(with = "hex")]
    pub token: [u8; SECRET_LEN],
    /// SHA-256 of the certificate that is shown there.
    #[serde(with = "hex")]
    pub fingerprint: [u8; SECRET_LEN],
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is a secret, and the address is somebody's.
        f.write_str("Offer { .. }")
    }
}

/// Why an offered address was not reached. It does not say what was found there, or an exit would scan ports for anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failed {
    /// The sender does not connect to such an address, or to none at all.
    Denied,
    /// It is asked for too much at the moment.
    Overloaded,
    /// There is no connection, for whatever reason; also any word of a later version.
    #[serde(other)]
    Unreachable,
}

/// 32 bytes as 64 hexadecimal digits.
mod hex {
    use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
    use serde::{Deserialize, Deserializer, Serializer};

    use super::SECRET_LEN;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; SECRET_LEN], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; SECRET_LEN], D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| serde::de::Error::custom("not 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_the_wire_and_leaves_out_what_it_does_not_carry() {
        let offer = Offer { address: "[2001:db8::1]:4443".to_owned(), token: [1; SECRET_LEN], fingerprint: [255; 32] };
        let token = "01".repeat(SECRET_LEN);
        for (direct, text) in [
            (Direct { dials: true, ..Direct::default() }, r#"{"dials":true}"#.to_owned()),
            (Direct { failed: Some(Failed::Denied), ..Direct::default() }, r#"{"failed":"denied"}"#.to_owned()),
            (
                Direct { offer: Some(offer), ..Direct::default() },
                format!(
                    r#"{{"offer":{{"address":"[2001:db8::1]:4443","token":"{token}","fingerprint":"{}"}}}}"#,
                    "ff".repeat(SECRET_LEN)
                ),
            ),
        ] {
            assert_eq!(serde_json::to_string(&direct).unwrap(), text);
            assert_eq!(serde_json::from_str::<Direct>(&text).unwrap(), direct);
            assert!(!format!("{direct:?}").contains(&token), "no secret in a log");
        }
        let later = serde_json::from_str::<Direct>(r#"{"failed":"eclipsed","more":[1]}"#).unwrap();
        assert_eq!(later.failed, Some(Failed::Unreachable));
        for wrong in ["", "01", &token[1..], &format!("{token}01"), &token.replace('1', "g")] {
            let text = format!(r#"{{"offer":{{"address":"a:1","token":"{wrong}","fingerprint":"{token}"}}}}"#);
            assert!(serde_json::from_str::<Direct>(&text).is_err(), "{wrong}");
        }
    }
}
