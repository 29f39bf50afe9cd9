//! Marks of instances that do not serve, and records as other programs write them.

use std::collections::BTreeMap;

use super::{ids, instance};
use crate::{
    Raw,
    suite::tests,
    tools::{LIMIT, LONG, within},
};

tests! { "registry";
    /// Contract 1: the mark is seen by discovery and views, stays over an update, and is taken away again.
    async fn mark_of_an_instance_that_does_not_serve_is_seen(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let registration = within(LIMIT, server.register(instance("1"), LONG)).await.expect("is free");
        let view = within(LIMIT, client.view("svc")).await.expect("is answered");
        let seen = async || {
            let found = client.discover("svc").await.expect("is answered");
            found.iter().map(coord_api::ServiceInfo::is_serving).collect::<Vec<_>>()
        };
        let viewed = async |expected: bool| {
            let becomes = async {
                while view.instances().iter().any(|info| info.is_serving() != expected) {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            within(LIMIT, becomes).await;
        };
        assert_eq!(seen().await, [true]);
        within(LIMIT, registration.serving(false)).await.expect("is registered");
        assert_eq!(seen().await, [false]);
        viewed(false).await;
        let metadata = BTreeMap::from([("v".to_owned(), "2".to_owned())]);
        within(LIMIT, registration.update(metadata)).await.expect("is registered");
        assert_eq!(seen().await, [false]);
        within(LIMIT, registration.serving(true)).await.expect("is registered");
        assert_eq!(seen().await, [true]);
        viewed(true).await;
        within(LIMIT, registration.deregister()).await.expect("is registered");
        let marked = instance("2").not_serving();
        let _registration = within(LIMIT, server.register(marked, LONG)).await.expect("is free");
        assert_eq!(seen().await, [false]);
    }

    /// Contract 8: addresses, ports and metadata as other programs write them are read as they are meant, or the record
    /// is left out. No record hides another one.
    async fn records_are_read_as_they_are_meant(world: &dyn World) {
        let registry = world.client().await.registry();
        let good = [
            ("brackets", r#""address":"[::1]","port":80"#, "[::1]:80"),
            ("joined", r#""address":"10.0.0.1:80""#, "10.0.0.1:80"),
            ("text", r#""address":"h","port":"80""#, "h:80"),
            ("weighted", r#""address":"h","port":81,"metadata":{"weight":2}"#, "h:81"),
        ];
        let bad = [
            ("both", r#""address":"h:80","port":81"#),
            ("multicast", r#""address":"224.0.0.1","port":80"#),
            ("old", r#""address":"127.1","port":80"#),
            ("plus", r#""address":"h","port":"+80""#),
            ("unspecified", r#""address":"0","port":80"#),
            ("zero", r#""address":"h","port":0"#),
        ];
        let good_fields = good.iter().map(|(id, fields, _)| (*id, *fields));
        for (id, fields) in good_fields.chain(bad) {
            let json = format!(r#"{{"id":"{id}","name":"svc",{fields}}}"#);
            world.put_raw(Raw::Service { name: "svc", id }, json.as_bytes()).await;
        }
        assert_eq!(ids(&*registry, "svc").await, good.map(|(id, ..)| id));
        for (info, (id, _, authority)) in registry.discover("svc").await.expect("is answered").iter().zip(good) {
            assert_eq!(info.authority(), authority, "{id}");
            info.validate().expect("what is discovered could have been registered");
        }
    }
}
