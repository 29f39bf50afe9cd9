//! The list of all tests, and the program that runs it on several backends.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::future::BoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{Backend, World, close, config, elections, ids, listener, lock, names, registry};

/// Far more than any test takes: a backend that hangs fails its test instead of the whole run.
const TEST_LIMIT: Duration = Duration::from_secs(180);

/// Tests wait most of the time, so more of them run at once than there are cores.
const THREADS: usize = 16;

/// One named promise with the code that holds a backend to it.
#[derive(Clone, Copy)]
pub struct Test {
    pub(crate) area: &'static str,
    pub(crate) name: &'static str,
    pub(crate) promise: &'static str,
    pub(crate) run: for<'a> fn(&'a dyn World) -> BoxFuture<'a, ()>,
}

impl Test {
    /// The area and the name, for example `lock::first_come_first_served`.
    pub fn path(&self) -> String {
        format!("{}::{}", self.area, self.name)
    }

    /// What is promised, with the line of the contract.
    pub fn promise(&self) -> &'static str {
        self.promise.trim()
    }

    /// Runs it in `world`, which must be empty.
    ///
    /// # Panics
    /// When the promise is broken.
    pub async fn run(&self, world: &dyn World) {
        (self.run)(world).await;
    }
}

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Test").field(&self.path()).finish()
    }
}

/// Defines the tests of one file and registers them in its `TESTS`. Every test needs a doc comment: it is
/// printed when the promise is broken.
macro_rules! tests {
    ($area:literal; $(
        $(#[doc = $doc:literal])+
        async fn $name:ident($world:ident: &dyn World) $body:block
    )+) => {
        $($(#[doc = $doc])+ async fn $name($world: &dyn $crate::World) $body)+

        pub(crate) const TESTS: &[$crate::Test] = &[$($crate::Test {
            area: $area,
            name: stringify!($name),
            promise: concat!($($doc),+),
            run: |world| Box::pin($name(world)),
        }),+];
    };
}
pub(crate) use tests;

/// Every test of the contract, in the order of the areas.
pub fn contract() -> impl Iterator<Item = Test> {
    // A file that is missing here does not go unnoticed: its `TESTS` would be dead code.
    [
        lock::exclusion::TESTS,
        lock::queue::TESTS,
        lock::loss::TESTS,
        lock::vanish::TESTS,
        lock::waiting::TESTS,
        lock::cancel::TESTS,
        lock::again::TESTS,
        lock::random::TESTS,
        lock::holders::TESTS,
        lock::health::TESTS,
        elections::campaign::TESTS,
        elections::loss::TESTS,
        elections::lead::TESTS,
        elections::proclaim::TESTS,
        elections::hand_over::TESTS,
        elections::observe::TESTS,
        registry::marks::TESTS,
        registry::records::TESTS,
        registry::owners::TESTS,
        registry::recovery::TESTS,
        registry::watch::TESTS,
        registry::view::TESTS,
        config::values::TESTS,
        config::exact::TESTS,
        config::writes::TESTS,
        config::held::TESTS,
        config::watch::TESTS,
        config::resume::TESTS,
        config::live::TESTS,
        config::file::TESTS,
        config::user_code::TESTS,
        config::history::TESTS,
        config::gray::TESTS,
        config::schema::TESTS,
        config::secrets::TESTS,
        ids::range::TESTS,
        ids::rest::TESTS,
        ids::loss::TESTS,
        ids::waiting::TESTS,
        ids::snowflake::TESTS,
        ids::random::TESTS,
        close::TESTS,
        names::TESTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

type Lazy = LazyLock<Box<dyn Backend>, Box<dyn FnOnce() -> Box<dyn Backend> + Send>>;

/// The backends that a test program runs on; see [`main!`](crate::main).
#[derive(Default)]
pub struct Backends(Vec<(&'static str, Arc<Lazy>)>);

impl Backends {
    /// No backend yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a backend that is made when its first test starts.
    #[must_use]
    pub fn with<B: Backend>(mut self, name: &'static str, make: impl FnOnce() -> B + Send + 'static) -> Self {
        let make: Box<dyn FnOnce() -> Box<dyn Backend> + Send> = Box::new(|| Box::new(make()));
        self.0.push((name, Arc::new(Lazy::new(make))));
        self
    }

    /// Runs what the command line asks for, then drops the backends. It listens to all that coord traces meanwhile, and
    /// fails if that ever shows a value that a test stored as a secret.
    #[must_use]
    pub fn run(self) -> ExitCode {
        if let Err(error) = listener::start() {
            eprintln!("nothing else may listen to what is traced here: {error}");
            return ExitCode::FAILURE;
        }
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(THREADS);
        let trials = self
            .0
            .iter()
            .flat_map(|(name, backend)| contract().map(move |test| trial(name, backend.clone(), test)))
            .collect();
        let list = arguments.list;
        let outcome = libtest_mimic::run(&arguments, trials);
        let (events, spans, secrets) = listener::heard();
        if !secrets.is_empty() {
            eprintln!("a stored value is traced by {}", secrets.join(", "));
            return ExitCode::FAILURE;
        }
        if !list {
            println!("{events} traced events and {spans} spans, none with a secret");
        }
        outcome.exit_code()
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

fn trial(backend_name: &str, backend: Arc<Lazy>, test: Test) -> Trial {
    Trial::test(format!("{backend_name}::{}", test.path()), move || {
        let in_world = backend.clone();
        let body = Box::pin(async move {
            let world = in_world.world().await;
            tokio::time::timeout(TEST_LIMIT, test.run(&*world))
                .await
                .unwrap_or_else(|_| panic!("still running after {TEST_LIMIT:?}"));
        });
        catch_unwind(AssertUnwindSafe(|| backend.block_on(body)))
            .map_err(|panic| Failed::from(format!("{}\n  promised: {}", message(&*panic), test.promise())))
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "panicked without a message",
    }
}
