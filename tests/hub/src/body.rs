//! The body of an answer on its way, with what goes wrong with it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Sleep, sleep};

use crate::faults::Damage;
use crate::server::Shared;

const CHUNK: u64 = 64 << 10;
/// Of slow bodies.
const STEPS_A_SECOND: u64 = 20;

pub(crate) struct Outgoing {
    content: Bytes,
    damage: Damage,
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether all before the cut has been handed to the socket.
    was_flushed: bool,
    shared: Arc<Shared>,
    /// Of the request, in the records.
    number: usize,
}

impl Outgoing {
    pub(crate) fn new(content: Bytes, mut damage: Damage, shared: Arc<Shared>, number: usize) -> Self {
        damage.cut = damage.cut.filter(|cut| *cut < content.len() as u64);
        let content = if damage.is_corrupt { content.iter().map(|byte| byte ^ 0xff).collect() } else { content };
        Self { content, damage, pause: None, was_flushed: false, shared, number }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.pause = None;
        }
        let mut most = CHUNK.min(self.content.len() as u64);
        if let Some(left) = self.damage.cut {
            most = most.min(left);
            if left == 0 && !self.was_flushed {
                // hyper flushes when there is nothing to send now.
                self.was_flushed = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if left == 0 {
                return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
            }
        }
        if let Some(rate) = self.damage.slow {
            most = most.min((rate / STEPS_A_SECOND).max(1));
            let step = Duration::from_secs_f64(most as f64 / rate.max(1) as f64);
            self.pause = Some(Box::pin(sleep(step)));
        }
        if most == 0 {
            return Poll::Ready(None);
        }
        let chunk = self.content.split_to(most as usize);
        self.damage.cut = self.damage.cut.map(|left| left - most);
        self.shared.records.update(self.number, |asked| asked.sent += most);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_empty() && self.damage.cut.is_none()
    }
}
