//! Any text from a relay: reading and verifying it never panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nws::envelope::IncomingEvent;

fuzz_target!(|json: &str| {
    if let Ok(event) = IncomingEvent::parse(json) {
        let _ = event.recipient();
        let _ = event.verify();
    }
});
