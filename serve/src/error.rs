//! What can go wrong: with the server, and with one request, which hears of it in OpenAI's form.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::order::Failure;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the server's options do not fit together: {}", faults.join("; "))]
    Options { faults: Vec<String> },
    #[error("cannot listen on {address}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("the generator describes itself wrongly: {fault}")]
    Description { fault: String },
    #[error("cannot start a thread for the generator")]
    Thread(#[source] io::Error),
}

/// One field of a request that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    pub(crate) param: &'static str,
    pub(crate) message: String,
}

/// Why a request is not answered with what it asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("the body is not valid JSON: {0}")]
    NotJson(String),
    #[error("the body must be a JSON object")]
    NotAnObject,
    #[error("the body must be sent as application/json")]
    NotSentAsJson,
    #[error("the body is larger than {most} bytes")]
    TooLarge { most: usize },
    #[error("the body did not come within {} seconds", .0.as_secs_f64())]
    TooSlow(Duration),
    #[error("the body ended early")]
    Cut,
    #[error("{}", faults.iter().map(|fault| format!("{}: {}", fault.param, fault.message)).collect::<Vec<_>>().join("; "))]
    Faults { faults: Vec<Fault> },
    #[error(
        "{pictures} pictures would not fit into the queue, where {waiting} of at most {most} wait; try again later"
    )]
    QueueFull { pictures: usize, waiting: usize, most: usize, retry_after: u64 },
    #[error("the model refuses this: {0}")]
    Refused(String),
    #[error("the picture could not be made: {0}")]
    Failed(String),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("a valid API key is needed, as \"Authorization: Bearer KEY\"")]
    NoKey,
    #[error("the name \"{0}\" is not one of this server's; call it as localhost, or allow the name in its options")]
    ForeignHost(String),
    #[error("requests from pages of other servers are not answered")]
    ForeignOrigin,
    #[error("there is nothing here")]
    NotFound,
    #[error("there is no such picture, or it is no longer kept; its settings make it again")]
    NoSuchPicture,
    #[error("there is no model \"{0}\" here")]
    NoSuchModel(String),
    #[error("this address does not take such a request")]
    WrongMethod,
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(words) => Self::Refused(words),
            Failure::Failed(words) => Self::Failed(words),
            Failure::ShuttingDown => Self::ShuttingDown,
        }
    }
}

impl ApiError {
    /// Status, and OpenAI's `type` and `code`.
    fn kind(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        match self {
            Self::NotJson(_) | Self::NotAnObject => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_json")),
            Self::NotSentAsJson => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_media_type")),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("body_too_large")),
            Self::TooSlow(_) => (StatusCode::REQUEST_TIMEOUT, INVALID, Some("body_too_slow")),
            Self::Cut => (StatusCode::BAD_REQUEST, INVALID, Some("body_cut")),
            Self::Faults { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_value")),
            Self::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full")),
            Self::Refused(_) => (StatusCode::BAD_REQUEST, "image_generation_user_error", Some("refused_by_model")),
            Self::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("generation_failed")),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down")),
            Self::NoKey => (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key")),
            Self::ForeignHost(_) => (StatusCode::FORBIDDEN, INVALID, Some("foreign_host")),
            Self::ForeignOrigin => (StatusCode::FORBIDDEN, INVALID, Some("foreign_origin")),
            Self::NotFound => (StatusCode::NOT_FOUND, INVALID, None),
            Self::NoSuchPicture => (StatusCode::NOT_FOUND, INVALID, Some("picture_not_found")),
            Self::NoSuchModel(_) => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
            Self::WrongMethod => (StatusCode::METHOD_NOT_ALLOWED, INVALID, None),
        }
    }

    /// `{"error": {message, type, param, code}}`, and the faults one by one where there are some.
    pub(crate) fn body(&self) -> Value {
        let (_, kind, code) = self.kind();
        let faults: &[Fault] = if let Self::Faults { faults } = self { faults } else { &[] };
        let param = faults.first().map(|fault| fault.param);
        let mut error = json!({ "message": self.to_string(), "type": kind, "param": param, "code": code });
        if let (false, Some(error)) = (faults.is_empty(), error.as_object_mut()) {
            error.insert("faults".to_owned(), json!(faults));
        }
        json!({ "error": error })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response =
            (self.kind().0, [(CONTENT_TYPE, "application/json")], self.body().to_string()).into_response();
        match self {
            Self::QueueFull { retry_after, .. } => {
                response.headers_mut().insert(RETRY_AFTER, retry_after.into());
            }
            Self::NoKey => {
                response.headers_mut().insert(WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}
