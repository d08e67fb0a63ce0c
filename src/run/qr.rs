//! A name as a QR code for the terminal, to be read by a telephone's camera.

use fast_qr::QRBuilder;

use crate::name::NostrName;

/// The code of the name's address, drawn in blocks; `None` for a name that is too long for one (some 4,000 characters).
#[must_use]
pub fn code(name: &NostrName) -> Option<String> {
    // Hosts and schemes have no case, and a code of capital letters is a third smaller.
    let text = format!("http://{name}/").to_uppercase();
    QRBuilder::new(text).build().ok().map(|code| code.to_str())
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;

    #[test]
    fn a_name_is_a_square_and_one_that_is_too_long_is_none() {
        let relay = |len: usize| crate::name::parse_relay(&format!("wss://relay.example/{}", "x".repeat(len))).unwrap();
        let key = Keys::generate().public_key();
        let code = code(&NostrName::new(key, [relay(0)])).unwrap();
        let widths: Vec<_> = code.lines().map(|line| line.chars().count()).collect();
        assert!(widths.len() > 20 && widths.iter().all(|width| *width == widths[0]), "{widths:?}");
        assert!(super::code(&NostrName::new(key, [relay(4_000)])).is_none());
    }
}
