//! Candidates of an election, and the exit codes of `coord elect`.

use std::{process::Stdio, time::Duration};

use coord_api::{ElectionsExt, ElectorOptions, Provider};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::{sleep, timeout},
};

use crate::tools::{LIMIT, Running, Shop, stderr, stdout, until_dead};

/// Prints its token and stays for as long as any test takes.
const STAY: &str = "echo $COORD_ELECTION_NAME $COORD_ELECTION_TOKEN; sleep 60";

/// Waits until an election has so many candidates.
async fn candidates_become(shop: &Shop, name: &str, count: usize) {
    let elections = shop.client().await.elections();
    let become_so = async {
        while elections.candidates(name).await.expect("etcd answers").len() != count {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, become_so).await.unwrap_or_else(|_| panic!("{name} has {count} candidates"));
}

#[tokio::test]
async fn candidates_lead_one_after_the_other() {
    let shop = Shop::open().await;
    let elect = |value: &str| {
        Running::start(&mut shop.coord(&["elect", "job", "--value", value, "--", "sh", "-c", STAY]))
    };
    let mut first = elect("10.0.0.1:80");
    let token: u64 =
        first.line().await.strip_prefix("job ").expect("has the name").parse().expect("a number");
    let mut watch = Running::start(&mut shop.coord(&["elect", "watch", "job", "--json"]));
    let told = watch.json().await;
    assert_eq!((&told["event"], &told["leader"]["value"]), (&"leads".into(), &"10.0.0.1:80".into()));

    let output = shop.run(&["elect", "job", "--try", "--json", "--", "echo", "ran"]).await;
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(75), ""));
    let note: Value = serde_json::from_str(&stderr(&output)).expect("is JSON");
    assert_eq!((&note["event"], &note["leader"]["token"]), (&"not_acquired".into(), &token.into()));
    assert_eq!(shop.fails(&["elect", "job", "--wait", "1s", "--", "echo", "ran"]).await.0, 75);
    candidates_become(&shop, "job", 1).await;

    let mut second = elect("10.0.0.2:80");
    candidates_become(&shop, "job", 2).await;
    let elections = shop.json(&["elect", "list"]).await;
    let (leader, waiting) = (&elections[0]["leader"], &elections[0]["waiting"][0]);
    assert_eq!((&leader["token"], &leader["owner"]["pid"]), (&token.into(), &first.pid().into()));
    assert_eq!((&waiting["value"], &waiting["owner"]["pid"]), (&"10.0.0.2:80".into(), &second.pid().into()));
    assert_eq!(shop.json(&["elect", "list", "job"]).await, elections);
    let table = shop.ok(&["elect", "list"]).await;
    assert!(table.contains("leads") && table.contains("waits 1") && table.contains("10.0.0.1:80"), "{table}");
    assert_eq!(shop.json(&["top", "--once"]).await["elections"], elections);

    first.signal("TERM").await;
    let next: u64 =
        second.line().await.strip_prefix("job ").expect("has the name").parse().expect("a number");
    assert!(next > token);
    assert_eq!(first.code().await, Some(128 + 15));
    assert_eq!(watch.json().await["leader"]["token"], next);
    second.signal("TERM").await;
    assert_eq!(second.code().await, Some(128 + 15));
    assert_eq!(watch.json().await["event"], "nobody_leads");
    watch.signal("INT").await;
    assert_eq!(watch.code().await, Some(128 + 2));
    assert_eq!(shop.ok(&["elect", "list"]).await, "nobody leads\n");
}

#[tokio::test]
async fn the_exit_code_of_the_command_is_passed_on() {
    let shop = Shop::open().await;
    let output =
        shop.run(&["elect", "run", "list", "--", "sh", "-c", "echo $COORD_ELECTION_NAME; exit 7"]).await;
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(7), "list\n"), "{}", stderr(&output));
    let (code, text) = shop.fails(&["elect", "job", "-v", "--", "false"]).await;
    assert_eq!(code, 1);
    assert!(
        text.contains("leading election `job` with token") && text.contains("gave election `job` back"),
        "{text}"
    );
    assert_eq!(shop.fails(&["elect", "job", "--", "/nonexistent/program"]).await.0, 127);
    assert_eq!(shop.fails(&["elect", "a//b", "--", "true"]).await.0, 2, "a bad name");
    let large = "x".repeat(5000);
    assert_eq!(shop.fails(&["elect", "job", "--value", &large, "--", "true"]).await.0, 2, "a large value");
    assert_eq!(shop.json(&["elect", "list"]).await, Value::Array(vec![]), "all were given back");
}

#[tokio::test]
async fn leader_that_is_lost_stops_its_command() {
    let shop = Shop::open().await;
    let mut coord =
        Running::start(&mut shop.coord(&["elect", "job", "--", "sh", "-c", "echo $$; exec sleep 600"]));
    let pid = coord.line().await;
    let key = shop.json(&["elect", "list"]).await[0]["leader"]["key"].as_str().expect("is text").to_owned();
    let lease = key.rsplit('/').next().and_then(|last| last.split('-').next()).expect("names its lease");
    shop.server.etcdctl(&["lease", "revoke", lease]).await.expect("is revoked");
    until_dead(&pid).await;
    assert_eq!(coord.code().await, Some(76));
}

#[tokio::test]
async fn candidate_that_gives_up_is_gone() {
    let shop = Shop::open().await;
    let client = shop.client().await;
    let options = ElectorOptions::new(LIMIT).value("of a program");
    let term = client.elections().elector("job", options).expect("is valid").campaign().await.expect("leads");
    let waiting = Running::start(&mut shop.coord(&["elect", "job", "--", "echo", "ran"]));
    candidates_become(&shop, "job", 2).await;
    waiting.signal("INT").await;
    assert_eq!(waiting.code().await, Some(128 + 2));
    candidates_become(&shop, "job", 1).await;
    term.resign().await.expect("leads");
}

#[tokio::test]
async fn etcdctl_and_coord_are_in_one_election() {
    let shop = Shop::open().await;
    let mut coord =
        Running::start(&mut shop.coord(&["elect", "job", "--value", "coord", "--", "sh", "-c", STAY]));
    coord.line().await;
    let mut etcdctl =
        shop.server.etcdctl_process(&["elect", "/shop/elections/job", "etcdctl"]).expect("the server runs");
    let mut etcdctl = etcdctl.stdout(Stdio::piped()).spawn().expect("COORD_TEST_ETCDCTL is an etcdctl");
    let mut lines = BufReader::new(etcdctl.stdout.take().expect("is piped")).lines();
    candidates_become(&shop, "job", 2).await;
    assert_eq!(shop.json(&["elect", "list"]).await[0]["waiting"][0]["owner"], Value::Null);
    assert!(timeout(Duration::from_millis(300), lines.next_line()).await.is_err(), "coord leads");
    coord.signal("TERM").await;
    let key =
        timeout(LIMIT, lines.next_line()).await.expect("in time").expect("is text").expect("prints a key");
    let (code, text) = shop.fails(&["elect", "job", "--try", "--", "echo", "ran"]).await;
    assert_eq!(code, 75);
    assert!(text.contains(&format!("another program ({key})")), "{text}");
    etcdctl.kill().await.expect("has ended or ends");
}
