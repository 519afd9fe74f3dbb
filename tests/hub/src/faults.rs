//! Misbehaviour that a test orders.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::answer::Answer;
use crate::question::Question;
use crate::records::Side;
use crate::store::RepoKind;

/// Something that goes wrong, by default with the next request of all. Of faults that meet with the same request, each does its
/// part; of several answers, the one that was ordered first is given.
#[derive(Clone, Debug)]
pub struct Fault {
    what: What,
    side: Option<Side>,
    method: Option<String>,
    path: String,
    after: u64,
    times: u64,
    lasting: Option<Duration>,
    retry_after: Option<u64>,
}

#[derive(Clone, Debug)]
enum What {
    Status(u16),
    Limited(u64),
    Late(Duration),
    CutRequest(u64),
    Moved { kind: RepoKind, repo: String, branch: String, to: String },
    Cut(u64),
    Slow(u64),
    Corrupt,
    Short(u64),
}

impl Fault {
    fn new(what: What) -> Self {
        let (side, method, lasting, retry_after) = (None, None, None, None);
        Self { what, side, method, path: String::new(), after: 0, times: 1, lasting, retry_after }
    }

    /// This status, and nothing is done.
    pub fn status(status: u16) -> Self {
        Self::new(What::Status(status))
    }

    /// 429 with the headers by which the Hub says in how many seconds there may be more.
    pub fn rate_limited(reset_in: u64) -> Self {
        Self::new(What::Limited(reset_in))
    }

    /// The answer comes so much later.
    pub fn late(by: Duration) -> Self {
        Self::new(What::Late(by))
    }

    /// The connection breaks when so many bytes of the request's body have come; without an answer.
    pub fn cut_request(after: u64) -> Self {
        Self::new(What::CutRequest(after))
    }

    /// The branch is at another commit before the request is answered.
    pub fn moved(kind: RepoKind, repo: &str, branch: &str, to: &str) -> Self {
        let (repo, branch, to) = (repo.to_owned(), branch.to_owned(), to.to_owned());
        Self::new(What::Moved { kind, repo, branch, to })
    }

    /// The connection breaks after so many bytes of the answer's body; where it has more of them.
    pub fn cut(after: u64) -> Self {
        Self::new(What::Cut(after))
    }

    /// The body comes at so many bytes a second.
    pub fn slow(bytes_a_second: u64) -> Self {
        Self::new(What::Slow(bytes_a_second))
    }

    /// The body has the right length, and every byte of it is another one.
    pub fn corrupt() -> Self {
        Self::new(What::Corrupt)
    }

    /// The body is so long at most, and said to be.
    pub fn short(bytes: u64) -> Self {
        Self::new(What::Short(bytes))
    }

    /// Only requests that have this in their path or query, in plain text. Links to the storage have the file's name in their
    /// query.
    #[must_use]
    pub fn on(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    #[must_use]
    pub fn at(mut self, side: Side) -> Self {
        self.side = Some(side);
        self
    }

    /// Only requests by this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// The first so many requests of those are well.
    #[must_use]
    pub fn after(mut self, requests: u64) -> Self {
        self.after = requests;
        self
    }

    /// With so many requests.
    #[must_use]
    pub fn times(mut self, requests: u64) -> Self {
        self.times = requests;
        self
    }

    #[must_use]
    pub fn always(self) -> Self {
        self.times(u64::MAX)
    }

    /// Until so long from when it is ordered.
    #[must_use]
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasting = Some(time);
        self
    }

    /// A status comes with `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Bodies of other answers, such as redirects, do not count.
    fn is_about_bodies(&self) -> bool {
        matches!(self.what, What::Cut(_) | What::Slow(_) | What::Corrupt | What::Short(_))
    }

    fn refusal(&self) -> Option<Answer> {
        let (status, message) = match self.what {
            What::Status(status) => (status, format!("Ordered by the test: {status}")),
            What::Limited(_) => (429, "We had to rate limit you".to_owned()),
            _ => return None,
        };
        let mut answer = Answer::refusal(status, None, &message);
        if let What::Limited(reset) = self.what {
            let policy = r#""fixed window";"api";q=500;w=300"#;
            answer = answer.with("ratelimit", format!(r#""api";r=0;t={reset}"#)).with("ratelimit-policy", policy);
        }
        if let Some(seconds) = self.retry_after {
            answer = answer.with("retry-after", seconds.to_string());
        }
        Some(answer)
    }
}

/// What happens to a request.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    pub(crate) refusal: Option<Answer>,
    pub(crate) late: Duration,
    pub(crate) cut_request: Option<u64>,
    /// Kind, repository, branch and commit.
    pub(crate) moves: Vec<(RepoKind, String, String, String)>,
}

/// What happens to the body of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Damage {
    pub(crate) cut: Option<u64>,
    pub(crate) slow: Option<u64>,
    pub(crate) is_corrupt: bool,
    pub(crate) short: Option<u64>,
}

#[derive(Debug)]
struct Ordered {
    fault: Fault,
    since: Instant,
    seen: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Ordered>>);

impl Faults {
    fn lock(&self) -> MutexGuard<'_, Vec<Ordered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn order(&self, fault: Fault) {
        self.lock().push(Ordered { fault, since: Instant::now(), seen: 0 });
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Those that are due with a request, which counts for all that it is one of.
    fn due(&self, side: Side, question: &Question, about_bodies: bool) -> Vec<Fault> {
        let text = question.text();
        let mut due = Vec::new();
        for Ordered { fault, since, seen } in self.lock().iter_mut() {
            let is_meant = fault.is_about_bodies() == about_bodies
                && fault.side.is_none_or(|other| other == side)
                && fault.method.as_ref().is_none_or(|method| question.method == method.as_str())
                && text.contains(&fault.path);
            if !is_meant || fault.lasting.is_some_and(|time| since.elapsed() >= time) {
                continue;
            }
            *seen += 1;
            if *seen > fault.after && *seen - fault.after <= fault.times {
                due.push(fault.clone());
            }
        }
        due
    }

    pub(crate) fn fate(&self, side: Side, question: &Question) -> Fate {
        let mut fate = Fate::default();
        for fault in self.due(side, question, false) {
            if fate.refusal.is_none() {
                fate.refusal = fault.refusal();
            }
            match fault.what {
                What::Late(by) => fate.late += by,
                What::CutRequest(after) => fate.cut_request = Some(after),
                What::Moved { kind, repo, branch, to } => fate.moves.push((kind, repo, branch, to)),
                _ => {}
            }
        }
        fate
    }

    /// For an answer that has content.
    pub(crate) fn damage(&self, side: Side, question: &Question) -> Damage {
        let mut damage = Damage::default();
        for fault in self.due(side, question, true) {
            match fault.what {
                What::Cut(after) => damage.cut = Some(after),
                What::Slow(rate) => damage.slow = Some(rate),
                What::Corrupt => damage.is_corrupt = true,
                What::Short(bytes) => damage.short = Some(bytes),
                _ => {}
            }
        }
        damage
    }
}
