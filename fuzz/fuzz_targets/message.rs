//! Any plaintext: no panic, and what is read reads the same once written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nws::message::{decode, encode, encoded_len};

fuzz_target!(|plaintext: &[u8]| {
    if let Ok(messages) = decode(plaintext) {
        let text = encode(&messages);
        assert_eq!(text.len(), encoded_len(&messages));
        assert_eq!(decode(&text).expect("what we write, we read"), messages);
    }
});
