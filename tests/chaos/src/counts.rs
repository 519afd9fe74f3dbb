//! What was asked for, and how much at a time.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Names that are counted one by one; further ones are not.
const MOST_NAMES: usize = 200_000;

/// What an origin has served since it started, or since [`crate::Origin::reset`].
#[derive(Clone, Debug)]
pub struct Served {
    /// Requests for each row, redirects followed included. Those of a duplicate count for the row that it repeats.
    pub requests: Vec<u32>,
    /// How often each row's picture went out in whole.
    pub pictures: Vec<u32>,
    /// Requests of all kinds: robots.txt and unknown paths too.
    pub all_requests: u64,
    /// The most requests that each host had at a time. Hosts that no row is on are together under "". An answer counts until
    /// its last part is written, or the first part after which a client may have enough; a silence counts half a second. So
    /// whoever keeps to a limit is never seen above it, if it waits at least that long for an answer.
    pub most_at_a_time: BTreeMap<String, usize>,
    pub open_connections: usize,
    pub most_open_connections: usize,
    pub connections: u64,
    /// Connections to the address that must not be connected to.
    pub trapped: u64,
    /// Questions that the name server was asked, by name in lower case: those for IPv4, and those for IPv6.
    pub questions: BTreeMap<String, (u32, u32)>,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    rows: Vec<RowCount>,
    hosts: HashMap<String, Load>,
    others: Load,
    requests: AtomicU64,
    pub(crate) connections: Load,
    made: AtomicU64,
    pub(crate) trapped: AtomicU64,
    questions: Mutex<HashMap<String, (u32, u32)>>,
}

#[derive(Debug, Default)]
struct RowCount {
    requests: AtomicU32,
    pictures: AtomicU32,
}

/// How many there are now, and how many there were at most.
#[derive(Debug, Default)]
pub(crate) struct Load {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Load {
    /// One more, until the guard is dropped.
    pub(crate) fn enter(&self) -> Inside<'_> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Inside(self)
    }

    fn reset(&self) {
        self.most.store(self.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

pub(crate) struct Inside<'a>(&'a Load);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counts {
    pub(crate) fn new(rows: usize, hosts: impl Iterator<Item = String>) -> Self {
        Self {
            rows: (0..rows).map(|_| RowCount::default()).collect(),
            hosts: hosts.map(|host| (host, Load::default())).collect(),
            ..Self::default()
        }
    }

    /// A request to `host`; the guard is held until its answer has ended.
    pub(crate) fn request(&self, host: &str) -> Inside<'_> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let host = host.rsplit_once(':').map_or(host, |(name, _port)| name);
        let known = self.hosts.get(host).or_else(|| self.hosts.get(&host.to_lowercase()));
        known.unwrap_or(&self.others).enter()
    }

    /// A request for a row; the number of those before it.
    pub(crate) fn row(&self, row: usize) -> u32 {
        self.rows.get(row).map_or(0, |count| count.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a row has been asked for.
    pub(crate) fn is_known(&self, row: usize) -> bool {
        self.rows.get(row).is_none_or(|count| count.requests.load(Ordering::Relaxed) > 0)
    }

    pub(crate) fn picture(&self, row: usize) {
        if let Some(count) = self.rows.get(row) {
            count.pictures.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn connection(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    /// A question for a name's IPv4 or IPv6 addresses; the number of those before it.
    pub(crate) fn question(&self, name: &str, is_v6: bool) -> u32 {
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        if questions.len() >= MOST_NAMES && !questions.contains_key(name) {
            return 0;
        }
        let (v4, v6) = questions.entry(name.to_owned()).or_default();
        let count = if is_v6 { v6 } else { v4 };
        *count += 1;
        *count - 1
    }

    pub(crate) fn reset(&self) {
        for row in &self.rows {
            row.requests.store(0, Ordering::Relaxed);
            row.pictures.store(0, Ordering::Relaxed);
        }
        self.hosts.values().chain([&self.others, &self.connections]).for_each(Load::reset);
        for count in [&self.requests, &self.made, &self.trapped] {
            count.store(0, Ordering::Relaxed);
        }
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn served(&self) -> Served {
        let most = |load: &Load| load.most.load(Ordering::Relaxed);
        let hosts = self.hosts.iter().map(|(name, load)| (name.clone(), most(load)));
        let questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        Served {
            requests: self.rows.iter().map(|row| row.requests.load(Ordering::Relaxed)).collect(),
            pictures: self.rows.iter().map(|row| row.pictures.load(Ordering::Relaxed)).collect(),
            all_requests: self.requests.load(Ordering::Relaxed),
            most_at_a_time: hosts.chain([(String::new(), most(&self.others))]).filter(|(_, most)| *most > 0).collect(),
            open_connections: self.connections.now.load(Ordering::Relaxed),
            most_open_connections: most(&self.connections),
            connections: self.made.load(Ordering::Relaxed),
            trapped: self.trapped.load(Ordering::Relaxed),
            questions: questions.iter().map(|(name, count)| (name.clone(), *count)).collect(),
        }
    }
}
