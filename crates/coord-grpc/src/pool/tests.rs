use std::collections::BTreeSet;

use coord_api::{WEIGHT, ZONE};

use super::{
    dial::{DIALS, YOUNG},
    *,
};
use crate::options::LONGEST_PAUSE;

/// Returns a record with an address of its own.
fn info(id: &str) -> ServiceInfo {
    ServiceInfo::new("svc", id, format!("{id}.local"), 80)
}

fn inserted(ids: &[&str]) -> Vec<Change<String, ServiceInfo>> {
    ids.iter().map(|id| Change::Insert((*id).into(), info(id))).collect()
}

fn options() -> PoolOptions {
    PoolOptions {
        policy: Policy::default(),
        zone: None,
        only: BTreeMap::new(),
        subset: None,
        outlier_detection: Some(OutlierDetection::new().consecutive_failures(2)),
        longest_pause: LONGEST_PAUSE,
        health_check: None,
        slow_start: None,
    }
}

/// Returns a pool whose instances are all ready.
fn ready(options: PoolOptions, ids: &[&str]) -> Pool<u64> {
    let mut pool = Pool::new(options);
    pool.apply(inserted(ids), Instant::now());
    connect(&mut pool);
    pool
}

fn connect(pool: &mut Pool<u64>) -> usize {
    let now = Instant::now();
    let dials = pool.due(now);
    for dial in &dials {
        pool.dialled(dial, Ok(dial.generation), now);
    }
    dials.len()
}

fn fail(pool: &mut Pool<u64>, id: &str, failure: Failure) -> Decision {
    let instance = &pool.instances[id];
    instance.stats.failed(OutlierDetection::INTERVAL, Instant::now());
    let generation = instance.generation;
    pool.failed(id, generation, failure, Instant::now())
}

