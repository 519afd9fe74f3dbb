//! Captions from a fleet of OpenAI-compatible servers: vLLM, SGLang, llama.cpp's, TGI, or whatever speaks
//! `/v1/chat/completions`.
//!
//! A request [waits for its turn](turns) at the endpoint that is least loaded, is [sent](client) with its [body], and comes
//! to an [outcome]. Its [course] says whether it is sent again. How many are in flight at an endpoint is found out by
//! [growing](limit) while latency holds; one that fails is [left alone](endpoint) until it [works again](health).

mod answer;
mod body;
mod captioner;
mod client;
mod course;
mod endpoint;
mod fleet;
mod health;
mod image;
mod limit;
mod options;
mod outcome;
mod retry;
mod status;
mod turns;

pub(crate) use answer::{Held, read as read_answer, words as words_of_answer};
pub use body::Bodies;
pub use captioner::ServerCaptioner;
pub use options::{Endpoint, Operations, OptionsError, Semantics, ServerOptions};
pub use status::EndpointStatus;
