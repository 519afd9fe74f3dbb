//! What is answered at which address, and to whom.

mod body;
mod fields;
mod images;
mod models;
mod pictures;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use sha2::{Digest, Sha256};

use crate::description::Description;
use crate::error::ApiError;
use crate::generator::Truncation;
use crate::host;
use crate::options::Options;
use crate::page::Page;
use crate::queue::Queue;
use crate::store::Store;

/// What all requests share.
pub(crate) struct Studio {
    pub(crate) description: Description,
    pub(crate) truncation: Truncation,
    pub(crate) options: Arc<Options>,
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    pub(crate) queue: Arc<Queue>,
    pub(crate) store: Store,
    pub(crate) page: Page,
}

pub(crate) fn router(studio: Arc<Studio>) -> Router {
    let guarded = Router::new()
        .route("/v1/images/generations", post(images::generate))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .route("/api/pictures", post(pictures::generate))
        .route("/api/description", get(models::description))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&studio), check_key));
    Router::new()
        .merge(guarded)
        .route("/", get(page))
        .route("/health", get(models::health))
        .route("/pictures/{name}", get(picture))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::WrongMethod)
        .layer(middleware::from_fn_with_state(Arc::clone(&studio), check_name))
        .with_state(studio)
}

/// For each request: that it was sent to this server, and not by another server's page.
async fn check_name(State(studio): State<Arc<Studio>>, request: Request, next: Next) -> Response {
    let options = &studio.options;
    let mut checked = host::check(request.headers(), studio.address, &options.host_names);
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        checked = checked.and_then(|()| host::check_origin(request.headers(), options.base_url.as_deref()));
    }
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// For the APIs, where a key is set.
async fn check_key(State(studio): State<Arc<Studio>>, request: Request, next: Next) -> Response {
    match &studio.options.api_key {
        Some(key) if !has_key(request.headers(), key) => ApiError::NoKey.into_response(),
        _ => next.run(request).await,
    }
}

fn has_key(headers: &HeaderMap, key: &str) -> bool {
    let sent = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    // Digests are compared, so that the time it takes tells nothing about the key.
    sent.is_some_and(|sent| Sha256::digest(sent) == Sha256::digest(key))
}

async fn page(State(studio): State<Arc<Studio>>) -> Response {
    let headers: [(HeaderName, HeaderValue); 4] = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, studio.page.policy.clone()),
        (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, studio.page.html.clone()).into_response()
}

async fn picture(State(studio): State<Arc<Studio>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let picture = name.strip_suffix(".png").and_then(|name| studio.store.get(name)).ok_or(ApiError::NoSuchPicture)?;
    let headers = [(CONTENT_TYPE, "image/png"), (CACHE_CONTROL, "private, max-age=31536000, immutable")];
    Ok((headers, picture).into_response())
}

/// A JSON answer.
fn answer(value: &impl serde::Serialize) -> Result<Response, ApiError> {
    let text = serde_json::to_string(value).map_err(|error| ApiError::Failed(error.to_string()))?;
    Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
}
