//! Numbers come back bit by bit, whatever else a build has switched on. `cargo xtask lint` runs this with
//! this crate alone, where no other crate switches on features of `serde_json`.

use coord_api::{ConfigExt, Provider};
use coord_config::{HistoryExt, LiveExt};

#[tokio::test]
async fn floats_come_back_bit_by_bit_without_other_features() {
    let config = coord_memory::Store::new().client().config();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut floats: Vec<f64> = (0..12_000).map(|_| f64::from_bits(rng.u64(..))).collect();
    floats.retain(|float| float.is_finite());
    let bits = |floats: &[f64]| floats.iter().map(|float| float.to_bits()).collect::<Vec<_>>();
    let first = config.record("floats").set(&floats).await.expect("is written");
    let found = config.get::<Vec<f64>>("floats").await.expect("is read").expect("exists");
    assert!(bits(&found.value) == bits(&floats), "get");
    let updated =
        config.update("floats", |old: Option<Vec<f64>>| old.expect("exists")).await.expect("is written");
    assert!(bits(&updated.value) == bits(&floats), "update");
    config.record("floats").rollback(first).await.expect("is kept");
    let live = config.live("floats").default_fields(floats.clone()).start().await.expect("exists");
    assert!(bits(&live.current()) == bits(&floats), "live");
    let small: Vec<f32> = (0..5000).map(|_| f32::from_bits(rng.u32(..))).filter(|f| f.is_finite()).collect();
    config.set("small", &small).await.expect("is written");
    assert!(config.get::<Vec<f32>>("small").await.expect("is read").expect("exists").value == small);
}
