//! Who answers, shared by the partitions of a stage.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

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
    /// URLs of the endpoints that were said to be left alone until they work.
    told: Arc<Mutex<BTreeSet<String>>>,
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
        let (job, meter, told, runtime) = (Arc::new(job), Arc::default(), Arc::default(), Arc::new(runtime));
        Ok(Self { job, meter, answering, told, runtime })
    }

    fn endpoints(&self) -> Vec<EndpointStatus> {
        let of_servers = self.answering.iter().filter_map(|answering| match answering {
            Answering::Server(server) => Some(server.status()),
            Answering::InProcess(_) | Answering::Nobody => None,
        });
        of_servers.flatten().collect()
    }

    /// How it goes, in a line of which the end may not be shown: what keeps it from going comes first.
    pub(super) fn in_words(&self) -> String {
        let mut words = String::new();
        let endpoints = self.endpoints();
        let resting: Vec<&EndpointStatus> = endpoints.iter().filter(|endpoint| endpoint.cooling.is_some()).collect();
        if let Some(first) = resting.first() {
            let (count, all) = (resting.len(), endpoints.len());
            let EndpointStatus { url, last_failure, .. } = first;
            let _ = write!(words, "{count} of {all} endpoints left alone for a while ({url}: {last_failure}), ");
        }
        words += &self.meter.in_words();
        for answering in &self.answering {
            if let Answering::InProcess(model) = answering {
                let status = model.status();
                let _ = write!(words, ", {} of {} slots at work", status.active, status.slots);
            }
        }
        words
    }

    /// What is to be said of endpoints that are left alone until they work, of each once. One that was asked too much is none of them.
    pub(super) fn news(&self) -> Vec<String> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut resting = self.endpoints();
        resting.retain(|endpoint| endpoint.is_resting && told.insert(endpoint.url.clone()));
        let in_words = |EndpointStatus { url, last_failure, .. }: EndpointStatus| {
            format!(
                "{url} is left alone until it works ({last_failure}); the run stops when no endpoint has answered for give_up_after \
                 seconds"
            )
        };
        resting.into_iter().map(in_words).collect()
    }
}
