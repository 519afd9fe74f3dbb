//! What came of rows, and what it cost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::settings::Price;
use super::step::Source;
use super::{Caption, Captioned};
use crate::captioner::Usage;
use crate::checks::Kind;

/// Captions of a kind that all fail their checks, each by answers of its own, until that is taken for a fault of what is asked, or of whom.
const ALL_FAIL: u64 = 128;

/// What became of a partition's rows: the same, however often its making was interrupted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    pub long: StepTally,
    pub short: StepTally,
}

/// Of one of the two captions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTally {
    pub captions: u64,
    /// Answers, those of refused rows too.
    pub attempts: u64,
    /// Captions that were there already.
    pub ready: u64,
    /// Captions in whose place something else was taken.
    pub fell_back: u64,
    /// Answers after the first of each row.
    #[serde(default)]
    pub asked_again: u64,
    /// Those for which no model is named: what was there was taken.
    #[serde(default)]
    pub passed_on: u64,
    /// By check, of the last answer of each row.
    pub flags: BTreeMap<String, u64>,
    /// By what was taken off.
    pub mended: BTreeMap<String, u64>,
    pub usage: Usage,
}

impl Tally {
    /// Counts a row's captions.
    pub fn add(&mut self, captioned: &Captioned) {
        for (tally, caption) in [(&mut self.long, &captioned.long), (&mut self.short, &captioned.short)] {
            if let Some(caption) = caption {
                tally.add(caption);
            }
        }
    }

    /// Sums two.
    pub fn plus(&mut self, other: &Self) {
        for (sum, more) in [(&mut self.long, &other.long), (&mut self.short, &other.short)] {
            sum.captions += more.captions;
            sum.attempts += more.attempts;
            sum.ready += more.ready;
            sum.fell_back += more.fell_back;
            sum.asked_again += more.asked_again;
            sum.passed_on += more.passed_on;
            for (counts, more) in [(&mut sum.flags, &more.flags), (&mut sum.mended, &more.mended)] {
                for (name, n) in more {
                    *counts.entry(name.clone()).or_default() += n;
                }
            }
            sum.usage += more.usage;
        }
    }
}

impl StepTally {
    /// Captions that a model made and that passed their checks.
    pub fn passed(&self) -> u64 {
        [self.ready, self.fell_back, self.passed_on].into_iter().fold(self.captions, u64::saturating_sub)
    }

    fn add(&mut self, caption: &Caption) {
        self.captions += u64::from(caption.source != Source::Refused);
        self.attempts += u64::from(caption.attempts);
        self.asked_again += u64::from(caption.attempts.saturating_sub(1));
        self.ready += u64::from(caption.source == Source::Ready);
        self.fell_back += u64::from(caption.source == Source::FallBack);
        self.passed_on += u64::from(caption.source == Source::PassedOn);
        for flag in &caption.flags {
            *self.flags.entry(flag.name().to_owned()).or_default() += 1;
        }
        for mended in &caption.mended {
            *self.mended.entry(mended.name().to_owned()).or_default() += 1;
        }
        self.usage += caption.usage;
    }
}

/// What this process has asked, live. Shared by all partitions.
#[derive(Debug)]
pub struct Meter {
    began: Instant,
    rows: AtomicU64,
    answers: AtomicU64,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    /// In billionths of whatever currency the prices are in.
    cost: AtomicU64,
    /// Of long captions, and of short ones.
    judged: Mutex<[Judged; 2]>,
}

/// What the checks have said of the captions that models made, by their last answers. Those are counted whose answers were all asked for
/// here and now, once for all rows that ask the same.
#[derive(Clone, Debug, Default)]
struct Judged {
    passed: u64,
    failed: u64,
    flags: BTreeMap<&'static str, u64>,
    /// Whether any has passed, whoever asked for it and when.
    has_passed: bool,
}

impl Default for Meter {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            began: Instant::now(),
            rows: zero(),
            answers: zero(),
            prompt_tokens: zero(),
            completion_tokens: zero(),
            cost: zero(),
            judged: Mutex::default(),
        }
    }
}

fn of_kind([long, short]: &mut [Judged; 2], kind: Kind) -> &mut Judged {
    match kind {
        Kind::Long => long,
        Kind::Short => short,
    }
}

impl Meter {
    pub(super) fn answered(&self, usage: Usage, price: Option<Price>) {
        let cost = price.map_or(0.0, |price| price.of(usage));
        self.cost.fetch_add((cost * 1e9) as u64, Ordering::Relaxed);
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.prompt_tokens.fetch_add(usage.prompt_tokens, Ordering::Relaxed);
        self.completion_tokens.fetch_add(usage.completion_tokens, Ordering::Relaxed);
    }

    /// What is committed already has captions of this kind that passed their checks: those that all fail are no more than a part of the job.
    pub fn passed_before(&self, kind: Kind) {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        of_kind(&mut judged, kind).has_passed = true;
    }

    /// The last answer for a caption passed its checks, or did not. Why the job is to stop, if not one has passed: what is in the place of
    /// captions then is none of the model's, and is paid for all the same.
    pub(super) fn judged(&self, kind: Kind, passes: bool, caption: &Caption) -> Result<(), String> {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let of = of_kind(&mut judged, kind);
        of.has_passed |= passes;
        if caption.known > 0 {
            return Ok(());
        }
        if passes {
            of.passed += 1;
            return Ok(());
        }
        of.failed += 1;
        for flag in &caption.flags {
            *of.flags.entry(flag.name()).or_default() += 1;
        }
        if of.has_passed || of.failed < ALL_FAIL {
            return Ok(());
        }
        let name = match kind {
            Kind::Long => "long",
            Kind::Short => "short",
        };
        let flags: Vec<String> = of.flags.iter().map(|(flag, n)| format!("{flag} {n}")).collect();
        Err(format!(
            "of {} {name} captions not one has passed its checks ({}). Is `max_tokens` enough, does the server take a thinking model's \
             thoughts off (a reasoning parser), do the checks suit the prompt? `ferrotype caption` tries a prompt on a few pictures. \
             Nothing was put in their place, and what was answered is kept",
            of.failed,
            flags.join(", ")
        ))
    }

    /// The share of captions that failed their checks in the end.
    fn failing(&self) -> f64 {
        let judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let (failed, passed): (u64, u64) = judged.iter().fold((0, 0), |sum, of| (sum.0 + of.failed, sum.1 + of.passed));
        failed as f64 / (failed + passed).max(1) as f64
    }

    /// A row has ended.
    pub fn row(&self) {
        self.rows.fetch_add(1, Ordering::Relaxed);
    }

    /// What was paid for.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            completion_tokens: self.completion_tokens.load(Ordering::Relaxed),
            cached_tokens: 0,
        }
    }

    /// "12.3 images/s, 2100 prompt and 1950 completion tokens/s, 0.12 spent": by this process.
    pub fn in_words(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-3);
        let Usage { prompt_tokens, completion_tokens, .. } = self.usage();
        let rate = |count: u64| count as f64 / seconds;
        let cost = self.cost.load(Ordering::Relaxed) as f64 / 1e9;
        let cost = if cost > 0.0 { format!(", {cost:.2} spent") } else { String::new() };
        let failing = self.failing();
        let failing = if failing > 0.0 {
            format!(", {:.1} % of captions fail their checks", 100.0 * failing)
        } else {
            String::new()
        };
        format!(
            "{:.1} images/s, {:.0} prompt and {:.0} completion tokens/s{cost}{failing}",
            rate(self.rows.load(Ordering::Relaxed)),
            rate(prompt_tokens),
            rate(completion_tokens)
        )
    }
}
