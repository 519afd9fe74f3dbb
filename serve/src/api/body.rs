//! A request's body: JSON, of bounded size, within bounded time.

use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use futures::StreamExt;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::error::ApiError;

/// Of a body that is too large, so much is read and thrown away: a client that still sends would not hear the answer.
const THROWN_AWAY: usize = 1 << 20;

/// The object in a body of at most `most` bytes that comes `within` so long.
pub(crate) async fn object(
    headers: &HeaderMap,
    body: Body,
    most: usize,
    within: Duration,
) -> Result<Map<String, Value>, ApiError> {
    // Other types can be sent by any page, without asking this server first.
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::NotSentAsJson);
    }
    let bytes = timeout(within, read(body, most)).await.map_err(|_late| ApiError::TooSlow(within))??;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::NotAnObject),
        Err(error) => Err(ApiError::NotJson(error.to_string())),
    }
}

async fn read(body: Body, most: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut length = 0;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_cut| ApiError::Cut)?;
        length += chunk.len();
        if length <= most {
            bytes.extend_from_slice(&chunk);
        } else if length > most + THROWN_AWAY {
            break;
        }
    }
    if length > most { Err(ApiError::TooLarge { most }) } else { Ok(bytes) }
}
