//! What is told about the model and the server.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Studio, answer};
use crate::error::ApiError;
use crate::queue::Load;

/// `GET /v1/models`.
pub(super) async fn list(State(studio): State<Arc<Studio>>) -> Result<Response, ApiError> {
    answer(&json!({ "object": "list", "data": [model(&studio)] }))
}

/// `GET /v1/models/NAME`; names of models may have slashes.
pub(super) async fn one(State(studio): State<Arc<Studio>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    if name == studio.description.model { answer(&model(&studio)) } else { Err(ApiError::NoSuchModel(name)) }
}

fn model(studio: &Studio) -> Value {
    json!({
        "id": studio.description.model,
        "object": "model",
        // A checkpoint does not tell.
        "created": 0,
        "owned_by": "ferrotype",
        "checkpoint": studio.description.checkpoint,
    })
}

/// `GET /api/description`: what the page draws its form from.
pub(super) async fn description(State(studio): State<Arc<Studio>>) -> Result<Response, ApiError> {
    let limits = &studio.options.limits;
    let mut description = json!(studio.description);
    description["limits"] = json!({
        "pictures": limits.pictures,
        "steps": limits.steps,
        "guidance": limits.guidance,
        "prompt": limits.prompt,
    });
    answer(&description)
}

/// `GET /health`: 200 while orders are taken, 503 once they are not.
pub(super) async fn health(State(studio): State<Arc<Studio>>) -> Result<Response, ApiError> {
    let Load { waiting, sampling, is_closed } = studio.queue.load();
    let (stored_pictures, stored_bytes) = studio.store.load();
    let body = answer(&json!({
        "status": if is_closed { "shutting down" } else { "ok" },
        "waiting": waiting,
        "sampling": sampling,
        "stored_pictures": stored_pictures,
        "stored_bytes": stored_bytes,
    }))?;
    Ok((if is_closed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, body).into_response())
}
