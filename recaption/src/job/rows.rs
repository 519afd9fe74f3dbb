//! All rows of a partition, as many at a time as keep the captioners busy.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{Answers, Job, JobError, Row, RowEnd};

/// Between two looks at whether it is to stop, and two reports.
const LOOK: Duration = Duration::from_millis(100);

/// Who sees how it goes.
pub trait Watch<E> {
    /// Row `number` has ended; rows end in any order.
    fn ended(&mut self, number: usize, end: RowEnd) -> Result<(), E>;

    /// Called ten times a second; an error stops the job.
    fn look(&mut self) -> Result<(), E>;
}

/// Captions `rows`, at most `at_once` of them at a time. Stops at the first error; what was answered until then is in the
/// journal.
pub async fn run<E: From<JobError>>(
    job: &Arc<Job>,
    answers: &Arc<Answers>,
    rows: &mut impl Iterator<Item = Result<Row, E>>,
    at_once: usize,
    watch: &mut impl Watch<E>,
) -> Result<(), E> {
    let mut tasks: JoinSet<(usize, Result<RowEnd, JobError>)> = JoinSet::new();
    let mut number = 0;
    let mut look = tokio::time::interval(LOOK);
    let mut is_at_end = false;
    loop {
        while !is_at_end && tasks.len() < at_once.max(1) {
            let Some(row) = rows.next() else {
                is_at_end = true;
                break;
            };
            let (job, answers, row) = (Arc::clone(job), Arc::clone(answers), row?);
            tasks.spawn(async move { (number, job.caption(&row, &answers).await) });
            number += 1;
        }
        if tasks.is_empty() {
            return Ok(());
        }
        tokio::select! {
            biased;
            _ = look.tick() => watch.look()?,
            ended = tasks.join_next() => match ended {
                Some(Ok((number, end))) => watch.ended(number, end?)?,
                Some(Err(_died)) => return Err(JobError::Lost.into()),
                None => {}
            },
        }
    }
}
