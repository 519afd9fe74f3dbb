//! The pictures of one request on their way through the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use crate::generator::{GenerateError, PictureRequest};
use crate::queue::Queue;

/// Where a picture stands. It moves forwards only, unless a batch failed and its pictures are made one by one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Standing {
    /// So many pictures are made before it.
    Waiting {
        ahead: usize,
    },
    Sampling {
        step: u32,
        of: u32,
    },
    /// Encoded as PNG, or why not.
    Done(Result<Bytes, Failure>),
}

/// Why there is no picture, for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Refused(String),
    Failed(String),
    ShuttingDown,
}

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Refused(words) => Self::Refused(words),
            // A generator that stops although it was not asked to has failed; where it was, nobody listens.
            GenerateError::Stopped | GenerateError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}

/// What the pictures of one request share.
#[derive(Debug)]
pub(crate) struct Order {
    is_left: AtomicBool,
    standings: watch::Sender<Vec<Standing>>,
}

impl Order {
    pub(crate) fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Relaxed)
    }
}

/// One picture that is to be made.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: PictureRequest,
    pub(crate) order: Arc<Order>,
    /// Which of the order's pictures it is.
    index: usize,
}

impl Job {
    /// Tells the client where this picture stands, if that is news.
    pub(crate) fn set(&self, standing: Standing) {
        self.order.standings.send_if_modified(|standings| match standings.get_mut(self.index) {
            Some(old) if *old != standing => {
                *old = standing;
                true
            }
            _ => false,
        });
    }
}

impl Drop for Job {
    /// Whoever had it has ended without a word, as by a panic: its client must not wait for ever.
    fn drop(&mut self) {
        self.order.standings.send_if_modified(|standings| match standings.get_mut(self.index) {
            None | Some(Standing::Done(_)) => false,
            Some(open) => {
                *open = Standing::Done(Err(Failure::Failed("the generator's thread has ended".to_owned())));
                true
            }
        });
    }
}

/// A client's hold on its order: dropping it takes what is left of the order out of the queue, or stops it.
#[derive(Debug)]
pub(crate) struct Ticket {
    order: Arc<Order>,
    standings: watch::Receiver<Vec<Standing>>,
    queue: Arc<Queue>,
}

impl Ticket {
    /// The order's jobs, for the queue, and the ticket, for the client.
    pub(crate) fn new(requests: Vec<PictureRequest>, queue: Arc<Queue>) -> (Self, Vec<Job>) {
        let (sender, standings) = watch::channel(vec![Standing::Waiting { ahead: usize::MAX }; requests.len()]);
        let order = Arc::new(Order { is_left: AtomicBool::new(false), standings: sender });
        let jobs = requests
            .into_iter()
            .enumerate()
            .map(|(index, request)| Job { request, order: Arc::clone(&order), index })
            .collect();
        (Self { order, standings, queue }, jobs)
    }

    /// Where each picture stands now.
    pub(crate) fn standings(&mut self) -> Vec<Standing> {
        self.standings.borrow_and_update().clone()
    }

    /// Waits until some picture stands elsewhere than when [`Self::standings`] was last called.
    pub(crate) async fn changed(&mut self) {
        // The sender lives as long as the order, which this ticket holds: this does not fail.
        let _ = self.standings.changed().await;
    }

    /// The pictures, once all are made; the first failure ends it.
    pub(crate) async fn pictures(mut self) -> Result<Vec<Bytes>, Failure> {
        loop {
            let standings = self.standings();
            let mut pictures = Vec::with_capacity(standings.len());
            for standing in &standings {
                if let Standing::Done(result) = standing {
                    pictures.push(result.clone()?);
                }
            }
            if pictures.len() == standings.len() {
                return Ok(pictures);
            }
            self.changed().await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.order.is_left.store(true, Ordering::Relaxed);
        self.queue.leave(&self.order);
    }
}
