//! The views of a client: those of one service share one list and one watch.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use arc_swap::ArcSwap;
use futures::FutureExt;
use tokio::{runtime::Handle, sync::watch};

use super::ConnectivitySource;
use crate::{
    Connectivity, Error, Instances, Result, ServiceEvent, ServiceName, ServiceView, Watch, mutex::lock,
    view::Shared,
};

/// How many events are taken before the list is replaced: each time all of it is copied.
const BURST: usize = 256;

/// The views that one client has now.
#[derive(Debug, Default)]
pub struct Views(Mutex<HashMap<ServiceName, Arc<Slot>>>);

/// Locked while a view is opened, so that many first users share one watch.
type Slot = tokio::sync::Mutex<Weak<Shared>>;

impl Views {
    /// A view of `service`. If there is none, one is made of the watch that `opening` yields, and kept up to
    /// date on `runtime`. Otherwise `opening` is dropped without being polled.
    ///
    /// # Errors
    /// Errors of `opening`, and [`Error::Closed`] if the watch ends before its first snapshot.
    pub async fn view(
        &self,
        runtime: &Handle,
        service: ServiceName,
        opening: impl Future<Output = Result<Watch<ServiceEvent>>>,
    ) -> Result<ServiceView> {
        let slot = self.slot(&service);
        let mut slot = slot.lock().await;
        if let Some(shared) = slot.upgrade().filter(|shared| shared.is_kept()) {
            return Ok(ServiceView::of(shared));
        }
        let shared = Arc::new(start(runtime, service, opening.await?).await?);
        *slot = Arc::downgrade(&shared);
        Ok(ServiceView::of(shared))
    }

    fn slot(&self, service: &ServiceName) -> Arc<Slot> {
        let mut slots = lock(&self.0);
        if let Some(slot) = slots.get(service) {
            return slot.clone();
        }
        // Forgets those that are over; whoever opens one keeps its slot.
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|shared| shared.strong_count() > 0)
        });
        slots.entry(service.clone()).or_default().clone()
    }
}

/// Takes the first snapshot, and keeps the list up to date from there.
async fn start(runtime: &Handle, service: ServiceName, events: Watch<ServiceEvent>) -> Result<Shared> {
    let (sender, mut changes) = watch::channel(());
    let mut keeper = Keeper {
        service: service.clone(),
        link: events.connectivity(),
        events,
        instances: Instances::default(),
        published: Arc::default(),
        changed: sender,
        connectivity: ConnectivitySource::default(),
        is_refused: false,
    };
    loop {
        let item = keeper.events.next().await;
        if keeper.take(item)? {
            break;
        }
    }
    keeper.publish();
    changes.mark_unchanged();
    keeper.tell_freshness();
    let (instances, connectivity) = (keeper.published.clone(), keeper.connectivity.connectivity());
    let keeper = runtime.spawn(keeper.run()).abort_handle();
    Ok(Shared { service, instances, changes, connectivity, keeper })
}

