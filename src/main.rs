//! The `nws` command: parse, start, exit code. Everything else is in the library.

fn main() {}
