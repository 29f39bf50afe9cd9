//! Cache of weak references: users of one object share what is built on it.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, Weak},
};

use tokio::runtime::{Handle, Id};

use crate::mutex::lock;

/// Cache of values that are built on an object: one for each object, runtime and key.
///
/// An extension trait has no state, and the object that it extends knows nothing of it. So the values are in a cache of the
/// process, under the identity of the object. References are weak: a value lives as long as its last user. The cache only
/// keeps the address of the object from being reused. Values are not shared across runtimes, since the task behind a value
/// ends with the runtime that it was made on.
///
/// ```
/// use std::sync::Arc;
/// use coord_api::backend::WeakCache;
///
/// static NAMES: WeakCache<u32, String> = WeakCache::new();
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let object = Arc::new(());
/// let name = || NAMES.find_or_make(&object, 7, |_| true, || Arc::new("seven".to_owned()));
/// let first = name();
/// assert!(Arc::ptr_eq(&first, &name()));
/// # }
/// ```
pub struct WeakCache<K, V: ?Sized>(Mutex<Vec<Entry<K, V>>>);

struct Entry<K, V: ?Sized> {
    /// Address of the object.
    object: usize,
    /// Weak reference to the object, which keeps its address from being reused.
    _object: Box<dyn Any + Send>,
    runtime: Id,
    key: K,
    value: Weak<V>,
}

impl<K, V: ?Sized> WeakCache<K, V> {
    /// Returns an empty cache, to be kept in a `static`.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Returns the value of `object` under `key` that is in use and `is_good`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn find<O: ?Sized>(&self, object: &Arc<O>, key: &K, is_good: impl Fn(&V) -> bool) -> Option<Arc<V>>
    where
        K: PartialEq,
    {
        find(&mut lock(&self.0), object, key, is_good)
    }

    /// Returns the value as [`find`](Self::find) does, else inserts the one that `make` makes.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn find_or_make<O: ?Sized + Send + Sync + 'static>(
        &self,
        object: &Arc<O>,
        key: K,
        is_good: impl Fn(&V) -> bool,
        make: impl FnOnce() -> Arc<V>,
    ) -> Arc<V>
    where
        K: PartialEq,
    {
        let mut entries = lock(&self.0);
        if let Some(found) = find(&mut entries, object, &key, is_good) {
            return found;
        }
        let new = make();
        entries.push(Entry {
            object: address(object),
            _object: Box::new(Arc::downgrade(object)),
            runtime: Handle::current().id(),
            key,
            value: Arc::downgrade(&new),
        });
        new
    }
}

fn find<K: PartialEq, V: ?Sized, O: ?Sized>(
    entries: &mut Vec<Entry<K, V>>,
    object: &Arc<O>,
    key: &K,
    is_good: impl Fn(&V) -> bool,
) -> Option<Arc<V>> {
    entries.retain(|entry| entry.value.strong_count() > 0);
    let (object, runtime) = (address(object), Handle::current().id());
    let is_it =
        |entry: &&Entry<K, V>| entry.object == object && entry.runtime == runtime && entry.key == *key;
    entries.iter().filter(is_it).filter_map(|entry| entry.value.upgrade()).find(|value| is_good(value))
}

fn address<O: ?Sized>(object: &Arc<O>) -> usize {
    Arc::as_ptr(object).cast::<()>().addr()
}

impl<K, V: ?Sized> Default for WeakCache<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V: ?Sized> fmt::Debug for WeakCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakCache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cache: &WeakCache<u32, u32>, object: &Arc<str>, key: u32, made: u32) -> Arc<u32> {
        cache.find_or_make(object, key, |_| true, || Arc::new(made))
    }

    #[tokio::test]
    async fn value_is_shared_by_object_and_key_while_it_is_used() {
        let (cache, one, other) = (WeakCache::new(), Arc::from("one"), Arc::from("other"));
        let first = of(&cache, &one, 1, 10);
        assert_eq!(*of(&cache, &one, 1, 20), 10);
        assert_eq!(*of(&cache, &one.clone(), 1, 20), 10);
        assert_eq!(*of(&cache, &one, 2, 20), 20, "another key");
        assert_eq!(*of(&cache, &other, 1, 30), 30, "another object");
        assert_eq!(cache.find(&one, &1, |value| *value > 10), None);
        drop(first);
        assert_eq!(*of(&cache, &one, 1, 40), 40);
        assert_eq!(cache.0.lock().expect("is not poisoned").len(), 1, "dropped values take no room");
    }

    #[tokio::test]
    async fn new_object_never_finds_values_of_an_earlier_one() {
        let cache = WeakCache::<(), u32>::new();
        let object: Arc<str> = Arc::from("one");
        let value = cache.find_or_make(&object, (), |_| true, || Arc::new(1));
        drop(object);
        for _ in 0..100 {
            let next: Arc<str> = Arc::from("two");
            assert_eq!(cache.find(&next, &(), |_| true), None);
        }
        drop(value);
    }

    #[test]
    fn runtimes_do_not_share_values() {
        let (cache, object) = (WeakCache::new(), Arc::from("one"));
        let on_a_new_one = |made| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("can be built");
            let value = runtime.block_on(async { of(&cache, &object, 1, made) });
            (runtime, value)
        };
        let first = on_a_new_one(1);
        let second = on_a_new_one(2);
        assert_eq!((*first.1, *second.1), (1, 2));
    }
}
