//! Cost of reading a live value, on one thread and on two: `cargo bench -p coord-config`.

use std::{hint::black_box, thread, time::Instant};

use coord_api::{ConfigExt, Provider};
use coord_config::{Live, LiveExt};

/// Way to read.
type Read = fn(&Live<Vec<u64>>) -> usize;

const READS: u32 = 20_000_000;

fn nanoseconds(live: &Live<Vec<u64>>, read: Read) -> f64 {
    let began = Instant::now();
    for _ in 0..READS {
        black_box(read(black_box(live)));
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(READS)
}

#[tokio::main]
async fn main() -> coord_api::Result<()> {
    let config = coord_memory::Store::new().client().config();
    config.set("list", &vec![1, 2, 3]).await?;
    let live = config.live::<Vec<u64>>("list").start().await?;
    let ways: [(&str, Read); 2] =
        [("current", |live| live.current().len()), ("look", |live| live.look(Vec::len))];
    for (name, read) in ways {
        let alone = nanoseconds(&live, read);
        let two = thread::scope(|scope| {
            let other = scope.spawn(|| nanoseconds(&live, read));
            nanoseconds(&live, read).max(other.join().expect("does not panic"))
        });
        println!("{name}: {alone:.1} ns on one thread, {two:.1} ns on each of two");
    }
    Ok(())
}
