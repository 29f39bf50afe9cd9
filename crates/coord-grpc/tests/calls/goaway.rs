//! Servers that end each connection after a while, as many do so that clients spread anew.

use std::time::Duration;

use coord_api::{Error, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection};
use futures::{StreamExt, stream};
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::pb::health_server::HealthServer;
use tower::discover::Change;

use crate::fleet::{Behaviour, Service, check};

/// Longer than that of a connection that was hardly accepted.
const AGE: Duration = Duration::from_millis(1100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graceful_end_of_connections_fails_no_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let port = listener.local_addr().expect("is bound").port();
    let service = HealthServer::new(Service(
        Behaviour { delay: Duration::from_millis(5), ..Behaviour::default() }.into(),
    ));
    let server = Server::builder().max_connection_age(AGE).add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))));
    let info = ServiceInfo::new("restless", "1", "127.0.0.1", port);
    let list = stream::iter([Ok::<_, Error>(Change::Insert("1".to_owned(), info))]).chain(stream::pending());
    let connection = Connection::balance("restless", list, ConnectOptions::new()).expect("the name is good");
    let begun = Instant::now();
    let mut calling = JoinSet::new();
    for _ in 0..8 {
        let connection = connection.clone();
        calling.spawn(async move {
            while begun.elapsed() < AGE * 3 {
                check(&connection).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    for calls in calling.join_all().await {
        calls.expect("none fails");
    }
}
