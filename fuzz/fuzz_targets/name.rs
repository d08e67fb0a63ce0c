//! Any host name: no panic, and a name that is read reads the same once written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nws::name::NostrName;

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<NostrName>() {
        assert_eq!(name.to_string().parse::<NostrName>().expect("what we write, we read"), name);
    }
});
