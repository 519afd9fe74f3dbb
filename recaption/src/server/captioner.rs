//! The captioner: a request, sent until there is an answer or a reason why there is none.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::EndpointStatus;
use super::answer;
use super::body::{Bodies, control};
use super::client::Client;
use super::course::{Course, Next, Patience};
use super::endpoint::Company;
use super::fleet::Fleet;
use super::options::{Address, OptionsError, ServerOptions, seconds};
use super::outcome::Outcome;
use crate::captioner::{Captioner, Completion, Failure, Request};

/// For the list of models.
const LIST: Duration = Duration::from_secs(10);

/// A fleet of OpenAI-compatible servers with one model.
///
/// All its requests are to be made on one tokio runtime: connections and the watch over endpoints live there. It may be
/// shared by any number of tasks. Of each image that waits for its turn, only the bytes are held; a request's body is made
/// when it is sent.
pub struct ServerCaptioner {
    model: String,
    identity: String,
    bodies: Bodies,
    fleet: Arc<Fleet>,
    patience: Patience,
    api_key_env: Option<String>,
}

impl ServerCaptioner {
    /// Reads the token and the certificates that `options` name. Asks nobody yet.
    pub fn new(options: &ServerOptions) -> Result<Self, OptionsError> {
        options.check()?;
        let ServerOptions { semantics, operations } = options;
        let addresses = operations.addresses()?;
        let most = addresses.iter().map(|address| address.cap).max().unwrap_or(1);
        let client = Client::new(operations, most)?;
        let controls = [false, true].map(|with_image| Bytes::from(control(&semantics.model, with_image)));
        Ok(Self {
            model: semantics.model.clone(),
            identity: semantics.identity(),
            bodies: Bodies::new(semantics),
            fleet: Arc::new(Fleet::new(addresses, operations, client, controls)),
            patience: Patience {
                attempts: operations.attempts,
                back_off: seconds(operations.back_off),
                longest_back_off: seconds(operations.longest_back_off),
                give_up_after: seconds(operations.give_up_after),
            },
            api_key_env: operations.api_key_env.clone(),
        })
    }

    /// How each endpoint is doing, in the order of the options.
    pub fn status(&self) -> Vec<EndpointStatus> {
        self.fleet.status()
    }

    /// Nobody is answered any more, or this request is not.
    fn refuse(&self, endpoint: usize, reason: &'static str, detail: String) -> Failure {
        let Some(run) = self.fleet.refused(endpoint) else { return Failure::Refused { reason, detail } };
        let what = if self.fleet.has_answered(endpoint) {
            format!("the last {run} requests that a server has ended were all refused; the last one")
        } else {
            "not one request has been answered, and all that were sent were refused; the last one".to_owned()
        };
        Failure::Unavailable(format!(
            "{what}: {reason}: {detail}. Are `model`, `extra` and the account right for the servers? Those rows are asked again"
        ))
    }

    /// The words by which an endpoint refused a request, if another may answer it. What one says that has never answered shows what is
    /// wrong with the options.
    fn refusal(&self, endpoint: usize, next: &Next) -> Option<String> {
        match next {
            Next::Refuse { reason: "refused_by_server", detail } => Some(detail.clone()),
            Next::Unauthorised { status, words } | Next::Missing { status, words } => {
                self.fleet.has_answered(endpoint).then(|| format!("{status}: {words}"))
            }
            _ => None,
        }
    }

    fn unauthorised(&self, address: &Address, status: u16, words: &str) -> Failure {
        let hint = match &self.api_key_env {
            Some(name) => format!("the token in the environment variable {name} is not accepted"),
            None => "name the environment variable that holds a token: api_key_env".to_owned(),
        };
        Failure::Unavailable(format!("{} answers {status} ({words}): {hint}", address.base))
    }

