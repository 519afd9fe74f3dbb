//! `POST /v1/images/generations`: OpenAI's images API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::fields::{Asked, Format};
use super::{Studio, answer, body, fields};
use crate::description::Settings;
use crate::error::ApiError;
use crate::event::Event;
use crate::generator::PictureRequest;
use crate::host::picture_url;
use crate::order::Ticket;

#[derive(Serialize)]
struct Images {
    created: u64,
    data: Vec<Image>,
    /// Of the request; left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    truncated: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct Image {
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    settings: Settings,
}

pub(super) async fn generate(
    State(studio): State<Arc<Studio>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Asked { pictures: requests, format, ignored, truncated } = studio.read(&headers, body).await?;
    // While this waits for the pictures, the client's leaving drops it, and with it the ticket.
    let pictures = studio.order(requests.clone())?.pictures().await?;
    let mut data = Vec::with_capacity(pictures.len());
    for (request, picture) in requests.iter().zip(pictures) {
        let settings = Settings::new(request, &studio.description);
        let (url, b64_json) = match format {
            Format::Url => (Some(studio.keep(&headers, picture)?), None),
            Format::Base64 => (None, Some(STANDARD.encode(&picture))),
        };
        data.push(Image { url, b64_json, settings });
    }
    // A clock before 1970 is no reason to fail.
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    answer(&Images { created, data, ignored, truncated })
}

impl Studio {
    /// Reads and checks an order.
    pub(super) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Asked, ApiError> {
        let limits = &self.options.limits;
        let object = body::object(headers, body, limits.body, limits.receive).await?;
        fields::read(object, &self.description, limits, &self.truncation)
    }

    /// Puts it into the queue.
    pub(super) fn order(&self, requests: Vec<PictureRequest>) -> Result<Ticket, ApiError> {
        let pictures = requests.len();
        let (ticket, waiting) = self.queue.order(requests)?;
        (self.options.observer)(Event::Queued { pictures, waiting });
        Ok(ticket)
    }

    /// Stores a picture and returns its URL.
    pub(super) fn keep(&self, headers: &HeaderMap, picture: bytes::Bytes) -> Result<String, ApiError> {
        let name = self.store.keep(picture)?;
        Ok(picture_url(headers, self.address, self.options.base_url.as_deref(), &name))
    }
}
