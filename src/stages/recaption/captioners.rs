//! Who answers, shared by the partitions of a stage.

use std::fmt::Write as _;
use std::sync::Arc;

use pipeline::stage::StageError;
use recaption::checks::Kind;
use recaption::job::{Answering, Job, Meter, StepSettings};
use recaption::server::{EndpointStatus, ServerCaptioner};
use tokio::runtime::Runtime;

use super::parameters::{Recaption, WithoutModel};

#[derive(Clone)]
pub(super) struct Captioners {
    pub(super) job: Arc<Job>,
    pub(super) meter: Arc<Meter>,
    servers: Vec<Arc<ServerCaptioner>>,
    /// Their connections live in it.
    pub(super) runtime: Arc<Runtime>,
}

impl Captioners {
    pub(super) fn start(recaption: &Recaption) -> Result<Self, StageError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("recaption").enable_all().build();
        let runtime = runtime.map_err(|error| StageError::failed(format!("no runtime can be started: {error}")))?;
        // What a captioner starts by itself, it starts there.
        let entered = runtime.enter();
        let mut servers: Vec<Arc<ServerCaptioner>> = Vec::new();
        // Where both captions come from the same servers, they share what these may have in flight.
        let server = |step: &Option<StepSettings>| step.as_ref().and_then(|step| step.server.clone());
        let are_the_same = server(&recaption.long) == server(&recaption.short);
        let mut step = |settings: &Option<StepSettings>, kind| -> Result<_, StageError> {
            let Some(settings) = settings else { return Ok(None) };
            let answering = match servers.first() {
                Some(first) if are_the_same => Answering::Server(Arc::clone(first)),
                _ => settings.captioner().map_err(StageError::failed)?,
            };
            if let Answering::Server(server) = &answering
                && !are_the_same | servers.is_empty()
            {
                servers.push(Arc::clone(server));
            }
            let mut step = settings.step(kind, &answering);
            step.passes_on = !settings.has_model() && recaption.without_model == WithoutModel::PassOn;
            Ok(Some(step))
        };
        let (long, short) = (step(&recaption.long, Kind::Long)?, step(&recaption.short, Kind::Short)?);
        drop(entered);
        Ok(Self { job: Arc::new(Job { long, short }), meter: Arc::default(), servers, runtime: Arc::new(runtime) })
    }

    /// How it goes, in a line.
    pub(super) fn in_words(&self) -> String {
        let mut words = self.meter.in_words();
        let endpoints: Vec<EndpointStatus> = self.servers.iter().flat_map(|server| server.status()).collect();
        let resting = endpoints.iter().filter(|endpoint| endpoint.cooling.is_some()).count();
        if resting > 0 {
            let _ = write!(words, ", {resting} of {} endpoints left alone for a while", endpoints.len());
        }
        words
    }
}
