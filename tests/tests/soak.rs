//! A short soak with another seed each time. `cargo xtask soak` runs longer ones, or the same one again.

use std::time::Duration;

use coord_tests::soak::soak;

const TIME: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread")]
async fn no_promise_is_broken_while_everything_goes_wrong() {
    let seed = fastrand::u64(..1_000_000);
    let again = format!("cargo xtask soak --seconds {} --seed {seed}", TIME.as_secs());
    println!("{again}");
    let soaked = soak(seed, TIME, &|line| println!("{line}")).await.expect("faults can be caused and ended");
    let (faults, authentications) = (soaked.faults, soaked.authentications);
    println!("{faults} faults; {authentications} authentications; {}", soaked.outcome.summary());
    soaked.outcome.assert_good(&again);
    assert!(faults >= 5, "{faults} faults are few; {again}");
    assert!(authentications > 8, "{authentications} are those of the start, so no token expired; {again}");
}
