//! `POST /api/pictures`: an order answered by server-sent events, for the page.
//!
//! ```text
//! accepted  {"pictures": [settings, …], "ignored": [name, …], "truncated": {name: end, …}}   first
//! queued    {"picture": 0, "ahead": 3}                          pictures that are made before it
//! progress  {"picture": 0, "step": 7, "of": 25}
//! done      {"picture": 0, "url": …, "settings": …}             last of each picture
//! error     {"picture": 0, "error": …}                          or this; as in other answers
//! ```
//! What is wrong with the order itself is answered like everywhere, with a status and no events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream;
use serde_json::{Value, json};

use super::Studio;
use super::fields::Asked;
use crate::description::Settings;
use crate::error::ApiError;
use crate::order::{Standing, Ticket};

/// Between signs of life. A client that has left without a word is noticed by them.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

pub(super) async fn generate(
    State(studio): State<Arc<Studio>>,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, ApiError> {
    let Asked { pictures, ignored, truncated, .. } = studio.read(&headers, body).await?;
    let settings: Vec<Settings> = pictures.iter().map(|picture| Settings::new(picture, &studio.description)).collect();
    let ticket = studio.order(pictures)?;
    let accepted = event("accepted", &json!({ "pictures": settings, "ignored": ignored, "truncated": truncated }));
    let told = vec![None; settings.len()];
    let news = News { studio, headers, ticket, settings, told, ready: VecDeque::from([accepted]) };
    let events = stream::unfold(news, |mut news| async move { Some((Ok::<_, Infallible>(news.next().await?), news)) });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(SIGN_OF_LIFE)))
}

/// The events of one order. Dropped with the response, and with it the ticket, when the client leaves.
struct News {
    studio: Arc<Studio>,
    headers: HeaderMap,
    ticket: Ticket,
    settings: Vec<Settings>,
    /// What the client knows of each picture.
    told: Vec<Option<Standing>>,
    ready: VecDeque<Event>,
}

impl News {
    /// None after the last event of the last picture.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            self.gather();
            if !self.ready.is_empty() {
                continue;
            }
            if self.told.iter().all(|told| matches!(told, Some(Standing::Done(_)))) {
                return None;
            }
            self.ticket.changed().await;
        }
    }

    /// Makes events of what has changed.
    fn gather(&mut self) {
        let standings = self.ticket.standings();
        for (picture, (told, standing)) in self.told.iter_mut().zip(standings).enumerate() {
            if told.as_ref() == Some(&standing) {
                continue;
            }
            let event = match &standing {
                Standing::Waiting { ahead } => event("queued", &json!({ "picture": picture, "ahead": ahead })),
                Standing::Sampling { step, of } => {
                    event("progress", &json!({ "picture": picture, "step": step, "of": of }))
                }
                Standing::Done(result) => {
                    let url =
                        result.clone().map_err(ApiError::from).and_then(|png| self.studio.keep(&self.headers, png));
                    match url {
                        Ok(url) => event(
                            "done",
                            &json!({ "picture": picture, "url": url, "settings": self.settings.get(picture) }),
                        ),
                        Err(error) => {
                            let mut data = error.body();
                            data["picture"] = json!(picture);
                            event("error", &data)
                        }
                    }
                }
            };
            self.ready.push_back(event);
            *told = Some(standing);
        }
    }
}

fn event(name: &str, data: &Value) -> Event {
    // JSON has no line ends outside of strings, and within them they are escaped.
    Event::default().event(name).data(data.to_string())
}
