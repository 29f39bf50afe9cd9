//! What all users of one object share.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::runtime::{Handle, Id};

/// Things that stand on an object and are shared by all who ask for the same: of one object, on one runtime, by one
/// key.
///
/// An extension trait has no state, and the object that it extends knows nothing of it, so what is shared is found in
/// a table of the process, under the identity of the object. The table holds neither: a thing lives as long as its
/// last user, and of the object it keeps only the address from being given to another. Not across runtimes, since the
/// task behind a thing ends with the runtime that it was made on.
///
/// ```
/// use std::sync::Arc;
/// use coord_api::backend::Sharing;
///
/// static NAMES: Sharing<u32, String> = Sharing::new();
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let object = Arc::new(());
/// let name = || NAMES.find_or_make(&object, 7, |_| true, || Arc::new("seven".to_owned()));
/// let first = name();
/// assert!(Arc::ptr_eq(&first, &name()));
/// # }
/// ```
pub struct Sharing<K, V: ?Sized>(Mutex<Vec<Entry<K, V>>>);

struct Entry<K, V: ?Sized> {
    /// What it stands on.
    object: usize,
    /// Keeps the place of the object.
    _place: Box<dyn Any + Send>,
    runtime: Id,
    key: K,
    shared: Weak<V>,
}

impl<K, V: ?Sized> Sharing<K, V> {
    /// A table with nothing in it, to be kept in a `static`.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// What stands on `object` under `key`, is in use and `is_good`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn find<O: ?Sized>(&self, object: &Arc<O>, key: &K, is_good: impl Fn(&V) -> bool) -> Option<Arc<V>>
    where
        K: PartialEq,
    {
        find(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), object, key, is_good)
    }

    /// The same, else what `make` makes, which is found from now on.
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
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = find(&mut entries, object, &key, is_good) {
            return found;
        }
        let new = make();
        entries.push(Entry {
            object: address(object),
            _place: Box::new(Arc::downgrade(object)),
            runtime: Handle::current().id(),
            key,
            shared: Arc::downgrade(&new),
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
    entries.retain(|entry| entry.shared.strong_count() > 0);
    let (object, runtime) = (address(object), Handle::current().id());
    let is_it =
        |entry: &&Entry<K, V>| entry.object == object && entry.runtime == runtime && entry.key == *key;
    entries.iter().filter(is_it).filter_map(|entry| entry.shared.upgrade()).find(|shared| is_good(shared))
}

fn address<O: ?Sized>(object: &Arc<O>) -> usize {
    Arc::as_ptr(object).cast::<()>().addr()
}

impl<K, V: ?Sized> Default for Sharing<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V: ?Sized> fmt::Debug for Sharing<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharing").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(table: &Sharing<u32, u32>, object: &Arc<str>, key: u32, made: u32) -> Arc<u32> {
        table.find_or_make(object, key, |_| true, || Arc::new(made))
    }

    #[tokio::test]
    async fn only_the_same_thing_of_the_same_object_is_shared_and_only_while_it_is_used() {
        let (table, one, other) = (Sharing::new(), Arc::from("one"), Arc::from("other"));
        let first = of(&table, &one, 1, 10);
        assert_eq!(*of(&table, &one, 1, 20), 10);
        assert_eq!(*of(&table, &one.clone(), 1, 20), 10);
        assert_eq!(*of(&table, &one, 2, 20), 20, "another key");
        assert_eq!(*of(&table, &other, 1, 30), 30, "another object");
        assert_eq!(table.find(&one, &1, |value| *value > 10), None);
        drop(first);
        assert_eq!(*of(&table, &one, 1, 40), 40);
        assert_eq!(table.0.lock().expect("is not poisoned").len(), 1, "what is gone takes no room");
    }

    #[tokio::test]
    async fn a_new_object_never_finds_the_things_of_one_before_it() {
        let table = Sharing::<(), u32>::new();
        let object: Arc<str> = Arc::from("one");
        let thing = table.find_or_make(&object, (), |_| true, || Arc::new(1));
        drop(object);
        for _ in 0..100 {
            let next: Arc<str> = Arc::from("two");
            assert_eq!(table.find(&next, &(), |_| true), None);
        }
        drop(thing);
    }

    #[test]
    fn another_runtime_has_its_own() {
        let (table, object) = (Sharing::new(), Arc::from("one"));
        let on_a_new_one = |made| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("can be built");
            let thing = runtime.block_on(async { of(&table, &object, 1, made) });
            (runtime, thing)
        };
        let first = on_a_new_one(1);
        let second = on_a_new_one(2);
        assert_eq!((*first.1, *second.1), (1, 2));
    }
}
