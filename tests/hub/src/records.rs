//! What was asked, for assertions.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::HeaderMap;

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Hub,
    /// The storage behind signed links.
    Cdn,
}

/// A request, and what became of it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub side: Side,
    pub method: String,
    /// As it came, with the query.
    pub path: String,
    pub has_authorization: bool,
    pub range: Option<String>,
    /// All but that of `Authorization`.
    pub headers: HeaderMap,
    /// None where there was no answer, or is none yet.
    pub status: Option<u16>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body, so far.
    pub sent: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Records(Mutex<Vec<Asked>>);

impl Records {
    fn lock(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that has come; its number.
    pub(crate) fn add(&self, asked: Asked) -> usize {
        let mut all = self.lock();
        all.push(asked);
        all.len() - 1
    }

    pub(crate) fn update(&self, number: usize, change: impl FnOnce(&mut Asked)) {
        if let Some(asked) = self.lock().get_mut(number) {
            change(asked);
        }
    }

    pub(crate) fn all(&self) -> Vec<Asked> {
        self.lock().clone()
    }
}