#[tokio::test(start_paused = true)]
async fn instances_are_dialled_ahead_of_calls_within_a_limit() {
    let ids: Vec<_> = (0..100).map(|n| format!("{n:03}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let mut pool: Pool<u64> = Pool::new(options());
    pool.apply(inserted(&ids), Instant::now());
    let first = pool.due(Instant::now());
    assert_eq!(first.len(), DIALS);
    assert!(pool.due(Instant::now()).is_empty() && pool.next_due().is_none());
    pool.dialled(&first[0], Ok(0), Instant::now());
    assert_eq!(pool.due(Instant::now()).len(), 1, "one place is free");
    assert_eq!(pool.picker().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn refused_connections_are_retried_with_backoff() {
    let mut pool = Pool::<u64>::new(options());
    pool.apply(inserted(&["a"]), Instant::now());
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let dial = pool.due(Instant::now()).pop().expect("is due");
        pool.dialled(&dial, Err("refused".into()), Instant::now());
        let at = pool.next_due().expect("is tried again");
        pauses.push(at - Instant::now());
        tokio::time::sleep_until(at).await;
    }
    assert!(pauses[0] <= Duration::from_millis(60), "{pauses:?}");
    assert!(pauses[11] >= Duration::from_secs(4) && pauses[11] <= Duration::from_secs(6), "{pauses:?}");
    assert_eq!(pool.last_error.as_deref(), Some("refused"));
}

#[tokio::test(start_paused = true)]
async fn lost_connection_gets_no_calls_and_late_events_are_ignored() {
    let mut pool = ready(options(), &["a", "b"]);
    let generation = pool.instances["a"].generation;
    assert!(pool.connection_lost("a", generation, Some(""), Instant::now()));
    assert!(!pool.connection_lost("a", generation, Some(""), Instant::now()), "is told twice");
    assert_eq!(pool.picker().len(), 1);
    assert_eq!(connect(&mut pool), 1);
    assert_eq!(pool.picker().len(), 2);
    assert!(
        !pool.connection_lost("a", generation, Some(""), Instant::now()),
        "that was the connection before"
    );
    for _ in 0..9 {
        assert_eq!(pool.failed("a", generation, Failure::Silence, Instant::now()), Decision::Keep);
    }
    // Removed while it is being connected.
    tokio::time::sleep(YOUNG).await;
    let generation = pool.instances["a"].generation;
    pool.connection_lost("a", generation, Some(""), Instant::now());
    let dial = pool.due(Instant::now()).pop().expect("is due");
    pool.apply([Change::Remove("a".into())], Instant::now());
    pool.dialled(&dial, Ok(9), Instant::now());
    assert_eq!((pool.known(), pool.picker().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn connections_that_end_at_once_are_retried_with_backoff() {
    let mut pool = ready(options(), &["a"]);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let begun = Instant::now();
        assert!(pool.connection_lost("a", pool.instances["a"].generation, Some("closed at once"), begun));
        assert_eq!(pool.last_error.as_deref(), Some("closed at once"));
        tokio::time::sleep_until(pool.next_due().expect("is tried again")).await;
        pauses.push(begun.elapsed());
        assert_eq!(connect(&mut pool), 1);
    }
    assert!(pauses[0].is_zero() && pauses[1] > Duration::from_millis(30), "{pauses:?}");
    assert!(pauses[9] > Duration::from_secs(3), "{pauses:?}");
    assert_eq!(pool.last_error, None, "it is connected");
    assert!(pool.connection_lost("a", pool.instances["a"].generation, None, Instant::now()));
    assert_eq!(pool.next_due(), Some(Instant::now()), "that one was of use");
    assert_eq!(connect(&mut pool), 1);
    tokio::time::sleep(YOUNG).await;
    pool.connection_lost("a", pool.instances["a"].generation, Some(""), Instant::now());
    assert_eq!(pool.next_due(), Some(Instant::now()), "that one lasted");
}

#[tokio::test(start_paused = true)]
async fn ejected_instance_comes_back_on_trial() {
    let mut pool = ready(options(), &["a", "b", "c"]);
    assert_eq!(fail(&mut pool, "a", Failure::Answer), Decision::Keep);
    let Decision::Eject { until } = fail(&mut pool, "a", Failure::Answer) else { panic!("two in a row") };
    assert_eq!(pool.picker().len(), 2);
    assert_eq!(connect(&mut pool), 0, "not before its time");
    assert_eq!(pool.next_due(), Some(until));

    tokio::time::sleep_until(until).await;
    let dial = pool.due(Instant::now()).pop().expect("is due");
    pool.dialled(&dial, Err("silent".into()), Instant::now());
    assert!(pool.instances["a"].ejected.is_some(), "is still away");
    tokio::time::sleep_until(pool.next_due().expect("is tried again")).await;
    assert_eq!(connect(&mut pool), 1);
    let stats = pool.instances["a"].stats.clone();
    assert!(pool.instances["a"].ejected.is_none() && stats.on_trial.load(Relaxed));
    assert_eq!(pool.picker().len(), 3);

    let first = until;
    let now = Instant::now();
    let Decision::Eject { until } = fail(&mut pool, "a", Failure::Answer) else { panic!("is on trial") };
    assert!(until - now > Duration::from_millis(1500), "{:?}", until - first);
    assert_eq!(stats.ejections.load(Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn ejected_instance_comes_back_when_no_other_can_have_calls() {
    let mut pool = ready(options(), &["a", "b"]);
    fail(&mut pool, "a", Failure::Answer);
    let Decision::Eject { until } = fail(&mut pool, "a", Failure::Answer) else { panic!("two in a row") };
    assert!(pool.due(Instant::now()).is_empty(), "the other one is there");
    pool.connection_lost("b", pool.instances["b"].generation, None, Instant::now());
    let dial = pool.due(Instant::now()).pop().expect("is due");
    assert_eq!(dial.id, "b", "a connection that ends may be made again at once");
    pool.dialled(&dial, Err("refused".into()), Instant::now());
    let dial = pool.due(Instant::now()).pop().expect("nobody else is left");
    assert_eq!(dial.id, "a");
    pool.dialled(&dial, Err("refused".into()), Instant::now());
    assert!(pool.due(Instant::now()).is_empty(), "it has its pause like any other");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(connect(&mut pool) > 0 && Instant::now() < until);
    assert!(pool.picker().len() > 0);
}

#[tokio::test(start_paused = true)]
async fn last_instance_is_reconnected_and_not_ejected() {
    let mut pool = ready(options(), &["a"]);
    assert_eq!(fail(&mut pool, "a", Failure::Silence), Decision::Reconnect);
    assert_eq!(pool.picker().len(), 0);
    assert_eq!(connect(&mut pool), 1);
    for _ in 0..9 {
        assert_eq!(fail(&mut pool, "a", Failure::Answer), Decision::Keep);
    }
}

#[tokio::test(start_paused = true)]
async fn filter_by_metadata_keeps_connections_of_changed_records() {
    let options = PoolOptions { only: BTreeMap::from([("version".into(), "2".into())]), ..options() };
    let with = |id: &str, version: &str| Change::Insert(id.into(), info(id).with("version", version));
    let mut pool = Pool::<u64>::new(options);
    pool.apply([with("a", "1"), with("b", "2")], Instant::now());
    assert_eq!(connect(&mut pool), 1);
    let stats = pool.instances["b"].stats.clone();
    let heavier = info("b").with("version", "2").with(WEIGHT, "3");
    pool.apply([Change::Insert("b".into(), heavier), with("a", "2")], Instant::now());
    assert!(Arc::ptr_eq(&stats, &pool.instances["b"].stats));
    assert_eq!((pool.picker().len(), pool.known()), (1, 2));
    pool.apply([with("b", "3")], Instant::now());
    assert_eq!(pool.known(), 1, "no longer matches");
    let mut moved = info("a").with("version", "2");
    moved.port = 81;
    connect(&mut pool);
    pool.apply([Change::Insert("a".into(), moved)], Instant::now());
    assert_eq!(pool.picker().len(), 0, "is elsewhere now");
}

#[tokio::test(start_paused = true)]
async fn address_under_two_ids_is_one_instance_of_the_newer_record() {
    let at = |id: &str, address: &str| ServiceInfo::new("svc", id, address, 80);
    let insert = |info: ServiceInfo| Change::Insert(info.id.clone(), info);
    let mut pool = ready(options(), &["other"]);
    pool.apply([insert(at("crashed", "0::1"))], Instant::now());
    assert_eq!(connect(&mut pool), 1);
    let before = pool.instances["crashed"].stats.clone();
    before.load.begin();
    pool.apply([insert(at("successor", "::1").with(WEIGHT, "3"))], Instant::now());
    assert_eq!((pool.known(), pool.picker().len()), (2, 2), "no connection was cut");
    assert_eq!(connect(&mut pool), 0, "none is made");
    let successor = &pool.instances["successor"];
    assert_eq!((successor.stats.load.pending(), successor.info.weight().to_string()), (1, "3".into()));
    // The record of the crashed process is gone only when its lease is over. The end of the connection is reported
    // under the id that it was made for.
    pool.apply([Change::Remove("crashed".into())], Instant::now());
    assert_eq!((pool.known(), pool.picker().len()), (2, 2));
    let generation = pool.instances["successor"].generation;
    assert!(pool.connection_lost("crashed", generation, None, Instant::now()));
    assert_eq!(pool.picker().len(), 1);
    // If the newer one goes first, the older stands in.
    pool.apply([insert(at("crashed", "::1"))], Instant::now());
    pool.apply([Change::Remove("crashed".into())], Instant::now());
    assert!(pool.instances.contains_key("successor"));
    // A process that moves away leaves the address to the other id.
    connect(&mut pool);
    pool.apply([insert(at("late", "::1")), insert(at("successor", "::2"))], Instant::now());
    assert_eq!(pool.instances.keys().collect::<Vec<_>>(), ["late", "other", "successor"]);
}

#[tokio::test(start_paused = true)]
async fn instances_that_do_not_serve_get_no_calls_and_are_named() {
    let limit = Duration::from_secs(5);
    let mut pool = ready(options(), &["a", "b"]);
    let marked = |id: &str| Change::Insert(id.to_owned(), info(id).not_serving());
    pool.apply([marked("a")], Instant::now());
    assert_eq!((pool.known(), pool.picker().len()), (2, 1));
    pool.apply([marked("b")], Instant::now());
    assert_eq!(pool.picker().len(), 0);
    assert_eq!(pool.unavailable_reason(limit), "all 2 instances are marked as not serving");
    pool.apply(inserted(&["a"]), Instant::now());
    assert_eq!(pool.picker().len(), 1, "its connection stayed");

    let options = PoolOptions { health_check: Some(String::new()), ..options() };
    let mut pool = ready(options, &["a"]);
    assert_eq!(pool.picker().len(), 0, "it was not heard yet");
    let generation = pool.instances["a"].generation;
    assert!(pool.set_health("a", generation, Serving::Yes, Instant::now()));
    assert!(!pool.set_health("a", generation, Serving::Yes, Instant::now()), "is told twice");
    assert_eq!(pool.picker().len(), 1);
    assert!(pool.set_health("a", generation, Serving::No, Instant::now()));
    assert_eq!(pool.picker().len(), 0);
    assert_eq!(pool.unavailable_reason(limit), "all 1 instances say that they are not serving");
    assert!(!pool.set_health("a", generation + 1, Serving::Yes, Instant::now()), "another connection");
    // The next connection is asked anew.
    pool.set_health("a", generation, Serving::Yes, Instant::now());
    pool.connection_lost("a", generation, None, Instant::now());
    tokio::time::sleep(YOUNG).await;
    connect(&mut pool);
    assert_eq!(pool.picker().len(), 0);
}

#[test]
fn filter_without_match_is_named_in_the_error() {
    let options = PoolOptions { only: BTreeMap::from([("version".into(), "2".into())]), ..options() };
    let (mut pool, limit) = (Pool::<u64>::new(options), Duration::from_secs(5));
    assert_eq!(pool.unavailable_reason(limit), "no instance was registered within 5s");
    pool.apply(inserted(&["a", "b", "c"]), Instant::now());
    assert_eq!(pool.unavailable_reason(limit), "of 3 instances none has the metadata version=2");
    pool.apply([Change::Remove("a".into()), Change::Remove("b".into())], Instant::now());
    assert_eq!(pool.unavailable_reason(limit), "of 1 instances none has the metadata version=2");
}

#[tokio::test(start_paused = true)]
async fn subset_is_filled_up_and_prefers_the_zone() {
    let ids: Vec<_> = (0..50).map(|n| format!("{n:03}")).collect();
    let near = |id: &String| {
        let zone = if id.ends_with('7') { "near" } else { "far" };
        Change::Insert(id.clone(), info(id).with(ZONE, zone))
    };
    let options = PoolOptions { subset: Some(10), zone: Some("near".into()), ..options() };
    let mut pool = Pool::<u64>::new(options);
    pool.apply(ids.iter().map(near), Instant::now());
    let before: BTreeSet<_> = pool.instances.keys().cloned().collect();
    assert_eq!(before.len(), 10);
    assert_eq!(before.iter().filter(|id| id.ends_with('7')).count(), 5);
    let gone = before.iter().find(|id| !id.ends_with('7')).expect("five are").clone();
    pool.apply([Change::Remove(gone.clone())], Instant::now());
    let after: BTreeSet<_> = pool.instances.keys().cloned().collect();
    assert_eq!(after.len(), 10);
    assert_eq!(before.difference(&after).collect::<Vec<_>>(), [&gone], "the others stay");
}
