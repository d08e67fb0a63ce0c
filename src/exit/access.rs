//! Who may connect to what: lists of lasting keys, per service and for public use. How a key is proved is in
//! [`crate::identity`].

use std::collections::{BTreeMap, BTreeSet};

use nostr::PublicKey;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::name::{NostrName, parse_public_key};
use crate::tunnel::Offer;

/// Those who may, by their keys; an empty list is nobody. Where there is no list, everybody may.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct AllowList(BTreeSet<PublicKey>);

impl FromIterator<PublicKey> for AllowList {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

impl TryFrom<Vec<String>> for AllowList {
    type Error = String;

    fn try_from(list: Vec<String>) -> Result<Self, String> {
        // The text stays out of the error: it may be the secret half of a key.
        let key = |(index, text): (usize, &String)| {
            parse_public_key(text).map_err(|error| format!("entry {} is no public key: {error}", index + 1))
        };
        list.iter().enumerate().map(key).collect()
    }
}

impl From<AllowList> for Vec<String> {
    fn from(list: AllowList) -> Self {
        list.0.into_iter().map(|key| NostrName::new(key, []).npub()).collect()
    }
}

/// The lists of an exit. The default lets everybody in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// For services without a list of their own.
    pub services: Option<AllowList>,
    /// For single services, by the port that clients see.
    pub by_port: BTreeMap<u16, AllowList>,
    /// For other hosts.
    pub public: Option<AllowList>,
}

impl Access {
    /// The list of a service; `port` is `None` where no service has the port that was asked for.
    pub(super) fn of_service(&self, port: Option<u16>) -> Option<&AllowList> {
        port.and_then(|port| self.by_port.get(&port)).or(self.services.as_ref())
    }
}

/// Lets an offer pass, or says why not.
pub(super) fn check(list: Option<&AllowList>, offer: &Offer) -> Result<(), Error> {
    let Some(AllowList(keys)) = list else { return Ok(()) };
    let denied = |why| Err(Error::new(ErrorKind::Denied, why));
    match offer.identity()? {
        Some(identity) if keys.contains(&identity) => Ok(()),
        Some(_) => denied("the exit's owner lets only some identities in, and the proxy's is not one of them"),
        None => denied(
            "the exit's owner lets only some identities in, and the proxy shows none \
             (proxy.identity, with this exit in proxy.identity_for)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;

    #[test]
    fn a_list_is_read_in_every_spelling_of_a_key_and_says_which_entry_is_wrong() {
        let name = NostrName::new(Keys::generate().public_key(), []);
        let list = |texts: &[String]| serde_json::from_value::<AllowList>(serde_json::json!(texts));
        for text in [name.npub(), name.public_key.to_hex()] {
            let list = list(&[text]).unwrap();
            assert_eq!(list, [name.public_key].into_iter().collect());
            assert_eq!(serde_json::to_value(list).unwrap(), serde_json::json!([name.npub()]));
        }
        let nsec = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5".to_owned();
        let error = list(&[name.npub(), nsec]).unwrap_err().to_string();
        assert!(error.contains("entry 2") && !error.contains("nsec1vl"), "{error}");
    }

    #[test]
    fn a_service_has_its_own_list_or_that_of_all() {
        let list = || Some([Keys::generate().public_key()].into_iter().collect::<AllowList>());
        let (all, own) = (list(), list());
        let access = Access { services: all.clone(), by_port: [(80, own.clone().unwrap())].into(), public: None };
        assert_eq!(access.of_service(Some(80)), own.as_ref());
        assert_eq!(access.of_service(Some(81)), all.as_ref());
        assert_eq!(access.of_service(None), all.as_ref());
        assert_eq!(Access::default().of_service(Some(80)), None);
    }
}
