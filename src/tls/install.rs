//! Certificate stores.
