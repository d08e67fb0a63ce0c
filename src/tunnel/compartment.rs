//! Whose streams may share a session key. What sets clients apart (credentials, a listener, a destination) goes in, an
//! opaque mark comes out: nothing of a credential is kept here or can be read from a mark.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::LazyLock;

/// The keys of the two hashes that make a mark, new in each process: nobody can make two credentials that collide.
static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(|| [RandomState::new(), RandomState::new()]);

/// The mark of those whose streams may be linked by a key: only equal ones share a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Compartment([u64; 2]);

impl Compartment {
    /// Of those that nothing sets apart, as the streams of one program's own.
    pub const NONE: Self = Self([0, 0]);

    /// The compartment of what sets a client apart: equal for equal values, and for no others.
    #[must_use]
    pub fn of(what: &impl Hash) -> Self {
        Self(KEYS.each_ref().map(|key| key.hash_one(what)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_a_compartment_and_others_do_not() {
        assert_eq!(Compartment::of(&("a", "b")), Compartment::of(&("a", "b")));
        assert_ne!(Compartment::of(&("a", "b")), Compartment::of(&("ab", "")));
        assert_ne!(Compartment::of(&1), Compartment::NONE);
    }

    #[test]
    fn a_mark_shows_nothing_of_what_it_stands_for() {
        assert!(!format!("{:?}", Compartment::of(&"secret")).contains("secret"));
    }
}