    /// The fault is in the options, unless the endpoint has answered before.
    async fn missing(&self, address: &Address, endpoint: usize, status: u16, words: String) -> Failure {
        let base = &address.base;
        let list = self.fleet.client.get(&address.models, LIST).await.ok().filter(|reply| reply.status == 200);
        if let Some(models) = list.and_then(|list| answer::models(&list.body))
            && !models.contains(&self.model)
        {
            let shown: Vec<String> =
                models.iter().map(|model| answer::shown(model, self.fleet.client.token())).collect();
            let models = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
            return Failure::Unavailable(format!("{base} has no model `{}`; its models: {models}", self.model));
        }
        if self.fleet.has_answered(endpoint) {
            return self.refuse(endpoint, "refused_by_server", format!("{status}: {words}"));
        }
        Failure::Unavailable(format!(
            "{base}/chat/completions answers {status} ({words}): is this the base URL? Most end in /v1"
        ))
    }
}

#[async_trait]
impl Captioner for ServerCaptioner {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn capacity(&self) -> usize {
        self.fleet.addresses.iter().map(|address| address.cap).sum()
    }

    async fn complete(&self, request: Request) -> Result<Completion, Failure> {
        let image = self.bodies.image(&request).await?;
        if image.is_some() {
            self.fleet.shows_images.store(true, Ordering::Relaxed);
        }
        let mut body = None;
        let mut course = Course::new();
        loop {
            if let Some((endpoint, number)) = course.broken_at.take()
                && self.fleet.has_cooled_since(endpoint, number)
            {
                course.company = course.company.max(Company::Suspects);
            }
            let permit = self.fleet.turn(course.company, course.avoid(), course.sent == 0).await?;
            let (endpoint, number) = (permit.endpoint, permit.number());
            let Some(address) = self.fleet.addresses.get(endpoint) else { return Err(Failure::Cancelled) };
            let body = body.get_or_insert_with(|| Bytes::from(self.bodies.write(&request, image.as_ref())));
            let reply = self.fleet.client.post(&address.chat, body.clone(), self.fleet.timeout).await;
            let outcome = Outcome::of(reply, self.fleet.client.token());
            let facts = permit.end(outcome.sign());
            let next = course.next(outcome, facts, (endpoint, number), &self.patience, self.fleet.blames());
            if let Next::Unauthorised { status, words } | Next::Missing { status, words } = &next
                && self.fleet.is_another(endpoint, &format!("{status}: {words}"))
            {
                continue;
            }
            if course.refused_by.is_none()
                && let Some(words) = self.refusal(endpoint, &next)
                && self.fleet.has_others(endpoint)
            {
                _ = self.fleet.refused(endpoint);
                course.refused_by = Some((endpoint, words));
                continue;
            }
            match next {
                Next::Done(completion) => {
                    if let Some((by, words)) = &course.refused_by {
                        self.fleet.is_contradicted(*by, words);
                    }
                    self.fleet.were_accidents(course.accidents);
                    return Ok(completion);
                }
                Next::Refuse { reason, detail } => {
                    if let ("server_busy", Some(why)) = (reason, self.fleet.silence_since(course.began)) {
                        return Err(Failure::Unavailable(why));
                    }
                    return Err(self.refuse(endpoint, reason, format!("{detail} ({})", address.base)));
                }
                // Moderation says so, too, of a single request; and where another has refused it, this is a second opinion.
                Next::Unauthorised { status, words }
                    if self.fleet.has_answered(endpoint) && (status == 403 || course.refused_by.is_some()) =>
                {
                    let detail = format!("{status}: {words} ({})", address.base);
                    return Err(self.refuse(endpoint, "refused_by_server", detail));
                }
                Next::Unauthorised { status, words } => return Err(self.unauthorised(address, status, &words)),
                Next::Missing { status, words } => return Err(self.missing(address, endpoint, status, words).await),
                Next::Stuck(words) => return Err(Failure::Unavailable(words)),
                Next::Again(wait) => {
                    if let Some(why) = self.fleet.has_been_silent() {
                        return Err(Failure::Unavailable(why));
                    }
                    if !wait.is_zero() {
                        tokio::time::sleep(wait).await;
                    }
                }
            }
        }
    }
}

impl fmt::Debug for ServerCaptioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<&str> = self.fleet.addresses.iter().map(|address| address.base.as_str()).collect();
        f.debug_struct("ServerCaptioner")
            .field("model", &self.model)
            .field("endpoints", &endpoints)
            .finish_non_exhaustive()
    }
}
