//! Who answers, shared by the partitions of a stage.

use std::fmt::Write as _;
use std::sync::Arc;

use pipeline::stage::StageError;
use recaption::job::{Answering, Job, Meter, StepSettings};
use recaption::server::EndpointStatus;
use tokio::runtime::Runtime;

use super::parameters::{Recaption, WithoutModel};

#[derive(Clone)]
pub(super) struct Captioners {
    pub(super) job: Arc<Job>,
    pub(super) meter: Arc<Meter>,
    answering: Vec<Answering>,
    /// Their connections live in it.
    pub(super) runtime: Arc<Runtime>,
}

impl Captioners {
    pub(super) fn start(recaption: &Recaption) -> Result<Self, StageError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("recaption").enable_all().build();
        let runtime = runtime.map_err(|error| StageError::failed(format!("no runtime can be started: {error}")))?;
        // What a captioner starts by itself, it starts there.
        let entered = runtime.enter();
        let started = Job::start(recaption.long.as_ref(), recaption.short.as_ref());
        let (mut job, answering) = started.map_err(|(_, error)| StageError::failed(error))?;
        for (step, settings) in [(&mut job.long, &recaption.long), (&mut job.short, &recaption.short)] {
            let has_model = settings.as_ref().is_some_and(StepSettings::has_model);
            if let Some(step) = step {
                step.passes_on = !has_model && recaption.without_model == WithoutModel::PassOn;
            }
        }
        drop(entered);
        Ok(Self { job: Arc::new(job), meter: Arc::default(), answering, runtime: Arc::new(runtime) })
    }

    /// How it goes, in a line.
    pub(super) fn in_words(&self) -> String {
        let mut words = self.meter.in_words();
        let mut endpoints: Vec<EndpointStatus> = Vec::new();
        for answering in &self.answering {
            match answering {
                Answering::Server(server) => endpoints.extend(server.status()),
                Answering::InProcess(model) => {
                    let status = model.status();
                    let _ = write!(words, ", {} of {} slots at work", status.active, status.slots);
                }
                Answering::Nobody => {}
            }
        }
        let resting: Vec<&EndpointStatus> = endpoints.iter().filter(|endpoint| endpoint.cooling.is_some()).collect();
        if let Some(first) = resting.first() {
            let (count, all) = (resting.len(), endpoints.len());
            let EndpointStatus { url, last_failure, .. } = first;
            let _ = write!(words, ", {count} of {all} endpoints left alone for a while ({url}: {last_failure})");
        }
        words
    }
}
