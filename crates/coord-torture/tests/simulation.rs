//! Thousands of runs on the memory backend, each with faults of its own, in virtual time.
//!
//! `cargo xtask sim` runs them as CI does. Environment: `COORD_SIM_SEEDS=N` runs so many, from `COORD_SIM_FROM=S` on (0);
//! `COORD_SIM_SEED=S` only that one. Its history is written to `target/sim-S.txt` then, and the last requests of the store to
//! `target/sim-S-requests.txt`.

#[path = "simulation/nemesis.rs"]
mod nemesis;
#[path = "simulation/restored.rs"]
mod restored;
#[path = "simulation/world.rs"]
mod world;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use world::{Simulated, simulate};

/// With tokio's own choices from the seed, as `cargo xtask sim` builds it, a seed means the same history everywhere.
const DETERMINISTIC: bool = cfg!(tokio_unstable);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// What a person types to see one seed again.
fn again(seed: u64) -> String {
    format!("cargo xtask sim --seed {seed}")
}

/// How many of the last requests of a single seed are written down.
const REQUESTS: usize = 100_000;

/// How many seeds with violations end a test.
const ENOUGH: usize = 5;

/// How long a seed takes that will never end: a moment otherwise.
const NEVER: Duration = Duration::from_secs(60);

/// Runs `each` on so many seeds, on all cores. Virtual time that stands still, since tasks wake each other without end, is
/// told as well.
fn on_all_cores(count: u64, each: impl Fn(u64) + Sync) {
    let from = number("COORD_SIM_FROM").unwrap_or(0);
    let (next, end) = (AtomicU64::new(from), from.saturating_add(count));
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let running: Vec<_> = (0..threads).map(|_| Mutex::new(Some((from, Instant::now())))).collect();
    let is = |now: &Mutex<Option<(u64, Instant)>>| *now.lock().expect("nothing panics while this is locked");
    let (is, each) = (&is, &each);
    thread::scope(|scope| {
        for now in &running {
            let next = &next;
            scope.spawn(move || {
                let set = |to| *now.lock().expect("nothing panics while this is locked") = to;
                let seeds =
                    std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::SeqCst)).filter(|it| *it < end));
                for seed in seeds {
                    set(Some((seed, Instant::now())));
                    each(seed);
                }
                set(None);
            });
        }
        while running.iter().any(|now| is(now).is_some()) {
            for (seed, since) in running.iter().filter_map(is) {
                if since.elapsed() > NEVER {
                    eprintln!("seed {seed} does not end\n  once more: {}", again(seed));
                    // A thread that goes round in circles can not be stopped in another way.
                    std::process::exit(101);
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = number("COORD_SIM_SEED") {
        let Simulated { outcome, requests } = simulate(seed, Some(REQUESTS));
        let lines =
            outcome.events.iter().enumerate().map(|(at, event)| {
                format!("#{at} {:?} process {} {:?}\n", event.at, event.process, event.what)
            });
        let write = |file: &str, lines: String| {
            let path = format!("{}/../../target/{file}", env!("CARGO_MANIFEST_DIR"));
            std::fs::write(path, lines).expect("the target folder can be written");
        };
        write(&format!("sim-{seed}.txt"), lines.collect());
        write(&format!("sim-{seed}-requests.txt"), requests.join("\n"));
        println!(
            "{}\nfingerprint {:x}, history in target/sim-{seed}.txt, requests in target/sim-{seed}-requests.txt",
            outcome.summary(),
            outcome.fingerprint()
        );
        outcome.assert_good(&again(seed));
        return;
    }
    let seeds = number("COORD_SIM_SEEDS").unwrap_or(if DETERMINISTIC { 10_000 } else { 100 });
    let (start, run) = (Instant::now(), AtomicUsize::new(0));
    let (events, bad) = (AtomicUsize::new(0), AtomicUsize::new(0));
    on_all_cores(seeds, |seed| {
        // More of them would tell nothing new.
        if bad.load(Ordering::SeqCst) >= ENOUGH {
            return;
        }
        let Simulated { outcome, .. } = simulate(seed, None);
        run.fetch_add(1, Ordering::SeqCst);
        events.fetch_add(outcome.events.len(), Ordering::SeqCst);
        if !outcome.violations.is_empty() {
            bad.fetch_add(1, Ordering::SeqCst);
            eprintln!("{}", outcome.report(&again(seed)));
        }
    });
    let (run, events, bad) = (run.into_inner(), events.into_inner(), bad.into_inner());
    println!("{run} seeds, {events} events, {bad} seeds with violations, {:?}", start.elapsed());
    assert_eq!(bad, 0, "seeds with violations; see above");
}

/// Only where tokio's own choices follow from the seed: `cargo xtask sim`.
#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_gives_the_same_history() {
    let differing = AtomicUsize::new(0);
    on_all_cores(number("COORD_SIM_SEEDS").unwrap_or(300).min(300), |seed| {
        let (one, other) = (simulate(seed, None).outcome, simulate(seed, None).outcome);
        if one.fingerprint() != other.fingerprint() {
            let at = one.events.iter().zip(&other.events).position(|(one, other)| one != other);
            let shown = at.map(|at| (at, &one.events[at], &other.events[at]));
            eprintln!("seed {seed} differs: {shown:?}");
            differing.fetch_add(1, Ordering::SeqCst);
        }
    });
    assert_eq!(differing.into_inner(), 0, "seeds whose two runs differ; see above");
}
