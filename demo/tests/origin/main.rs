//! The demo origin as its clients see it: the list, the pictures behind it, and the faults.

#![expect(clippy::unwrap_used, reason = "a test that meets an error should panic")]

mod catalogue;
mod faults;
mod pictures;
mod server;

use std::time::Duration;

use demo::{Catalogue, Entry, Origin};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};

/// A server with its list, and a client that follows no redirects.
struct Visit {
    catalogue: Catalogue,
    origin: Origin,
    client: Client,
}

impl Visit {
    /// A small catalogue of its own seed.
    async fn new(pictures: usize) -> Self {
        Self::with(Catalogue::new(pictures, 7)).await
    }

    async fn with(catalogue: Catalogue) -> Self {
        let origin = Origin::start(catalogue.clone(), 0).await.unwrap();
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        Self { catalogue, origin, client }
    }

    async fn get_path(&self, path: &str) -> Response {
        self.client.get(format!("http://{}{path}", self.origin.address())).send().await.unwrap()
    }

    async fn get(&self, entry: &Entry) -> Response {
        self.get_path(&entry.path()).await
    }
}
