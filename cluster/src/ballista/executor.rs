//! Ballista's executor, with our function in it.

use std::collections::HashMap;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::error::BallistaError;
use ballista_core::ids::new_instance_id;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use pipeline::plan::{Plan, Selection};
use pipeline::run::{Made, Options, Order, OrderError, Workshop};
use pipeline::stage::{Cancel, Registry};
use shards::event::EventSink;
use shards::storage::Workdir;

use super::function::{self, Failure, Make};
use super::running::{Engine, Running};
use super::{Address, ClusterError, MESSAGE, Manifest, Table};

/// A workdir of which nothing is wanted for so long is left: others may want it for themselves.
const IDLE: Duration = Duration::from_secs(10);
/// Plans that are kept for the partitions to come.
const KEPT: usize = 8;
/// What jobs left here goes after so many seconds at the latest; the scheduler asks for it earlier.
const LEFT: u64 = 24 * 3600;

/// One machine's part of a cluster. There can be one in a process.
pub struct Executor {
    pub scheduler: Address,
    /// Where it listens.
    pub bind: IpAddr,
    /// The name under which scheduler and other executors reach it [what the scheduler sees].
    pub public: Option<String>,
    /// Results are fetched from this port; tasks come in at the next one. 0: whichever are free.
    pub port: u16,
    /// Rows of queries that do not fit in memory, and results until they are fetched. Created.
    pub scratch: PathBuf,
    /// How often it says that it lives. It ends when that fails five times in a row.
    pub heartbeat: Duration,
    /// How much of the machine partitions may take. One of them for each core is made at a time.
    pub options: Options,
    pub events: EventSink,
    /// The kinds of stages that it can make.
    pub registry: Registry,
}