/// The task behind the views of one service; ends with the last of them, or with the provider.
struct Keeper {
    service: ServiceName,
    events: Watch<ServiceEvent>,
    /// Whether the store is heard.
    link: Connectivity,
    instances: Instances,
    published: Arc<ArcSwap<Instances>>,
    changed: watch::Sender<()>,
    /// Whether the list is kept up to date. Dropping it says that it is not any more.
    connectivity: ConnectivitySource,
    is_refused: bool,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let item = tokio::select! {
                _ = self.link.changed() => {
                    self.tell_freshness();
                    continue;
                }
                item = self.events.next() => item,
            };
            let (mut next, mut has_changed) = (Some(item), false);
            let mut burst = 0;
            while let Some(item) = next {
                match self.take(item) {
                    Ok(is_change) => has_changed |= is_change,
                    // Dropping this tells those who wait for changes; whoever looks then finds the list stale.
                    Err(Error::Closed) => return self.connectivity.lost(),
                    Err(error) => {
                        tracing::warn!(service = %self.service, %error, "the view stays as it is, trying again");
                        self.is_refused = true;
                    }
                }
                burst += 1;
                next = if burst < BURST { self.events.next().now_or_never() } else { None };
            }
            self.tell_freshness();
            if has_changed {
                self.publish();
            }
        }
    }

    /// Takes one item of the watch; whether it changes the list.
    fn take(&mut self, item: Option<Result<ServiceEvent>>) -> Result<bool> {
        match item.unwrap_or(Err(Error::Closed)) {
            Ok(event) => {
                self.is_refused = false;
                self.instances.apply(event);
                Ok(true)
            }
            Err(error @ Error::Decode { .. }) => {
                tracing::warn!(service = %self.service, %error, "a record is left as it was");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn publish(&self) {
        self.published.store(Arc::new(self.instances.clone()));
        self.changed.send_replace(());
    }

    fn tell_freshness(&self) {
        if self.link.freshness().is_fresh() && !self.is_refused {
            self.connectivity.restored();
        } else {
            self.connectivity.lost();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Wake},
        time::Duration,
    };

    use futures::stream;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{ServiceInfo, Version};

    type Events = mpsc::UnboundedSender<Result<ServiceEvent>>;

    /// A registry of one service, as its watch tells it.
    #[derive(Default)]
    struct Fake {
        views: Views,
        connectivity: ConnectivitySource,
        opened: AtomicUsize,
    }

    impl Fake {
        /// A view, and the way to the watch that was opened for it.
        async fn view(&self) -> (Result<ServiceView>, Option<Events>) {
            let mut opened = None;
            let opening = async {
                self.opened.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                let (events, mut inbox) = mpsc::unbounded_channel();
                let snapshot =
                    ServiceEvent::Snapshot { version: Version::new(1), instances: vec![info("1", 80)] };
                events.send(Ok(snapshot)).expect("is listened to");
                opened = Some(events);
                let items = stream::poll_fn(move |cx| inbox.poll_recv(cx));
                Ok(Watch::new(self.connectivity.connectivity(), items))
            };
            let service = ServiceName::parse("svc").expect("is valid");
            let view = self.views.view(&Handle::current(), service, opening).await;
            (view, opened)
        }

        async fn opened(&self) -> (ServiceView, Events) {
            let (view, events) = self.view().await;
            (view.expect("opens"), events.expect("is the first"))
        }
    }

    fn info(id: &str, port: u16) -> ServiceInfo {
        ServiceInfo::new("svc", id, "10.0.0.1", port)
    }

    fn shown(instances: &Instances) -> Vec<String> {
        instances.iter().map(|instance| format!("{}:{}", instance.id, instance.port)).collect()
    }

    fn refused() -> Result<ServiceEvent> {
        Err(Error::PermissionDenied { operation: "watch", source: "no".into() })
    }

    #[tokio::test]
    async fn all_views_of_a_service_share_one_watch_which_ends_with_the_last() {
        let fake = Fake::default();
        let ((one, events), (other, none), (third, nor)) =
            tokio::join!(fake.view(), fake.view(), fake.view());
        let events = events.or(none).or(nor).expect("one has opened it");
        let (one, other, third) = (one.expect("opens"), other.expect("opens"), third.expect("opens"));
        assert_eq!(fake.opened.load(Ordering::SeqCst), 1);
        assert!(Arc::ptr_eq(&one.instances(), &other.instances()), "one list");

        drop((one, other));
        tokio::task::yield_now().await;
        assert!(!events.is_closed());
        let clone = third.clone();
        drop(third);
        tokio::task::yield_now().await;
        assert!(!events.is_closed());
        drop(clone);
        events.closed().await;
        fake.opened().await;
        assert_eq!(fake.opened.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn an_opening_that_fails_or_is_dropped_leaves_the_next_to_open() {
        let fake = Fake::default();
        let runtime = Handle::current();
        let failing = std::future::ready(Err(Error::Unavailable { what: "store".into(), source: None }));
        let service = || ServiceName::parse("svc").expect("is valid");
        assert!(fake.views.view(&runtime, service(), failing).await.is_err());
        let never = fake.views.view(&runtime, service(), std::future::pending());
        assert!(never.now_or_never().is_none());
        fake.opened().await;
    }

    #[tokio::test]
    async fn a_burst_is_one_change_and_the_list_stays_in_order() {
        let fake = Fake::default();
        let (mut view, events) = fake.opened().await;
        let before = view.instances();
        for event in [
            ServiceEvent::Added(info("3", 80)),
            ServiceEvent::Added(info("2", 80)),
            ServiceEvent::Updated { old: info("1", 80), new: info("1", 81) },
            ServiceEvent::Removed(info("3", 80)),
        ] {
            events.send(Ok(event)).expect("is listened to");
        }
        assert_eq!(shown(&view.changed().await.expect("is open")), ["1:81", "2:80"]);
        assert_eq!(view.instances().get("2").map(|found| found.port), Some(80));
        assert_eq!(view.instances().get("3"), None);
        assert!(view.changed().now_or_never().is_none(), "told once");
        assert_eq!(shown(&before), ["1:80"], "what was read never changes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_is_stale_while_the_store_is_away_or_refuses_it() {
        let fake = Fake::default();
        let (view, events) = fake.opened().await;
        let mut connectivity = view.connectivity();
        assert!(view.freshness().is_fresh());
        fake.connectivity.lost();
        assert!(!connectivity.changed().await.is_fresh());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(view.freshness().stale_for(), Some(Duration::from_secs(3)));
        fake.connectivity.restored();
        assert!(connectivity.changed().await.is_fresh());

        events.send(refused()).expect("is listened to");
        assert!(!connectivity.changed().await.is_fresh(), "nothing arrives");
        fake.connectivity.lost();
        fake.connectivity.restored();
        tokio::task::yield_now().await;
        assert!(!view.freshness().is_fresh(), "the store is heard, but not this watch");
        let snapshot = ServiceEvent::Snapshot { version: Version::new(2), instances: vec![info("2", 80)] };
        events.send(Ok(snapshot)).expect("is listened to");
        assert!(connectivity.changed().await.is_fresh());
        assert_eq!(shown(&view.instances()), ["2:80"]);
    }

    #[tokio::test]
    async fn who_is_told_of_the_end_finds_the_list_stale() {
        /// Looks at the very moment of being woken, as a thread of its own might.
        struct Look(Connectivity, Mutex<Option<bool>>);
        impl Wake for Look {
            fn wake(self: Arc<Self>) {
                *lock(&self.1) = Some(self.0.freshness().is_fresh());
            }
        }
        let fake = Fake::default();
        let (mut view, events) = fake.opened().await;
        let look = Arc::new(Look(view.connectivity(), Mutex::default()));
        let mut changed = pin!(view.changed());
        assert!(changed.as_mut().poll(&mut Context::from_waker(&look.clone().into())).is_pending());
        events.send(Err(Error::Closed)).expect("is listened to");
        while lock(&look.1).is_none() {
            tokio::task::yield_now().await;
        }
        assert!(matches!(changed.await, Err(Error::Closed)));
        assert_eq!(*lock(&look.1), Some(false), "was still fresh when the end was told");
    }

    #[tokio::test]
    async fn a_closed_provider_leaves_the_last_list() {
        let fake = Fake::default();
        let (mut view, events) = fake.opened().await;
        events.send(Ok(ServiceEvent::Removed(info("1", 80)))).expect("is listened to");
        view.changed().await.expect("is open");
        let waiting = tokio::spawn({
            let view = view.clone();
            async move { view.ready().await }
        });
        tokio::task::yield_now().await;
        events.send(Err(Error::Closed)).expect("is listened to");
        assert!(matches!(waiting.await.expect("no panic"), Err(Error::Closed)));
        assert!(matches!(view.changed().await, Err(Error::Closed)));
        assert!(!view.freshness().is_fresh(), "stale for good");
        assert!(view.instances().is_empty());
        fake.opened().await;
    }
}
