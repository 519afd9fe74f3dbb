//! The server: bound first, so that a taken port shows before a model is loaded; then run with its generator.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::api::{self, Studio};
use crate::connections;
use crate::error::ServeError;
use crate::generator::Generator;
use crate::options::Options;
use crate::page::Page;
use crate::queue::Queue;
use crate::store::Store;
use crate::worker::Worker;

/// A server that listens already, but answers only once it runs.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    options: Arc<Options>,
}

impl Server {
    /// Checks the options and listens.
    pub async fn bind(options: Options) -> Result<Self, ServeError> {
        options.check()?;
        let wanted = options.address;
        let failed = |source| ServeError::Bind { address: wanted, source };
        let listener = TcpListener::bind(wanted).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, options: Arc::new(options) })
    }

    /// Where it listens: with the true port, where the options had 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `until` is ready. Then nobody else is let in, those who wait are told, and what is being made has the
    /// limits' `grace` to be made and sent. Returns once the generator's thread has ended and the generator is dropped.
    ///
    /// When the future is dropped instead, the generator is stopped at its next step.
    pub async fn run(
        self,
        generator: impl Generator,
        until: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let Self { listener, address, options } = self;
        let description = generator.describe().clone();
        let limits = &options.limits;
        if let Some(fault) = description.fault(limits) {
            return Err(ServeError::Description { fault });
        }
        let truncation = generator.truncation();
        let queue = Arc::new(Queue::new(limits.waiting, limits.batch, description.most_pixels));
        let store = Store::new(limits.stored_pictures, limits.stored_bytes);
        let mut worker = Worker::start(generator, &queue, &options)?;
        let studio = Arc::new(Studio {
            description,
            truncation,
            options: Arc::clone(&options),
            address,
            queue: Arc::clone(&queue),
            store,
            page: Page::new(),
        });
        let mut connections = connections::serve(listener, api::router(studio), &options, until).await;
        queue.close();
        connections.finish(options.limits.grace).await;
        queue.stop();
        worker.ended().await;
        Ok(())
    }
}
