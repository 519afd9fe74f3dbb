//! Pictures kept for those who asked for a URL: bounded in number and bytes, the oldest dropped first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::error::ApiError;

#[derive(Debug)]
pub(crate) struct Store {
    kept: Mutex<Kept>,
    most_pictures: usize,
    most_bytes: usize,
}

#[derive(Debug, Default)]
struct Kept {
    pictures: HashMap<String, Bytes>,
    /// From the oldest to the newest.
    order: VecDeque<String>,
    bytes: usize,
}

impl Store {
    pub(crate) fn new(most_pictures: usize, most_bytes: usize) -> Self {
        Self { kept: Mutex::default(), most_pictures, most_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing under this lock panics half-way through a change.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a picture, and returns the name by which alone it can be had: nobody guesses it.
    pub(crate) fn keep(&self, picture: Bytes) -> Result<String, ApiError> {
        if picture.len() > self.most_bytes {
            let words = format!(
                "its {} bytes are more than this server keeps for a URL; ask for response_format \"b64_json\"",
                picture.len()
            );
            return Err(ApiError::Failed(words));
        }
        let name = format!("{:032x}", u128::from_le_bytes(random()?));
        let mut kept = self.lock();
        kept.bytes += picture.len();
        kept.order.push_back(name.clone());
        kept.pictures.insert(name.clone(), picture);
        while kept.pictures.len() > self.most_pictures || kept.bytes > self.most_bytes {
            let Some(oldest) = kept.order.pop_front() else { break };
            if let Some(picture) = kept.pictures.remove(&oldest) {
                kept.bytes -= picture.len();
            }
        }
        Ok(name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Bytes> {
        self.lock().pictures.get(name).cloned()
    }

    /// Number of pictures, and their bytes.
    pub(crate) fn load(&self) -> (usize, usize) {
        let kept = self.lock();
        (kept.pictures.len(), kept.bytes)
    }
}

/// Bytes that nobody can foresee.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], ApiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| ApiError::Failed(format!("the system gives no random numbers: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let store = Store::new(3, 100);
        let keep = |length: usize| store.keep(Bytes::from(vec![7; length])).unwrap();
        let names: Vec<String> = [10, 20, 30].into_iter().map(keep).collect();
        assert_eq!(store.load(), (3, 60));
        let fourth = keep(5);
        assert_eq!(store.load(), (3, 55), "by number");
        assert!(store.get(&names[0]).is_none() && store.get(&names[1]).is_some());
        let fifth = keep(60);
        assert_eq!(store.load(), (3, 95), "by number again");
        keep(40);
        assert_eq!(store.load(), (2, 100), "by bytes");
        assert!(store.get(&fourth).is_none() && store.get(&fifth).is_some());
        assert!(store.keep(Bytes::from(vec![0; 101])).is_err());
        assert_eq!(store.load(), (2, 100), "what does not fit pushes nothing out");
    }
}
