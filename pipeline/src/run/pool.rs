//! Threads that make partitions: as many as are wanted at once, kept for the next.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::mpsc::{Receiver, SyncSender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;

use super::work::{Message, Work};

pub(super) struct Pool<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    queue: Sender<Work>,
    waiting: Arc<Mutex<Receiver<Work>>>,
    idle: Arc<AtomicUsize>,
    done: SyncSender<Message>,
}

impl<'scope, 'env> Pool<'scope, 'env> {
    /// `done` hears what becomes of each work. The threads end when the pool is dropped.
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, done: SyncSender<Message>) -> Self {
        let (queue, waiting) = channel();
        Self { scope, queue, waiting: Arc::new(Mutex::new(waiting)), idle: Arc::default(), done }
    }

    /// Starts at once: on an idle thread, or on a new one.
    pub(super) fn start(&self, work: Work) {
        let taken = self.idle.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |idle| idle.checked_sub(1));
        if taken.is_err() {
            let (waiting, idle, done) = (Arc::clone(&self.waiting), Arc::clone(&self.idle), self.done.clone());
            self.scope.spawn(move || {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = next else { break };
                    work.run(&done);
                    idle.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // It cannot fail: the pool itself holds the other end.
        let _ = self.queue.send(work);
    }
}
