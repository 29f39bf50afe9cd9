//! One channel per service, registry and runtime.

use std::sync::Arc;

use coord_api::{ServiceRegistry, backend::Sharing};

use crate::{ConnectOptions, connection::Handle};

static SHARED: Sharing<ConnectOptions, Handle> = Sharing::new();

/// The channel in use, if there is one.
pub(crate) fn find<R: ServiceRegistry + ?Sized>(
    registry: &Arc<R>,
    service: &str,
    options: &ConnectOptions,
) -> Option<Arc<Handle>> {
    SHARED.find(registry, |of, handle| is_of(handle, service) && of == options)
}

/// The channel in use, else the new one, which is in use from now on.
pub(crate) fn share<R: ServiceRegistry + ?Sized + 'static>(
    registry: &Arc<R>,
    options: &ConnectOptions,
    handle: Arc<Handle>,
) -> Arc<Handle> {
    let service = handle.balancer.service.clone();
    let is_it = |of: &ConnectOptions, handle: &Handle| is_of(handle, &service) && of == options;
    SHARED.find_or_make(registry, options.clone(), is_it, || handle)
}

fn is_of(handle: &Handle, service: &str) -> bool {
    *handle.balancer.service == *service && handle.is_alive()
}
