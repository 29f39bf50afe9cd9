//! One channel per service, registry and process.
//!
//! An extension trait has no state, and a registry knows nothing of gRPC, so the channels in use are found in a
//! table of the process, under the identity of the registry. The table holds neither: a channel lives as long
//! as its last clone, and of the registry it keeps only the address from being given to another.

use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use coord_api::ServiceRegistry;

use crate::{ConnectOptions, connection::Handle};

static SHARED: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    /// Where the registry is, and what keeps that place.
    registry: (usize, Box<dyn Any + Send>),
    options: ConnectOptions,
    handle: Weak<Handle>,
}

fn address<R: ServiceRegistry + ?Sized>(registry: &Arc<R>) -> usize {
    Arc::as_ptr(registry).cast::<()>().addr()
}

/// The channel in use, if there is one.
pub(crate) fn find<R: ServiceRegistry + ?Sized>(
    registry: &Arc<R>,
    service: &str,
    options: &ConnectOptions,
) -> Option<Arc<Handle>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    found(&mut shared, address(registry), service, options)
}

/// The channel in use, else the new one, which is in use from now on.
pub(crate) fn share<R: ServiceRegistry + ?Sized + 'static>(
    registry: &Arc<R>,
    options: &ConnectOptions,
    handle: Arc<Handle>,
) -> Arc<Handle> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let address = address(registry);
    if let Some(found) = found(&mut shared, address, &handle.balancer.service, options) {
        return found;
    }
    let place: Weak<R> = Arc::downgrade(registry);
    shared.push(Entry {
        registry: (address, Box::new(place)),
        options: options.clone(),
        handle: Arc::downgrade(&handle),
    });
    handle
}

fn found(
    shared: &mut Vec<Entry>,
    address: usize,
    service: &str,
    options: &ConnectOptions,
) -> Option<Arc<Handle>> {
    shared.retain(|entry| entry.handle.strong_count() > 0);
    let of_registry = shared.iter().filter(|entry| entry.registry.0 == address && entry.options == *options);
    let mut handles = of_registry.filter_map(|entry| entry.handle.upgrade());
    handles.find(|handle| *handle.balancer.service == *service && handle.is_alive())
}
