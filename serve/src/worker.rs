//! The generator's thread: batch after batch from the queue.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::error::ServeError;
use crate::event::{Event, Outcome};
use crate::generator::{GenerateError, Generator, PictureRequest};
use crate::options::Options;
use crate::order::{Failure, Job, Standing};
use crate::queue::Queue;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The thread, which lives until the queue is closed. Dropping this stops it at its next step.
#[derive(Debug)]
pub(crate) struct Worker {
    queue: Arc<Queue>,
    /// Its other end is dropped with the generator.
    ended: oneshot::Receiver<()>,
}

impl Worker {
    pub(crate) fn start(
        generator: impl Generator,
        queue: &Arc<Queue>,
        options: &Arc<Options>,
    ) -> Result<Self, ServeError> {
        let (alive, ended) = oneshot::channel::<()>();
        let (own_queue, options) = (Arc::clone(queue), Arc::clone(options));
        let work = move || {
            let mut generator = generator;
            let _closing = Closing(&own_queue);
            while let Some(batch) = own_queue.next_batch() {
                let pictures = batch.len();
                let took = make(&mut generator, batch, &own_queue, &options);
                own_queue.done(pictures, took);
            }
            drop(generator);
            drop(alive);
        };
        thread::Builder::new().name("generator".to_owned()).spawn(work).map_err(ServeError::Thread)?;
        Ok(Self { queue: Arc::clone(queue), ended })
    }

    /// Waits for its end. The queue must have been closed.
    pub(crate) async fn ended(&mut self) {
        // The other end sends nothing: it is dropped.
        let _ = (&mut self.ended).await;
    }
}

/// Closes the queue when the thread ends, be it by a panic: nobody may wait for what is never made.
struct Closing<'a>(&'a Queue);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.done(0, None);
        self.0.close();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

/// Makes a batch and tells its clients. Returns how long it took, if all of it was made at once.
fn make(
    generator: &mut impl Generator,
    batch: Vec<Job>,
    queue: &Queue,
    options: &Options,
) -> Option<std::time::Duration> {
    let started = Instant::now();
    let result = ask(generator, &batch, queue);
    let took = started.elapsed();
    let outcome = match &result {
        Ok(_) => Outcome::Made,
        Err(GenerateError::Stopped) if is_given_up(&batch, queue) => Outcome::Stopped,
        Err(error) => Outcome::Failed(error.to_string()),
    };
    (options.observer)(Event::Batch { pictures: batch.len(), took, outcome });
    match result {
        Ok(pictures) => {
            for (job, picture) in batch.iter().zip(pictures) {
                job.set(Standing::Done(Ok(Bytes::from(picture))));
            }
            return Some(took);
        }
        Err(_) if queue.is_stopped() => {
            for job in &batch {
                job.set(Standing::Done(Err(Failure::ShuttingDown)));
            }
        }
        // Which of them is to blame shows only when each is made alone; nobody's picture fails by its neighbour.
        Err(_) if batch.len() > 1 => {
            for job in batch {
                if !job.order.is_left() {
                    make(generator, vec![job], queue, options);
                }
            }
        }
        Err(error) => {
            for job in &batch {
                job.set(Standing::Done(Err(error.clone().into())));
            }
        }
    }
    None
}

/// One call of the generator, whose answer is checked.
fn ask(generator: &mut impl Generator, batch: &[Job], queue: &Queue) -> Result<Vec<Vec<u8>>, GenerateError> {
    if is_given_up(batch, queue) {
        return Err(GenerateError::Stopped);
    }
    let requests: Vec<PictureRequest> = batch.iter().map(|job| job.request.clone()).collect();
    let mut progress = |step, of| {
        if is_given_up(batch, queue) {
            return ControlFlow::Break(());
        }
        for job in batch {
            job.set(Standing::Sampling { step, of });
        }
        ControlFlow::Continue(())
    };
    // A panic must not take the thread, and with it everybody else's pictures.
    let pictures = catch_unwind(AssertUnwindSafe(|| generator.generate(&requests, &mut progress)))
        .unwrap_or_else(|_| Err(GenerateError::Failed("the generator panicked".to_owned())))?;
    if pictures.len() != requests.len() || !pictures.iter().all(|picture| picture.starts_with(PNG)) {
        let words = format!("the generator did not answer {} requests with as many PNG files", requests.len());
        return Err(GenerateError::Failed(words));
    }
    Ok(pictures)
}

fn is_given_up(batch: &[Job], queue: &Queue) -> bool {
    queue.is_stopped() || batch.iter().all(|job| job.order.is_left())
}