impl Executor {
    /// Serves until SIGTERM or SIGINT (what is under way is then ended cleanly). `bound` hears of the ports.
    pub async fn serve(self, bound: impl FnOnce([u16; 2])) -> Result<(), ClusterError> {
        shards::disk::create_folder(&self.scratch)
            .map_err(|error| ClusterError::io("create", self.scratch.display())(std::io::Error::other(error)))?;
        let ports = self.ports()?;
        let running = Arc::new(Running::default());
        let ending = Arc::clone(&running);
        on_signal(move || ending.end())?;
        let (slots, memory) = (self.options.cores.max(1), self.options.memory);
        let (bind, scheduler) = (self.bind.to_string(), self.scheduler.clone());
        let (public, scratch) = (self.public.clone(), self.scratch.to_string_lossy().into_owned());
        let mut functions = BallistaFunctionRegistry::default();
        let heartbeat = self.heartbeat.as_secs().max(1);
        let make = self.make(&running);
        let own = function::that_makes(make, Arc::clone(&running));
        functions.scalar_functions.insert(function::NAME.to_owned(), Arc::new(own));
        let config = ExecutorProcessConfig {
            executor_id: new_instance_id(),
            bind_host: bind,
            external_host: public,
            port: ports[0],
            grpc_port: ports[1],
            scheduler_host: scheduler.host.clone(),
            scheduler_port: scheduler.port,
            // One try: with more, it would try for ever.
            scheduler_connect_timeout_seconds: 0,
            vcores: slots,
            task_scheduling_policy: TaskSchedulingPolicy::PushStaged,
            work_dir: Some(scratch),
            executor_heartbeat_interval_seconds: heartbeat,
            // Of queries: partitions keep to what their stages say.
            memory_pool_size: Some((memory / 2).max(64 << 20)),
            job_data_clean_up_interval_seconds: 600,
            job_data_ttl_seconds: LEFT,
            grpc_max_decoding_message_size: MESSAGE,
            grpc_max_encoding_message_size: MESSAGE,
            override_function_registry: Some(Arc::new(functions)),
            override_execution_engine: Some(Arc::new(Engine::new(Arc::clone(&running)))),
            ..ExecutorProcessConfig::default()
        };
        bound(ports);
        match start_executor_process(Arc::new(config)).await {
            Ok(()) if running.ends() => Ok(()),
            Ok(()) => Err(ClusterError::Dismissed { address: scheduler }),
            Err(BallistaError::GrpcConnectionError(detail)) => {
                Err(ClusterError::Unreachable { address: scheduler, detail })
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Ballista tells others what it was told, so the ports have to be known; and it does not say when one is taken.
    fn ports(&self) -> Result<[u16; 2], ClusterError> {
        let listen = |port: u16| {
            let listener = TcpListener::bind((self.bind, port));
            listener.map_err(ClusterError::io("listen at", format!("{}:{port}", self.bind)))
        };
        let second = if self.port == 0 { 0 } else { self.port.saturating_add(1) };
        // Both at once, or the second could be the first.
        let listeners = [listen(self.port)?, listen(second)?];
        let [first, second] = listeners.each_ref().map(|listener| listener.local_addr().map(|address| address.port()));
        let asked = format!("{}:{}", self.bind, self.port);
        Ok([
            first.map_err(ClusterError::io("listen at", &asked))?,
            second.map_err(ClusterError::io("listen at", &asked))?,
        ])
    }

    fn make(self, running: &Arc<Running>) -> Make {
        let running = Arc::clone(running);
        let (options, events, registry) = (self.options, self.events, self.registry);
        let workshops = Arc::new(Workshops { of: Mutex::default(), options, events, registry });
        let resting = Arc::downgrade(&workshops);
        tokio::spawn(async move {
            while let Some(workshops) = resting.upgrade() {
                let rests = tokio::task::spawn_blocking(move || workshops.rest());
                // What failed here is tried again.
                let _ = rests.await;
                tokio::time::sleep(IDLE / 4).await;
            }
        });
        Arc::new(move |table, order, cancel| {
            if running.ends() {
                // The scheduler knows it in a moment; until then it would send one after the other here, in vain.
                std::thread::sleep(Duration::from_secs(1));
                return Ok("interrupted");
            }
            workshops.make(table, order, cancel)
        })
    }
}

/// A plan for each manifest that partitions were asked of.
struct Workshops {
    of: Mutex<HashMap<Manifest, Arc<Workshop>>>,
    options: Options,
    events: EventSink,
    registry: Registry,
}

impl Workshops {
    fn make(&self, table: &str, order: &str, cancel: &Cancel) -> Result<&'static str, Failure> {
        let unreadable = |error: serde_json::Error| Failure {
            partition: None,
            error: format!("this executor is of another version than the run: {error}"),
        };
        let order: Order = serde_json::from_str(order).map_err(unreadable)?;
        let Table { manifest, runner } = serde_json::from_str(table).map_err(unreadable)?;
        let failed = |error: String| Failure { partition: Some(order.partition.clone()), error };
        let mut fresh = false;
        loop {
            let workshop = self.workshop(&manifest, &runner, &mut fresh).map_err(failed)?;
            return match workshop.make(&runner, &order, cancel) {
                Ok(Made::Committed) => Ok("committed"),
                Ok(Made::Elsewhere(_)) => Ok("elsewhere"),
                Ok(Made::Interrupted) => Ok("interrupted"),
                // The plan may be older than what the run has found since: lists grow, rows are tried again.
                Err(OrderError::Unknown { .. }) if !fresh => {
                    let mut kept = self.of.lock().unwrap_or_else(PoisonError::into_inner);
                    if kept.get(&manifest).is_some_and(|kept| Arc::ptr_eq(kept, &workshop)) {
                        kept.remove(&manifest);
                    }
                    continue;
                }
                Err(error) => Err(failed(in_a_line(&error))),
            };
        }
    }

    /// Leaves the workdirs of which nothing is wanted.
    fn rest(&self) {
        let kept: Vec<Arc<Workshop>> =
            self.of.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for workshop in kept {
            workshop.rest(IDLE);
        }
    }

    /// `fresh` becomes true where its plan was made now.
    fn workshop(&self, manifest: &Manifest, runner: &str, fresh: &mut bool) -> Result<Arc<Workshop>, String> {
        let mut kept = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(workshop) = kept.get(manifest) {
            return Ok(Arc::clone(workshop));
        }
        let here = shards::lease::host_name();
        let plan =
            self.plan(manifest, runner).map_err(|error| format!("the executor on {here} cannot plan it: {error}"))?;
        let workshop = Arc::new(Workshop::new(plan, &self.options, self.events.clone()));
        *fresh = true;
        if kept.len() >= KEPT {
            // Those that nobody works in; they can be had again.
            kept.retain(|_, workshop| Arc::strong_count(workshop) > 1);
        }
        kept.insert(manifest.clone(), Arc::clone(&workshop));
        Ok(workshop)
    }
}

impl Workshops {
    /// The plan of a manifest for the run `runner`. Made only in the workdir in which that is at work: planning leaves copies of lists.
    fn plan(&self, manifest: &Manifest, runner: &str) -> Result<Plan, String> {
        let Manifest { text, file, sets } = manifest;
        let manifest = pipeline::manifest::Manifest::parse(text, file, sets).map_err(|error| in_a_line(&error))?;
        let workdir = Workdir::open(&manifest.workdir.to_string_lossy(), manifest.scratch.as_deref());
        let workdir = workdir.map_err(|error| in_a_line(&error))?;
        if !shards::lease::has_joined(&workdir, runner).map_err(|error| in_a_line(&error))? {
            let (workdir, runner) = (workdir.to_string(), runner.to_owned());
            return Err(OrderError::OtherWorkdir { workdir, runner }.to_string());
        }
        Plan::in_workdir(&manifest, &self.registry, &Selection::default(), workdir).map_err(|error| in_a_line(&error))
    }
}

/// The error and its causes.
fn in_a_line(error: &dyn std::error::Error) -> String {
    let mut causes: Vec<String> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    // A transparent error repeats its source.
    causes.dedup();
    causes.join(": ")
}

/// Calls `end` at the first SIGTERM or SIGINT, beside Ballista's own handlers. The second SIGINT or SIGTERM ends the process.
fn on_signal(end: impl FnOnce() + Send + 'static) -> Result<(), ClusterError> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut listen = [SignalKind::terminate(), SignalKind::interrupt()]
        .map(|kind| signal(kind).map_err(ClusterError::io("listen for", "signals")))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?
        .into_iter();
    let (Some(mut terminate), Some(mut interrupt)) = (listen.next(), listen.next()) else { return Ok(()) };
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        end();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(130);
    });
    Ok(())
}
