//! The suite itself, from outside: as unit tests of the library all of it would be compiled a second time.

use std::collections::BTreeSet;

#[path = "../src/listener.rs"]
#[expect(dead_code, reason = "its own unit tests use no more")]
mod listener;

#[test]
fn every_test_has_a_path_of_its_own_and_names_its_promise() {
    let mut paths = BTreeSet::new();
    for test in coord_conformance::contract() {
        assert!(paths.insert(test.path()), "{} is there twice", test.path());
        assert!(test.promise().starts_with("Contract "), "{} names no line of the contract", test.path());
    }
    assert!(paths.len() >= 70, "{}", paths.len());
}
